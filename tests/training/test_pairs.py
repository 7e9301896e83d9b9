"""What the model is shown: every pronunciation once an epoch, words of like length together, the same order for the same seed."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from fusedrnn.models import g2p_checkpoint as checkpoint
from fusedrnn.training.pairs import Pairs

from .words import WORDS

COUNT = sum(map(len, WORDS.values()))


def shown(pairs, rows):
    """A batch as (word, phonemes) pairs."""
    batch = pairs.batch(rows)
    found = []
    for row, (length, target_length) in enumerate(zip(batch.lengths.tolist(), batch.target_lengths.tolist(), strict=True)):
        graphemes, targets = batch.graphemes[:, row].tolist(), batch.targets[:, row].tolist()
        assert graphemes[length - 1] == checkpoint.GRAPHEME_END
        assert targets[target_length - 1] == checkpoint.PHONEME_END
        assert not any(graphemes[length:] + targets[target_length:])
        found.append(("".join(checkpoint.GRAPHEMES[token] for token in graphemes[: length - 1]), tuple(checkpoint.phonemes(targets))))
    return found


def test_an_epoch_shows_every_pronunciation_once():
    pairs = Pairs(WORDS)
    assert len(pairs) == COUNT
    found = [pair for rows in pairs.epoch(4, 0, 0) for pair in shown(pairs, rows)]
    assert sorted(found) == sorted((word, tuple(phonemes)) for word, pronunciations in WORDS.items() for phonemes in pronunciations)


def test_batches_are_of_like_length_and_no_longer_than_they_must_be():
    pairs = Pairs(WORDS)
    batches = [pairs.batch(rows) for rows in pairs.epoch(8, 3, 1)]
    assert sorted(len(batch.lengths) for batch in batches) == [6, 8, 8]
    for batch in batches:
        assert batch.graphemes.dtype == batch.targets.dtype == batch.lengths.dtype == batch.target_lengths.dtype == torch.int64
        assert batch.graphemes.shape == (batch.lengths.max(), len(batch.lengths))
        assert batch.targets.shape == (batch.target_lengths.max(), len(batch.lengths))
    spans = sorted((int(batch.lengths.min()), int(batch.lengths.max())) for batch in batches)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_seed_and_epoch_decide_the_order():
    pairs = Pairs(WORDS)
    order = [rows.tolist() for rows in pairs.epoch(4, 5, 2)]
    assert [rows.tolist() for rows in Pairs(WORDS).epoch(4, 5, 2)] == order
    assert [rows.tolist() for rows in pairs.epoch(4, 5, 3)] != order
    assert [rows.tolist() for rows in pairs.epoch(4, 6, 2)] != order
    assert np.concatenate(order).tolist() != sorted(np.concatenate(order).tolist())


def test_no_words():
    assert len(Pairs({})) == 0
    assert Pairs({}).epoch(4, 0, 0) == []


def test_a_phoneme_that_is_none():
    with pytest.raises(ValueError, match="there is no phoneme 'AX' in the table"):
        Pairs({"a": [["AX"]]})
