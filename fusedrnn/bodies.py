"""torch's functions that are written in Python. In: one of them; out: the same for a torch function mode that is to see what it calls.

Called under a mode, such a function hands itself to the mode and then runs with the mode off: the draws of ``gumbel_softmax`` and the
attention within ``multi_head_attention_forward`` would go by unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch.nn.functional as F

_ASKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def opened(func: Any) -> Callable[..., Any] | None:
    """A function of `torch.nn.functional` that does not hand itself to a mode; None of any other function."""
    return _opened(func) if type(func) is FunctionType and func.__globals__ is F.__dict__ else None


@cache
def _opened(func: FunctionType) -> Callable[..., Any] | None:
    if not set(_ASKS).intersection(func.__code__.co_names):
        return None
    variables = {**F.__dict__, **dict.fromkeys(_ASKS, lambda *_: False)}
    made = FunctionType(func.__code__, variables, func.__name__, func.__defaults__, func.__closure__)
    made.__kwdefaults__ = func.__kwdefaults__
    return made
