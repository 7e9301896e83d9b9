"""The loops to explain, by name. In: ``g2p`` or ``path/to/file.py:function``; out: the cell and loop_fn of each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

_WORDS = ["a", "word", "phoneme"]


def loops(target: str) -> dict[str, tuple[Any, Any]]:
    """(cell, loop_fn) of each loop that a target names.

    Raises:
        ValueError: it names none, or its function failed; the message is one line.
        ModuleNotFoundError, FileNotFoundError: as `fusedrnn.models.G2P.pretrained`.
    """
    if target == "g2p":
        return _g2p()
    file, _, name = target.rpartition(":")
    if not file.endswith(".py"):
        raise ValueError(f"give g2p or path/to/file.py:function, got {target!r}")
    return {name: _returned(Path(file), name)}


def _returned(file: Path, name: str) -> tuple[Any, Any]:
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)  # as `python file.py` has it
    try:
        spec.loader.exec_module(module)
        function = getattr(module, name, None)
        made = function() if callable(function) else None
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{file}:{name} failed: {type(error).__name__}: {first}") from error
    finally:
        sys.path.remove(folder)
    if not callable(function):
        there = "" if function is None else f": it is of type {type(function).__name__}"
        raise ValueError(f"{file} has no function {name}{there}")
    if not isinstance(made, (tuple, list)) or len(made) != 2:
        raise ValueError(f"{file}:{name} must return (cell, loop_fn), got {type(made).__name__}")
    return made[0], made[1]


def _g2p() -> dict[str, tuple[Any, Any]]:
    """The two loops of the G2P model for a few words, as it hands them to `raw_rnn`."""
    from ..loop import raw_rnn
    from ..models import g2p
    from ..models.phonemizer import spelled

    found: dict[str, tuple[Any, Any]] = {}

    def noted(cell: Any, loop_fn: Any, *, scope: str, backend: str) -> Any:
        found[scope.rpartition(".")[2]] = cell, loop_fn
        return raw_rnn(cell, loop_fn, scope=scope, backend="reference")

    model = g2p.G2P.pretrained()
    spelling = next(spelled(_WORDS, len(_WORDS)))
    names = vars(g2p)
    original, names["raw_rnn"] = names["raw_rnn"], noted
    try:
        with torch.no_grad():
            model.decode(model.encode(spelling.graphemes, spelling.lengths))
    finally:
        names["raw_rnn"] = original
    return found
