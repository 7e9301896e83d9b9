"""What tracing would do once instead of in every step. In: the names that code uses and what they mean; out: the first such use."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterable
from types import BuiltinFunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch

from .code import Code, Use

BUILTINS = {"print": print, "input": input, "open": open, "breakpoint": breakpoint}
_WHOLE = frozenset({"random", "time", "logging", "secrets", "uuid", "tempfile", "subprocess", "socket", "numpy.random"})
_SOME: dict[str, frozenset[str]] = {
    "os": frozenset({"environ", "environb", "getenv", "getenvb", "urandom", "getpid", "system", "popen", "listdir", "times", "getcwd"}),
    "sys": frozenset({"stdout", "stderr", "stdin", "argv"}),
    "numpy": frozenset({"random"}),
    "io": frozenset({"open"}),
    "builtins": frozenset(BUILTINS),
    "datetime": frozenset({"now", "today", "utcnow"}),
}
MODULES = _WHOLE | _SOME.keys()
_READ = frozenset({"environ", "environb", "argv"})
_SHARED = (random._inst, np.random.mtrand._rand)


_RANDOM = ("random", "numpy.random", "secrets", "uuid")
_STREAMS = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator, torch.Generator)


class Impurity(NamedTuple):
    """A use: in words, where, and what to do instead."""

    text: str
    location: str
    advice: str = "leave it out"


def impurity(who: str, what: str, code: Code, line: int, does: str = "calls") -> Impurity:
    is_random = what.startswith(_RANDOM) or does == _DRAWS
    advice = "use fusedrnn.random or torch.rand" if is_random else _INDEX if does == _ADVANCES else "leave it out"
    return Impurity(f"{who} {does} {what}", f"{code.file}:{line}", advice)


_DRAWS, _ADVANCES = "draws from", "advances"
_INDEX = "put the elements into a tensor or TensorArray and read it at the time"


def of_stream(value: Any) -> str | None:
    """What is done with an object that gives something else each time it is asked; None for any other object."""
    if isinstance(value, _STREAMS):
        return _DRAWS
    return _ADVANCES if any("__next__" in vars(cls) for cls in type(value).__mro__) else None


def of_module(who: str, module: str, name: str, code: Code) -> Impurity | None:
    """The first impure use of a module by the variable that holds it."""
    return _of_module(who, module, code.uses.get(name, ()), code)


def _of_module(who: str, module: str, uses: Iterable[Use], code: Code) -> Impurity | None:
    for use in uses:
        if not use.attributes:
            continue
        if module in _WHOLE:
            if use.attributes[0].isupper():  # logging.INFO
                continue
        elif _SOME[module].isdisjoint(use.attributes):
            continue
        does = "reads" if not _READ.isdisjoint(use.attributes) else "calls"
        return impurity(who, ".".join((module, *use.attributes)), code, use.line, does)
    return None


def name_of(value: Any) -> str | None:
    """The name of a function that is impure by itself, such as ``print`` or ``time.time``; None for any other value."""
    if type(value) is BuiltinFunctionType:
        receiver = value.__self__
        if any(receiver is shared for shared in _SHARED):
            return f"{'random' if receiver is random._inst else 'numpy.random'}.{value.__name__}"
        if any(value is function for function in BUILTINS.values()):
            return value.__name__
        if receiver is time:
            return f"time.{value.__name__}"
        if receiver is sys.modules.get("posix") and value.__name__ in _SOME["os"]:
            return f"os.{value.__name__}"
    elif type(value) is MethodType and any(value.__self__ is shared for shared in _SHARED):
        package = "random" if value.__self__ is random._inst else "numpy.random"
        return f"{package}.{value.__func__.__name__}"
    return None
