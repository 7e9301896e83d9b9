"""Grapheme to phoneme: words in, their pronunciations in ARPAbet out. A GRU encoder-decoder, both loops written for `raw_rnn`."""

from __future__ import annotations

import time as clock
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import executors
from ..loop import raw_rnn
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
        executors: of the encoder's loop and of the decoder's.
    """

    rows: list[int]
    phonemes: list[list[str]]
    encoder_steps: int
    decoder_steps: int
    seconds: float
    executors: tuple[str, str]


class G2P(nn.Module):
    """The GRU encoder-decoder of the package g2p-en, greedy, at most 20 phonemes a word.

    Words are lower-cased; a character that is not one of a to z becomes the unknown symbol, as accents, digits and ``'`` do.
    ``G2P()`` has random weights; `pretrained` has the published ones.
    """

    def __init__(self, embedding_size: int = checkpoint.EMBEDDING_SIZE, hidden_size: int = checkpoint.HIDDEN_SIZE) -> None:
        super().__init__()
        self.grapheme_embedding = nn.Embedding(len(checkpoint.GRAPHEMES), embedding_size)
        self.encoder = nn.GRUCell(embedding_size, hidden_size)
        self.phoneme_embedding = nn.Embedding(len(checkpoint.PHONEMES), embedding_size)
        self.decoder = nn.GRUCell(embedding_size, hidden_size)
        self.project = nn.Linear(hidden_size, len(checkpoint.PHONEMES))

    @classmethod
    def pretrained(cls) -> G2P:
        """The model with the weights that the package g2p-en ships, in float32 on the CPU.

        Raises:
            ModuleNotFoundError: g2p-en is not installed; the message says how to install it.
            FileNotFoundError, ValueError: its checkpoint is not there, or not as it should be.
        """
        arrays = checkpoint.arrays()
        model = cls().eval()
        model.load_state_dict({ours: torch.from_numpy(arrays[theirs]) for ours, theirs in _CHECKPOINT_NAMES.items()})
        return model

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
        device = self.project.weight.device
        encoded = self._encoded(spelling.graphemes.to(device), spelling.lengths.to(device), backend)
        decoded = self._tokens(encoded.final_state, backend)
        tokens = decoded.emit_ta.stack()
        phonemes = [checkpoint.phonemes(row) for row in tokens.T.tolist()]
        ran = (encoded.executor, decoded.executor)
        return Batch(spelling.rows, phonemes, len(spelling.graphemes), len(tokens), clock.perf_counter() - began, ran)

    def encode(self, graphemes: torch.Tensor, lengths: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        """The encoder's last state ``[B, H]`` of each word, from ``graphemes`` ``[T, B]`` and ``lengths`` ``[B]``, both int64."""
        return self._encoded(graphemes, lengths, backend).final_state  # type: ignore[no-any-return]

    def _encoded(self, graphemes: torch.Tensor, lengths: torch.Tensor, backend: str) -> Result:
        encoder, embedding = self.encoder, self.grapheme_embedding  # not self: loop_fn uses these parts alone
        initial_state = embedding.weight.new_zeros(len(lengths), encoder.hidden_size)

        def loop_fn(time: torch.Tensor, output: Any, state: Any, loop_state: Any) -> Any:
            next_state = initial_state if state is None else state
            return time >= lengths, embedding(graphemes[time]), next_state, (), None  # only the last state counts: nothing is emitted

        return raw_rnn(encoder, loop_fn, scope="g2p.encode", backend=backend)

    def decode(self, initial_state: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        """The most likely phoneme at each step, ``[T_run, B]`` int64; 0 after a word's end. From the encoder's state ``[B, H]``."""
        return self._tokens(initial_state, backend).emit_ta.stack()  # type: ignore[no-any-return]

    def _tokens(self, initial_state: torch.Tensor, backend: str) -> Result:
        embedding, project = self.phoneme_embedding, self.project
        start, end, most = checkpoint.PHONEME_START, checkpoint.PHONEME_END, checkpoint.MAX_STEPS

        def loop_fn(time: torch.Tensor, output: Any, state: Any, loop_state: Any) -> Any:
            if output is None:
                first = initial_state.new_full(initial_state.shape[:1], start, dtype=torch.int64)
                return False, embedding(first), initial_state, torch.zeros((), dtype=torch.int64), None
            token = project(output).argmax(-1)
            return (token == end) | (time >= most), embedding(token), state, token, None

        return raw_rnn(self.decoder, loop_fn, scope="g2p.decode", backend=backend)


_CHECKPOINT_NAMES = {
    "grapheme_embedding.weight": "enc_emb",
    "encoder.weight_ih": "enc_w_ih",
    "encoder.weight_hh": "enc_w_hh",
    "encoder.bias_ih": "enc_b_ih",
    "encoder.bias_hh": "enc_b_hh",
    "phoneme_embedding.weight": "dec_emb",
    "decoder.weight_ih": "dec_w_ih",
    "decoder.weight_hh": "dec_w_hh",
    "decoder.bias_ih": "dec_b_ih",
    "decoder.bias_hh": "dec_b_hh",
    "project.weight": "fc_w",
    "project.bias": "fc_b",
}


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
