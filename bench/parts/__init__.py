"""The parts of `python -m bench gpu`, a module each. In: the name of a part, one of its cases, where it runs; out: rows of results."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch

# In their order, with the seconds that each may take.
PARTS = {"correctness": 120, "barrier": 50, "constants": 30, "sequence": 120, "decode": 120, "peers": 90, "tests": 90, "tables": 3600}

Row = dict[str, Any]


@dataclass(frozen=True)
class Where:
    """Where a part runs.

    Attributes:
        dry: on CPU tensors, emulated and tiny, to see that everything runs to its end.
    """

    dry: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")


def cases(part: str, where: Where) -> list[Row]:
    """What a part goes through, the most telling first."""
    found: list[Row] = importlib.import_module(f".{part}", __package__).cases(where)
    return found


def measured(part: str, case: Row, where: Where, seconds: float) -> list[Row]:
    """The rows of one case, in a process that may crash or hang; ``seconds`` are left for it."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, for peers too
    with torch.no_grad(), torch.device(where.device):
        found: list[Row] = importlib.import_module(f".{part}", __package__).measure(case, where, seconds)
    return found
