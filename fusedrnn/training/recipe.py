"""How to train. In: a few numbers; out: the learning rate and the rest at each point of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..models.encoder_decoder import Sizes

_WARM_UP = 0.02  # of the run: the learning rate rises
_TEACHER = 0.25  # of the run: nothing but targets is fed


@dataclass(frozen=True)
class Recipe:
    """All that decides what a run computes, the words aside.

    Attributes:
        attention, embedding, hidden: the model's `Sizes`.
        batch_size: the most pairs of a word and a pronunciation in a step.
        epochs: how long to train, or None.
        minutes: how long to train by the clock, validation included, where epochs is None.
        learning_rate: the greatest.
        dropout: see `fusedrnn.models.EncoderDecoder`.
        sampling: the greatest probability of feeding a drawn phoneme instead of the target.
        smoothing: label smoothing.
        weight_decay: of AdamW, on matrices only.
        clip: the greatest norm of the gradients.
        seed: of weights, order, dropout and draws.
        words: of CMUdict, or None for all.
    """

    attention: str = "bahdanau"
    embedding: int = 128
    hidden: int = 256
    batch_size: int = 256
    epochs: int | None = None
    minutes: float | None = 55.0
    learning_rate: float = 2e-3
    dropout: float = 0.3
    sampling: float = 0.1
    smoothing: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    words: int | None = None

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.attention, self.embedding, self.hidden)

    def progress(self, batches: float, seconds: float) -> float:
        """How much of the run is done, 0 to 1, after so many epochs' worth of batches and so many seconds."""
        done = seconds / (60 * self.minutes) if self.epochs is None and self.minutes is not None else batches / (self.epochs or 1)
        return min(done, 1.0)

    def rate(self, progress: float) -> float:
        """The learning rate: a linear rise, then half a cosine down to 0."""
        if progress < _WARM_UP:
            return self.learning_rate * (progress + 1e-4) / _WARM_UP
        return self.learning_rate * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))) / 2

    def sampled(self, progress: float) -> float:
        """The probability of feeding a drawn phoneme: 0 at first, then rising linearly."""
        return self.sampling * max(0.0, (progress - _TEACHER) / (1 - _TEACHER))
