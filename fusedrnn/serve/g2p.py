"""Grapheme to phoneme as a served model. In: words; out: their phonemes as the decoder finds them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from .. import feedback
from ..compiled import Loop
from ..compiled import compile as compiled
from ..models import g2p_checkpoint as checkpoint
from ..models.g2p import G2P
from .model import Model, SlotLoop, Values
from .rows import Row

_AT_ONCE = 64  # words in a call of the encoder, which is compiled for so many rows: those that are not there take no time


class G2PModel(Model):
    """The GRU encoder-decoder of `fusedrnn.models.G2P`. A request is a word, a str; a chunk a list of the names of phonemes.

    Args:
        model: in eval mode, on the CPU.
        most_letters: of a word.
    """

    name = "g2p"

    def __init__(self, model: G2P, *, most_letters: int = 64) -> None:
        if most_letters < 1:
            raise ValueError(f"most_letters must be at least 1, got {most_letters}")
        self.model, self.most_letters = model, most_letters
        self._graphemes = torch.zeros(most_letters + 1, _AT_ONCE, dtype=torch.int64)
        self._lengths = torch.zeros(_AT_ONCE, dtype=torch.int64)
        self._encoder = self._encoder_loop()
        self._turn = threading.Lock()  # of the engines that share this model: its encoder reads one place

    def _encoder_loop(self) -> Loop:
        encoder, embedding, graphemes, lengths = self.model.encoder, self.model.grapheme_embedding, self._graphemes, self._lengths
        first = embedding.weight.new_zeros(_AT_ONCE, encoder.hidden_size)

        def loop_fn(time: torch.Tensor, output: Any, state: Any, loop_state: Any) -> Any:
            return time >= lengths, embedding(graphemes[time]), first if state is None else state, (), None

        return compiled(encoder, loop_fn, backend="native").warmup()

    def loop(self, slots: int) -> SlotLoop:
        model = self.model
        state = model.phoneme_embedding.weight.new_zeros(slots, model.decoder.hidden_size).detach()
        start, end, most = checkpoint.PHONEME_START, checkpoint.PHONEME_END, checkpoint.MAX_STEPS
        loop_fn = feedback.greedy(model.phoneme_embedding, model.project, start, end, state, most)
        return SlotLoop(model.decoder, loop_fn, {"state": Row(state)})

    def check(self, request: Any) -> None:
        if not isinstance(request, str):
            raise TypeError(f"a word must be a str, got {type(request).__name__}")
        letters = len(request.lower())  # as the encoder reads it: a few letters become two
        if letters > self.most_letters:
            raise ValueError(f"a word may have {self.most_letters} letters, this one has {letters} in lower case: {request[:20]!r}...")

    def admit(self, requests: Sequence[str]) -> list[Values]:
        with self._turn:
            return [values for begin in range(0, len(requests), _AT_ONCE) for values in self._encoded(requests[begin : begin + _AT_ONCE])]

    def _encoded(self, words: Sequence[str]) -> list[Values]:
        self._lengths.zero_()
        for row, word in enumerate(words):
            letters = torch.tensor(checkpoint.graphemes(word))
            self._lengths[row] = len(letters)
            self._graphemes[: len(letters), row] = letters
        state = self._encoder().final_state
        return [{"state": state[row]} for row in range(len(words))]

    def emit(self, request: str, values: npt.NDArray[Any]) -> list[str] | None:
        return checkpoint.phonemes(values.tolist()) or None
