"""What the model is shown. In: words and their pronunciations; out: an epoch's batches of tokens, each of words of like length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..models import g2p_checkpoint as checkpoint
from .lexicon import Pronunciations

Rows = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Pairs of a word and a pronunciation, as tokens, time-major, padded with 0.

    Attributes:
        graphemes: ``[S, B]`` int64.
        lengths: ``[B]`` int64, of the words, the end symbol included; S is the greatest.
        targets: ``[T, B]`` int64.
        target_lengths: ``[B]`` int64, of the pronunciations, the end symbol included; T is the greatest.
    """

    graphemes: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor


class Pairs:
    """Every word with every one of its pronunciations."""

    def __init__(self, words: Pronunciations) -> None:
        pairs = [(word, phonemes) for word, pronunciations in words.items() for phonemes in pronunciations]
        self._graphemes, self._lengths = _padded([checkpoint.graphemes(word) for word, _ in pairs])
        self._targets, self._target_lengths = _padded([checkpoint.phoneme_tokens(phonemes) for _, phonemes in pairs])

    def __len__(self) -> int:
        return len(self._lengths)

    def batch(self, rows: Rows) -> Batch:
        """The tokens of some of the pairs."""
        graphemes, lengths = _of(self._graphemes, self._lengths, rows)
        return Batch(graphemes, lengths, *_of(self._targets, self._target_lengths, rows))

    def epoch(self, batch_size: int, seed: int, epoch: int) -> list[Rows]:
        """The rows of each batch of an epoch: every pair once, pairs of like lengths together, batches in random order. The seed and the
        epoch's number alone decide."""
        draws = np.random.default_rng((seed, epoch))
        shuffled = draws.permutation(len(self))
        ordered = shuffled[np.lexsort((self._target_lengths[shuffled], self._lengths[shuffled]))]  # keeps the order of what is alike
        batches = [ordered[first : first + batch_size] for first in range(0, len(ordered), batch_size)]
        return [batches[place] for place in draws.permutation(len(batches))]


def _padded(lists: Sequence[list[int]]) -> tuple[npt.NDArray[np.uint8], Rows]:
    lengths = np.array([len(tokens) for tokens in lists], np.int64)
    padded = np.zeros((len(lists), int(lengths.max(initial=0))), np.uint8)
    for row, tokens in zip(padded, lists, strict=True):
        row[: len(tokens)] = tokens
    return padded, lengths


def _of(tokens: npt.NDArray[np.uint8], lengths: Rows, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = lengths[rows]
    return torch.from_numpy(tokens[rows, : chosen.max()].T.astype(np.int64)), torch.from_numpy(chosen)
