"""A run in a directory. In: a recipe, or a checkpoint; out: in that directory ``model.safetensors``, ``checkpoint.pt``, ``loss.png`` and
``scores.json``."""

from __future__ import annotations

import io
import json
import pickle
import signal
import time as clock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..extras import needed
from ..models.files import replace
from . import curve
from .lexicon import cmudict
from .recipe import Recipe
from .scores import Scores
from .trainer import Trainer

CHECKPOINT = "checkpoint.pt"
_SAVED_AFTER = 300.0  # seconds without an end of an epoch


class Interrupted(Exception):
    """The run was told to stop; what it has done is saved."""


def opened(out: Path, given: dict[str, Any], *, resume: bool) -> tuple[Recipe, dict[str, Any] | None]:
    """The recipe of a run in a directory, and the checkpoint to go on from.

    Args:
        out: made where it is missing.
        given: attributes of `Recipe`; for a run that is resumed they must be those it has.
        resume: whether to go on with what is there.

    Raises:
        FileExistsError, FileNotFoundError: a run is there and is not to be resumed, or the other way round.
        ValueError: what is there is no checkpoint, or has another recipe.
        OSError: the directory cannot be made or written to.
    """
    file = out / CHECKPOINT
    if not resume:
        if file.exists():
            raise FileExistsError(f"{out} holds a run already: go on with it by --resume, or give another --out")
        recipe = Recipe(**given)
        out.mkdir(parents=True, exist_ok=True)
        replace(out / "recipe.json", json.dumps(asdict(recipe), indent=2).encode())
        return recipe, None
    if not file.is_file():
        raise FileNotFoundError(f"{out} holds no run to resume: {file} does not exist; leave --resume out to begin one")
    try:
        state = torch.load(file, weights_only=True)
        recipe = Recipe(**state["recipe"])
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} is no checkpoint of `fusedrnn train g2p`: {first}") from error
    for name, value in given.items():
        there, option = getattr(recipe, name), f"--{name.replace('_', '-')}"
        if there != value:
            raise ValueError(
                f"{option} is {_shown(value)} here and {_shown(there)} in the run in {out}: leave {option} out to go on with that run, or "
                "give another --out"
            )
    return recipe, state


def train(
    out: Path, recipe: Recipe, state: dict[str, Any] | None, *, backend: str = "auto", tell: Callable[[str], None] = print
) -> tuple[Scores, Trainer]:
    """Train to the end, saving after each epoch and every five minutes, and give the scores on the held-out words.

    Args:
        out, recipe, state: as `opened` gives them.
        backend: of the loops, as for `Trainer`.
        tell: told a line at a time how it goes.

    Raises:
        Interrupted: by SIGINT, after the step in hand.
        FloatingPointError: the loss is not finite.
        ModuleNotFoundError: a package is missing; the message says how to install it.
        OSError: the directory cannot be written to.
    """
    for module in ("matplotlib.figure", "safetensors.torch", "tqdm"):
        needed(module, "train")  # now, and not after an hour
    trainer = Trainer(recipe, cmudict(recipe.words), backend)
    if state is not None:
        trainer.load_state_dict(state)
    progress = trainer.progress
    began = clock.perf_counter() - progress.seconds
    saved = clock.perf_counter()
    with _interruptible() as interrupted, _bar(trainer) as bar:
        while trainer.done < 1:
            loss = trainer.step()
            progress.seconds = clock.perf_counter() - began
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {progress.pairs / progress.seconds:.0f} words/s", refresh=False)
            if progress.batch == 0 or trainer.done == 1:
                found = trainer.validate()
                progress.seconds = clock.perf_counter() - began
                bar.clear()
                tell(_line(trainer, found))
                bar.reset(len(trainer.batches()))
                bar.set_description(f"epoch {progress.epoch + 1}")
            stop = interrupted()
            if stop or progress.batch == 0 or trainer.done == 1 or clock.perf_counter() - saved > _SAVED_AFTER:
                save(out, trainer)
                saved = clock.perf_counter()
            if stop:
                raise Interrupted(f"stopped after {progress.steps} steps")
    found = trainer.scores(trainer.lexicon.held_out)
    replace(out / "scores.json", json.dumps(_summary(trainer, found), indent=2).encode())
    return found, trainer


def save(out: Path, trainer: Trainer) -> None:
    """Write the checkpoint, the model and the curve, each whole or not at all."""
    written = io.BytesIO()
    torch.save(trainer.state_dict(), written)
    replace(out / CHECKPOINT, written.getvalue())
    trainer.model.save(out)
    replace(out / "loss.png", curve.png(trainer.progress))


def _summary(trainer: Trainer, found: Scores) -> dict[str, Any]:
    progress = trainer.progress
    return {
        "held_out": {"wer": found.wer, "per": found.per, **asdict(found)},
        "epochs": progress.epoch + progress.batch / len(trainer.batches()),
        "steps": progress.steps,
        "minutes": progress.seconds / 60,
        "words_per_second": progress.pairs / max(progress.seconds, 1e-9),
        "train_words": len(trainer.lexicon.train),
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "executors": list(trainer.backends),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "recipe": asdict(trainer.recipe),
        "validations": progress.validations,
        "curve": progress.curve,
    }


def _line(trainer: Trainer, found: Scores) -> str:
    progress = trainer.progress
    loss = progress.curve[-1][1] if progress.curve else sum(progress.recent) / max(len(progress.recent), 1)
    epochs = progress.epoch + progress.batch / len(trainer.batches())
    rate = progress.pairs / progress.seconds
    return f"epoch {epochs:.4g}: loss {loss:.3f}, validation {found}; {progress.seconds / 60:.1f} minutes, {rate:.0f} words/s"


def _bar(trainer: Trainer) -> Any:
    """A bar over the batches of an epoch, on a terminal."""
    progress = trainer.progress
    return needed("tqdm", "train").tqdm(
        total=len(trainer.batches()), initial=progress.batch, desc=f"epoch {progress.epoch + 1}", unit=" batches",
        dynamic_ncols=True, disable=None,
    )  # fmt: skip


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Within the block the first SIGINT is only noted, so that no step is cut in two; a second one is Python's."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)
