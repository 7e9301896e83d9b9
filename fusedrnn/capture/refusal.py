"""Why a step cannot become a graph. In: an exception from tracing; out: one line with the way out, and the user's file and line."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import FrameType

import torch

from .. import frames

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parents[1])
_ABOUT_OURSELVES = tuple(str(Path(_OURS) / name) for name in ("capture", "contract.py", "reads.py", "draws.py", "branches.py", "frames.py"))


class NotCapturable(Exception):
    """The cell or loop_fn does something that a graph cannot hold.

    Attributes:
        reason: one line: what it does and what to write instead.
        location: ``file:line`` of the user's code, or None.
    """

    def __init__(self, reason: str, location: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.location = location


def is_foreign(filename: str) -> bool:
    return not filename.startswith((_TORCH, _OURS, "<frozen", "<string"))


def here() -> str | None:
    """``file:line`` of the user's code that is being traced: the innermost frame outside of torch and of this package, else inside the
    package; None where no step is being traced: what called raw_rnn is not what is traced."""
    frame: FrameType | None = sys._getframe(1)
    ours: str | None = None
    found: str | None = None
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename.startswith(_OURS):
            if ours is None and not filename.startswith(_ABOUT_OURSELVES):
                ours = f"{filename}:{frame.f_lineno}"
            if frame.f_code.co_name == "_traced_step":
                return found or ours
        elif found is None and is_foreign(filename):
            found = f"{filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def place(error: BaseException) -> str | None:
    """``file:line`` of the user's code that raised an error: the innermost such line below the traced step."""
    inside, found, ours = False, None, None
    for entry, line in traceback.walk_tb(error.__traceback__):
        filename = entry.f_code.co_filename
        if entry.f_code.co_name == "_traced_step":
            inside = True
        elif inside and is_foreign(filename):
            found = f"{filename}:{line}"
        elif inside and filename.startswith(_OURS) and not filename.startswith(_ABOUT_OURSELVES):
            ours = f"{filename}:{line}"
    return found or ours


def refuse_nested() -> None:
    """Raise NotCapturable where a step that is being traced runs a loop of its own."""
    outer = frames.current()
    if outer is not None and outer.clock is not None:
        raise NotCapturable("a step runs a loop of its own: its number of steps is not known when the step is captured", here())


_CONVERSIONS = {
    "__bool__": "decides in Python on a tensor's value (if, while, and, or, bool()): use torch.where or torch.cond",
    "__index__": "uses a tensor as a Python index: index a tensor with it instead, such as torch.stack(items)[time]",
    "__contains__": "looks a value up in a tensor (`in`), which decides in Python: use (x == value).any() with torch.where",
    "numpy": "turns a tensor into a numpy array: stay in torch",
    "__array__": "turns a tensor into a numpy array: stay in torch",
}
_NUMBER = "turns a tensor into Python numbers (int(), float(), .item(), .tolist()): keep it a tensor"


def refusal(error: Exception, who: str, conversion: str | None) -> NotCapturable | None:
    """The reason that an error of tracing stands for; None where the error is the program's own.

    Args:
        error: what tracing raised.
        who: "the cell" or "loop_fn", whichever was running.
        conversion: the name of the last function that turns a tensor into something of Python's, if one was running.
    """
    if isinstance(error, NotCapturable):
        return error
    kind = type(error).__name__
    where = place(error)
    if kind in ("GuardOnDataDependentSymNode", "DataDependentOutputException"):
        return NotCapturable(f"{who} {_CONVERSIONS.get(conversion or '', _NUMBER)}", where)
    if kind in ("DynamicOutputShapeException", "UserError"):
        return NotCapturable(
            f"{who} makes a tensor whose shape depends on values (nonzero, masked_select, unique, x[mask]): use torch.where", where
        )
    if conversion is not None and isinstance(error, (RuntimeError, TypeError, ValueError)):
        return NotCapturable(f"{who} {_CONVERSIONS.get(conversion, _NUMBER)}", where)
    if "autograd.Function" in str(error) or "custom_function_call" in str(error):
        return NotCapturable(
            f"{who} applies an autograd.Function of its own, whose backward a graph does not hold: write it with torch's functions, "
            "one that passes gradients straight through as x + (y - x).detach()", where,
        )  # fmt: skip
    if "requires_grad_()" in str(error) or "does not require grad" in str(error):
        return NotCapturable(
            f"{who} asks autograd for gradients, which a graph does not hold: write them out, or use torch.func.grad", where
        )
    if "mutating a non-functional tensor" in str(error):
        return NotCapturable(f"{who} changes a tensor in place that it closes over: carry it in the state or in loop_state", where)
    return None
