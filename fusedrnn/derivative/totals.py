"""Gradients of what is known before the loop: sums over all steps. In: a `Joint`; out: what the loop has to emit for them, what it adds up
itself, and functions of what it emitted.

The sum over the steps of a linear function is the function of the sum. Products over the rows of one step, summed over the steps, are one
product over the rows of all steps: so a weight's gradient is one product behind the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from ..capture import ops
from ..capture.sizes import expression
from ..optimise.graph import TRANSPARENT, aten, value
from .joint import Joint
from .kept import hint
from .steps import AllSteps, is_size

Total = Callable[[AllSteps], torch.Tensor]

PRODUCTS = (aten.mm.default, aten.addmm.default)
# Linear in their first operand; the others are known.
_LINEAR = {
    *TRANSPARENT, aten.t.default, aten.transpose.int, aten.permute.default, aten.neg.default, aten.mul.Tensor, aten.mul.Scalar,
    aten.div.Tensor, aten.slice_backward.default, aten.select_backward.default, aten._to_copy.default, aten.expand.default,
}  # fmt: skip


@dataclass
class Totals:
    """Sums over the steps.

    Attributes:
        of: of each gradient the function that makes its sum.
        operands: what the functions read of every step: nodes of the joint graph.
        added: what the loop has to add up for them: nodes of the joint graph.
        lines: for `explain`.
    """

    of: dict[Node, Total] = field(default_factory=dict)
    operands: set[Node] = field(default_factory=set)
    added: list[Node] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


class Summing:
    """Finds the sums."""

    def __init__(self, joint: Joint, batch: Any) -> None:
        self.joint, self.batch = joint, batch
        self.found = Totals()

    def totals(self, gradients: Iterable[Node]) -> Totals:
        """Of these gradients."""
        for gradient in dict.fromkeys(gradients):
            self.found.of[gradient] = self.total(gradient)
        return self.found

    def total(self, node: Node) -> Total:
        """Of what depends on the gradients that come in, linearly as all that does."""
        rule = _RULES.get(node.target)
        made = None if rule is None else rule(self, node)
        if made is not None:
            return made
        args: Any = node.args
        if node.target in _LINEAR and args[0] in self.joint.backward and self.is_constant([*args[1:], *node.kwargs.values()]):
            target: Any = node.target
            inner, rest, kwargs = self.total(args[0]), args[1:], dict(node.kwargs)
            return lambda steps: target(inner(steps), *[steps.constant(part) for part in rest], **kwargs)
        if node not in self.found.added:
            self.found.added.append(node)
        return lambda steps: steps.sum(node)

    def is_constant(self, parts: Any) -> bool:
        """Whether operands are the same at every step."""
        waiting = list(parts)
        while waiting:
            part = waiting.pop()
            if isinstance(part, (list, tuple)):
                waiting += part
            elif isinstance(part, Node) and (part.args[0] if is_size(part) else part) not in self.joint.known:
                return False
        return True

    def by_rows(self, node: Any) -> bool:
        """Whether a value of a step has the batch first."""
        made = value(node)
        if not isinstance(node, Node) or not isinstance(made, torch.Tensor) or not made.ndim:
            return False
        size = made.shape[0]
        return bool(expression(size) == self.batch)

    def read(self, *nodes: Any) -> None:
        """A function of these is made behind the loop."""
        self.found.operands.update(nodes)


def _of_sum(summing: Summing, node: Node) -> Total | None:
    args: Any = node.args
    one, other = args
    if node.kwargs or not all(part in summing.joint.backward and value(part).shape == value(node).shape for part in (one, other)):
        return None
    first, second = summing.total(one), summing.total(other)
    return lambda steps: first(steps) + second(steps)


def _of_product(summing: Summing, node: Node) -> Total | None:
    args: Any = node.args
    left, right = args
    fed = node in summing.joint.fed
    turned = _turned(left)
    if isinstance(turned, Node) and value(left).ndim == 2 and summing.by_rows(turned) and summing.by_rows(right):
        summing.read(turned, right)
        summing.found.lines.append(f"a product {[*value(node).shape]} over the rows of all steps")
        return lambda steps: steps.rows(turned, fed).flatten(1).t() @ steps.rows(right, fed)
    if right in summing.joint.known and left in summing.joint.backward:
        inner = summing.total(left)
        return lambda steps: inner(steps) @ steps.constant(right)
    return None


def _turned(node: Node) -> Any:
    """What a node is the transpose of, that flattened behind its first dimension: of a single row a view is; None of any other node."""
    if node.target in (aten.t.default, aten.permute.default, aten.transpose.int):
        return node.args[0]
    if node.op != "call_function" or node.target not in TRANSPARENT or value(node).ndim != 2:
        return None
    one: Any = node.args[0]
    is_row = value(node).shape[1] == 1 and value(one).ndim >= 2 and value(one).shape[0] == 1
    return one if is_row else None


def _of_products_of_rows(summing: Summing, node: Node) -> Total | None:
    """A product of each row's own: over the steps it is one with a longer inner dimension."""
    args: Any = node.args
    left, right = args
    if not (summing.by_rows(left) and summing.by_rows(right)):
        return None
    rows, inner, columns = map(hint, (value(left).shape[1], value(left).shape[2], value(right).shape[2]))
    if inner * (rows + columns) > rows * columns:
        return None  # the sum is smaller than what it is made of
    summing.read(left, right)
    fed = node in summing.joint.fed
    return lambda steps: torch.bmm(
        steps.masked(left, fed).permute(1, 2, 0, 3).flatten(2),
        steps.masked(right, fed).permute(1, 0, 2, 3).flatten(1, 2),
    )


def _of_row_sum(summing: Summing, node: Node) -> Total | None:
    args: Any = node.args
    operand, dims, keepdim = args if len(args) == 3 else (*args, False)
    rank = value(operand).ndim
    dims = [dim % rank for dim in dims or range(rank)]
    if 0 not in dims or not summing.by_rows(operand):
        return None
    summing.read(operand)
    kwargs: Any = node.kwargs
    fed = node in summing.joint.fed
    return lambda steps: torch.sum(steps.rows(operand, fed), dims, keepdim, **kwargs)


def _of_read(summing: Summing, node: Node) -> Total | None:
    args: Any = node.args
    gradient, x, index, dim = args
    summing.read(gradient, index)
    fed = node in summing.joint.fed

    def total(steps: AllSteps) -> torch.Tensor:
        source, places = steps.constant(x), steps.all(index)
        size = source.shape[dim]
        places = torch.where(places < 0, places + size, places).clamp(0, max(size - 1, 0)).long()
        made = steps.masked(gradient, fed).movedim(0, dim)
        places = places.to(made.device)
        if size == len(places) and places.device.type == "cpu" and torch.equal(places, torch.arange(size - 1, -1, -1)):
            return made.flip(dim)
        return torch.zeros_like(source, dtype=made.dtype).index_add(dim, places, made) if size else torch.zeros_like(source)

    return total


def _of_look_up(summing: Summing, node: Node) -> Total | None:
    args: Any = node.args
    gradient, indices, *rest = args
    if not summing.by_rows(gradient) or not summing.by_rows(indices) or not summing.is_constant(rest):
        return None
    summing.read(gradient, indices)
    put: Any = aten.embedding_dense_backward
    fed = node in summing.joint.fed
    return lambda steps: put(steps.rows(gradient, fed), steps.rows(indices), *[steps.constant(part) for part in rest])


def _of_put(summing: Summing, node: Node) -> Total | None:
    """Gradients of an index over what is known: the rows of all steps put into the same zeros."""
    args: Any = node.args
    into, indices, values, *accumulate = args
    if accumulate != [True] or into.target not in _ZEROS or not summing.by_rows(values):
        return None
    if not all(index is not None and summing.by_rows(index) and value(index).dtype != torch.bool for index in indices):
        return None
    if any(value(index).ndim != value(indices[0]).ndim for index in indices):
        return None
    like = next((known for known in summing.joint.known if value(known).shape == value(into).shape), None)
    if like is None:
        return None
    summing.read(values, *indices)
    fed = node in summing.joint.fed

    def total(steps: AllSteps) -> torch.Tensor:
        rows = steps.rows(values, fed)
        made = torch.zeros_like(steps.constant(like), dtype=rows.dtype)
        return made.index_put([steps.rows(index) for index in indices], rows, accumulate=True)

    return total


def _of_first(summing: Summing, node: Node) -> Total | None:
    """What is taken at the first step only: ``where(time == 1, x, 0)``."""
    args: Any = node.args
    test, made, other = args
    if test.target is not aten.eq.Scalar or test.args[1] != 1 or not summing.by_rows(made) or not _is_zero(other):
        return None
    source = summing.joint.sources.get(test.args[0])
    if source is None or source.kind != "time":
        return None
    summing.read(made)
    return lambda steps: steps.at_first(made)


def _is_zero(node: Node) -> bool:
    args: Any = node.args
    if node.target is aten.full.default:
        return bool(args[1] == 0)
    return node.target is aten.scalar_tensor.default and bool(args[0] == 0)


_ZEROS = (aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default, aten.full.default)
_RULES: dict[Any, Callable[[Summing, Node], Total | None]] = {
    aten.add.Tensor: _of_sum,
    aten.mm.default: _of_product,
    aten.bmm.default: _of_products_of_rows,
    aten.sum.dim_IntList: _of_row_sum,
    ops.unread: _of_read,
    aten.embedding_dense_backward.default: _of_look_up,
    aten.index_put.default: _of_put,
    aten._unsafe_index_put.default: _of_put,
    aten.where.self: _of_first,
}
