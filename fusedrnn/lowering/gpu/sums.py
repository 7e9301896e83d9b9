"""Products that no tile holds: element by element. In: a product of what a step makes; out: a loop over what is summed.

What is multiplied with a weight that is known before the loop is a tile instead (`schedule`).
"""

from __future__ import annotations

from typing import Any

import sympy

from ...optimise.graph import aten, value
from . import types
from .rule import Lowering, Unlowered, of_torch, rule


@rule(aten.mm.default, aten.bmm.default)
def _product(self: Lowering) -> str:
    left, right = self.node.args
    *batch, m, n = of_torch(self)
    dtype = self.dtype

    def update(count: Any, so_far: str) -> str:
        return f"{so_far} + {_element(self, left, [*batch, m, count])} * {_element(self, right, [*batch, count, n])}"

    size = self.writer.extent(left, value(left).ndim - 1)
    if size == 1:
        first = sympy.Integer(0)
        return f"({_element(self, left, [*batch, m, first])} * {_element(self, right, [*batch, first, n])})"
    zero = "0.0" if dtype.is_floating_point else "0"
    return self.writer.accumulate(size, types.carried_in(dtype), zero, self.columns, update)


def _element(self: Lowering, node: Any, index: list[Any]) -> str:
    rows = self.writer.rows(node)
    found = [place for dim, place in enumerate(index) if not (rows is not None and rows.inner == 1 and dim == rows.dim)]
    if None in found:
        raise Unlowered(self.node, "a product over rows")
    return self.at(node, found)
