"""The training itself. In: a recipe and words; out: a model that gets better with every step, and what is needed to go on from there."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..models import EncoderDecoder
from ..result import Result
from .lexicon import Lexicon, Pronunciations
from .pairs import Batch, Pairs, Rows
from .recipe import Recipe
from .scores import Scores, scores

_MEAN_OF = 20  # steps, to a point of the curve
_SLOWEST_FIRST = ("reference", "stepwise", "native", "persistent")


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch, batch: the next batch's, both from 0.
        steps: done.
        pairs: shown to the model.
        seconds: spent, validation included.
        curve: (seconds, mean loss of some steps), in nats a phoneme, smoothing included.
        recent: the losses of the steps since the last point.
        validations: (seconds, epochs, word error rate, phoneme error rate).
    """

    epoch: int = 0
    batch: int = 0
    steps: int = 0
    pairs: int = 0
    seconds: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    validations: list[tuple[float, float, float, float]] = field(default_factory=list)


class Trainer:
    """A model in training.

    What it computes follows from the recipe, the words and the executors alone, to the bit for one number of threads; with
    ``recipe.minutes`` from the clock too. It seeds torch's default generator and draws from it.

    Args:
        recipe, lexicon: what to train, how, and on which words.
        backend: of the loops. "auto" stands for the executors that it comes to once loops are compiled, from the first step on: a run that
            is interrupted computes what it would have computed.

    Attributes:
        model: in training mode.
        progress: how far it is.
        backends: of the encoder's loops and of the decoder's.

    Raises:
        ValueError: there is no word to train on.
    """

    def __init__(self, recipe: Recipe, lexicon: Lexicon, backend: str = "auto") -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.lexicon = recipe, lexicon
        self.model = EncoderDecoder(recipe.sizes, dropout=recipe.dropout).train()
        matrices = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.model.parameters() if parameter.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
        self.progress = Progress()
        self._pairs = Pairs(lexicon.train)
        if not len(self._pairs):
            raise ValueError(f"none of the {len(lexicon.validation) + len(lexicon.held_out)} words is one to train on: take more")
        self._backend = backend
        self._order: tuple[int, list[Rows]] | None = None
        self.backends = self._settled(self._pairs.batch(self.batches()[0])) if backend == "auto" else (backend, backend)

    @property
    def done(self) -> float:
        """How much of the run is done, 0 to 1."""
        progress = self.progress
        return self.recipe.progress(progress.epoch + progress.batch / len(self.batches()), progress.seconds)

    def batches(self) -> list[Rows]:
        """This epoch's."""
        epoch = self.progress.epoch
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self._pairs.epoch(self.recipe.batch_size, self.recipe.seed, epoch)
        return self._order[1]

    def step(self) -> float:
        """Train on the next batch; returns its loss, in nats a phoneme.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        progress, recipe, done = self.progress, self.recipe, self.done
        rows = self.batches()[progress.batch]
        loss = self.loss(self._pairs.batch(rows), recipe.sampled(done))
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {progress.steps + 1}: lower the learning rate of {recipe.learning_rate}")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(done)
        self.optimizer.step()
        progress.steps += 1
        progress.pairs += len(rows)
        progress.batch += 1
        if progress.batch == len(self.batches()):
            progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.recent.append(value)
        if len(progress.recent) == _MEAN_OF:
            progress.curve.append((progress.seconds, sum(progress.recent) / _MEAN_OF))
            progress.recent.clear()
        return value

    def loss(self, batch: Batch, sampling: float) -> torch.Tensor:
        """The cross entropy of the targets, label smoothing included, a mean over phonemes: float32 ``[]``."""
        encoder, decoder = self.backends
        encoded = self.model.encode(batch.graphemes, batch.lengths, backend=encoder)
        logits = self.model.logits(encoded, batch.targets, batch.target_lengths, sampling=sampling, backend=decoder)
        live = torch.arange(len(logits))[:, None] < batch.target_lengths
        return F.cross_entropy(logits[live], batch.targets[live], label_smoothing=self.recipe.smoothing)

    def scores(self, words: Pronunciations) -> Scores:
        """How the model does on words, decoded greedily."""
        self.model.eval()
        try:
            return scores(self.model(words, backend=self._backend), words)
        finally:
            self.model.train()

    def validate(self) -> Scores:
        """Its `scores` on the words for validation, noted in its progress."""
        found, progress = self.scores(self.lexicon.validation), self.progress
        epochs = progress.epoch + progress.batch / len(self.batches())
        progress.validations.append((progress.seconds, epochs, found.wer, found.per))
        return found

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on as if nothing had happened: numbers, strings and tensors."""
        return {
            "recipe": asdict(self.recipe), "words": self.lexicon.digest(), "progress": asdict(self.progress),
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "generator": torch.get_rng_state(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: it is the state of another recipe or of other words; the message names both.
        """
        for name, mine in (("recipe", asdict(self.recipe)), ("words", self.lexicon.digest())):
            if state[name] != mine:
                raise ValueError(f"the checkpoint's {name} are {state[name]}, this run's {mine}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["generator"])

    def _settled(self, batch: Batch) -> tuple[str, str]:
        """The executors that "auto" comes to. It would change them in the middle, once a loop has cost as much as compiling it does."""
        from ..compiled import compile

        ran: dict[str, set[str]] = {}

        def run(cell: Any, loop_fn: Any, *, scope: str, backend: str) -> Result:
            result = compile(cell, loop_fn, backend=backend)()
            ran.setdefault(scope, set()).add(result.executor)
            return result

        with torch.random.fork_rng(devices=[]):
            encoded = self.model.encode(batch.graphemes, batch.lengths, run=run)
            for sampling in (0.0, 0.5):
                self.model.logits(encoded, batch.targets, batch.target_lengths, sampling=sampling, run=run)
        encoder, decoder = (min(names, key=_SLOWEST_FIRST.index) for names in ran.values())
        return encoder, decoder
