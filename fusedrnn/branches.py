"""``torch.cond`` inside a loop: run the branch that is taken.

Called eagerly, ``torch.cond`` compiles both branches with Dynamo, which cannot index by the 0-d tensor ``time`` (torch 2.13:
"Could not extract specialized integer"). Inside a loop the predicate is at hand, so the branch it names simply runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import frames

_torch_cond = torch.cond
_lock = threading.Lock()
_loops = 0


def _cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: tuple[Any, ...] | list[Any] = ()) -> Any:
    frame = frames.current()
    if frame is None or torch.compiler.is_compiling():
        return _torch_cond(pred, true_fn, false_fn, operands)
    if isinstance(pred, torch.Tensor) and (pred.dtype != torch.bool or pred.numel() != 1):
        raise RuntimeError(f"torch.cond: pred must be one bool, got {pred.dtype} of shape {list(pred.shape)}")
    if frame.conditional is not None:
        return frame.conditional(pred, true_fn, false_fn, operands)
    return true_fn(*operands) if pred else false_fn(*operands)


@contextmanager
def taken() -> Iterator[None]:
    """Within the block ``torch.cond`` of a thread that runs a loop takes its branch; for other threads nothing changes."""
    global _loops
    with _lock:
        _loops += 1
        torch.cond = _cond
    try:
        yield
    finally:
        with _lock:
            _loops -= 1
            if not _loops:
                torch.cond = _torch_cond
