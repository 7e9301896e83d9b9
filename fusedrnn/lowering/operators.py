"""The rules for all operators of a step graph. In: a node and its operands as `Value`s; out: its value in C++."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from . import lookups, matrices, order, pointwise, reductions, views  # noqa: F401  # each registers its rules
from .elementwise import elementwise
from .rule import ONE_PASS, RULES, Lowering, Unlowered, row_shape, rule, size_text
from .values import Value

__all__ = ["ONE_PASS", "RULES", "Lowering", "Unlowered", "is_lowered", "lower", "row_shape", "size_text"]


def is_lowered(node: Node) -> bool:
    """Whether there is a rule for what a node calls."""
    return node.op != "call_function" or node.target in RULES or node.target in pointwise.TABLE or not _makes_tensor(node)


def _makes_tensor(node: Node) -> bool:
    made = node.meta.get("val")
    return isinstance(made, (torch.Tensor, tuple, list))


def lower(lowering: Lowering) -> Value:
    """The value of a node."""
    target = lowering.node.target
    return RULES[target](lowering) if target in RULES else elementwise(lowering)


@rule(operator.getitem)
def _getitem(self: Lowering) -> Value:
    source, place = self.node.args
    pair: Any = self.operand(source)
    return pair[place]  # type: ignore[no-any-return]
