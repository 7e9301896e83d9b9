"""Torch's record of symbolic sizes. In: nothing; out: a `ShapeEnv` that keeps no stack traces."""

from __future__ import annotations

from typing import Any

import sympy
from torch._guards import SLoc
from torch.fx.experimental.symbolic_shapes import ShapeEnv

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
