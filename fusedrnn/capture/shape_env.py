"""Torch's record of symbolic sizes. In: nothing; out: a `ShapeEnv` that keeps no stack traces."""

from __future__ import annotations

from typing import Any

import sympy
from torch._guards import GuardSource, SLoc
from torch._guards import Source as TorchSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from . import refusal


class SilentShapeEnv(ShapeEnv):
    """Its symbols and guards do not note where they were made: to tell torch's own frames from the user's, for messages that no one sees,
    torch would import its exporter, which takes half a second.

    Attributes:
        fixed: the numbers that symbols became, each with the first line of the user's code that made one of it.
    """

    def __init__(self, **settings: Any) -> None:
        self.fixed: dict[int, str] = {}
        super().__init__(**settings)

    def _set_replacement(self, a: sympy.Symbol, tgt: sympy.Expr, msg: str) -> None:
        where = refusal.here() if tgt.is_Integer else None
        if where is not None:
            self.fixed.setdefault(int(tgt), where)
        super()._set_replacement(a, tgt, msg)

    def _get_stack_summary(self, is_debug: bool = False, framework_loc: Any = None) -> tuple[SLoc, str]:
        return SLoc(framework_loc, None), ""


def free_size(shape_env: ShapeEnv, name: str, size: int) -> Any:
    """A size as a symbol of its own, or itself where torch fixes it (0 and 1)."""
    source: Any = _Named(name)
    symbol = shape_env.create_symbol(size, source, dynamic_dim=DimDynamic.DYNAMIC)
    return shape_env.create_symintnode(symbol, hint=size, source=source)


class _Named(TorchSource):
    """What a size comes from, in torch's messages. Torch's own classes for it would import its compiler, which takes a second."""

    guard_source = GuardSource.CONSTANT

    def __init__(self, text: str) -> None:
        self.__dict__["name"] = _Text(text)


class _Text(str):
    """The name of a source: a property of it or, in older releases of torch, a method."""

    __slots__ = ()

    def __call__(self) -> str:
        return self
