"""What a model of pronunciations is called with: words in, batches of like length through the model, a list of phonemes a word out."""

from __future__ import annotations

import time as clock
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from .. import executors
from ..result import Result
from . import g2p_checkpoint as checkpoint

_MOST_GRAPHEMES = 1 << 18  # of one batch, padding included: 256 MiB embedded. Only a "word" of over 1,000 letters shrinks a batch of 256.


class Spelling(NamedTuple):
    """Some of the words as the encoder reads them.

    Attributes:
        rows: the places of these words in the list they came from.
        graphemes: ``[T, B]`` int64, time-major, padded with 0.
        lengths: ``[B]`` int64, the end symbol included.
    """

    rows: list[int]
    graphemes: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Some of the words, done.

    Attributes:
        rows: the places of these words in the list they came from.
        phonemes: one list a word.
        encoder_steps, decoder_steps: how many steps each loop ran for the whole batch.
        seconds: from the start of the encoder to the phonemes.
        executors: of each loop, the decoder's last.
    """

    rows: list[int]
    phonemes: list[list[str]]
    encoder_steps: int
    decoder_steps: int
    seconds: float
    executors: tuple[str, ...]


class Phonemizer(nn.Module):
    """An encoder-decoder called with words. A subclass defines ``_phonemes``.

    Words are lower-cased; a character that is not one of a to z becomes the unknown symbol, as accents, digits and ``'`` do. A word has at
    most 20 phonemes.
    """

    def forward(self, words: Iterable[str], *, batch_size: int = 256, by_length: bool = True, backend: str = "auto") -> list[list[str]]:
        """The phonemes of words, in their order.

        Args:
            words: a list of str; an empty str is a word without letters.
            batch_size: the most words to decode at once.
            by_length: batches of words of like length; otherwise of words in their order.
            backend: as in `raw_rnn`.

        Raises:
            TypeError: ``words`` is one str or holds something else than str; ``batch_size`` is no int.
            ValueError: ``batch_size`` is below 1; no such backend.
            PlanError: the named backend cannot run this.
        """
        listed = _listed(words)
        found: list[list[str]] = [[] for _ in listed]
        for batch in self.batches(listed, batch_size=batch_size, by_length=by_length, backend=backend):
            for row, phonemes in zip(batch.rows, batch.phonemes, strict=True):
                found[row] = phonemes
        return found

    def batches(self, words: Iterable[str], *, batch_size: int = 256, by_length: bool = True, backend: str = "auto") -> Iterator[Batch]:
        """As calling the model, batch by batch as they are done, by default shortest words first: for progress, statistics and streaming.

        Arguments and errors are those of `forward`; errors about arguments are raised at once, not at the first batch.
        """
        listed = _listed(words)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise TypeError(f"batch_size must be an int, got {batch_size!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        executors.choose(backend)
        return (self._decoded(spelling, backend) for spelling in spelled(listed, batch_size, by_length=by_length))

    @torch.no_grad()
    def _decoded(self, spelling: Spelling, backend: str) -> Batch:
        began = clock.perf_counter()
        device = next(self.parameters()).device
        decoded, encoders = self._phonemes(spelling.graphemes.to(device), spelling.lengths.to(device), backend)
        tokens = decoded.emit_ta.stack()
        phonemes = [checkpoint.phonemes(row) for row in tokens.T.tolist()]
        ran = (*encoders, decoded.executor)
        return Batch(spelling.rows, phonemes, len(spelling.graphemes), len(tokens), clock.perf_counter() - began, ran)

    def _phonemes(self, graphemes: torch.Tensor, lengths: torch.Tensor, backend: str) -> tuple[Result, tuple[str, ...]]:
        """The decoder's loop, which emits the most likely phoneme at each step, ``[B]`` int64, and the executors that ran the encoder.
        From ``graphemes`` ``[T, B]`` and ``lengths`` ``[B]``, both int64."""
        raise NotImplementedError(f"{type(self).__name__} must define _phonemes(graphemes, lengths, backend)")


def _listed(words: Iterable[str]) -> list[str]:
    if isinstance(words, (str, bytes)):
        raise TypeError(f"words must be a list of str, got one {type(words).__name__}; pass a list: [{words!r:.40}]")
    listed = list(words)
    for place, word in enumerate(listed):
        if not isinstance(word, str):
            raise TypeError(f"words[{place}] must be a str, got {type(word).__name__}")
    return listed


def spelled(words: list[str], batch_size: int, *, by_length: bool = True) -> Iterator[Spelling]:
    """The words in batches of at most ``batch_size``; by length, so that the rows of a batch finish together, or in their order."""
    indices = [checkpoint.graphemes(word) for word in words]
    order = sorted(range(len(words)), key=lambda row: len(indices[row])) if by_length else list(range(len(words)))
    rows: list[int] = []
    longest = 0
    for row in order:
        longer = max(longest, len(indices[row]))
        if rows and (len(rows) == batch_size or longer * (len(rows) + 1) > _MOST_GRAPHEMES):
            yield _spelling(rows, indices)
            rows, longer = [], len(indices[row])
        rows.append(row)
        longest = longer
    if rows:
        yield _spelling(rows, indices)


def _spelling(rows: list[int], indices: list[list[int]]) -> Spelling:
    lengths = [len(indices[row]) for row in rows]
    longest = max(lengths)
    padded = [indices[row] + [0] * (longest - length) for row, length in zip(rows, lengths, strict=True)]
    return Spelling(rows, torch.tensor(list(zip(*padded, strict=True))), torch.tensor(lengths))
