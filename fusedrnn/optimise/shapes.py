"""Sizes and layouts in rewrites. In: sizes that may be symbols; out: the same as nodes, compared without a guard, kept true."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import Graph, Node

from ..capture.sizes import expression
from .graph import aten, call, fake_mode, placeholders, replace, value

Rule = Callable[[Node], Any]  # what stands for the node from now on, or None where the rule does not apply

VIEWS = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}
# What reads the layout of its input in memory, so that no other layout may come into it.
LAYOUT_READERS = {aten.as_strided.default, aten.view.dtype, aten.view_as_real.default, aten.view_as_complex.default}


class UnknownSizeError(LookupError):
    """A size that no node at hand tells."""


def static(size: Any) -> int | None:
    """The size as a number, None where it is a symbol. Of an argument too, which may be a node."""
    size = value(size)
    if size is None:
        return None
    found = expression(size)
    return int(found) if found.is_number else None


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal."""
    return len(one) == len(other) and all(expression(a) == expression(b) for a, b in zip(one, other, strict=True))


def shape(node: Node) -> tuple[Any, ...]:
    return tuple(value(node).shape)


def size(graph: Graph, length: Any, near: Iterable[Node] = ()) -> int | Node:
    """A size as an argument: a number, or a node that makes it of a tensor's sizes.

    Args:
        near: nodes before the insertion point that may have the size.

    Raises:
        UnknownSizeError: neither they nor the placeholders have it, nor what it is a sum or product of.
    """
    number = static(length)
    if number is not None:
        return number
    wanted = expression(length)
    near = list(near)
    for node in near:
        made = node.meta.get("val")
        if isinstance(made, torch.SymInt) and expression(made) == wanted:
            return node
    for node in [*placeholders(graph), *near]:  # first those that are there anyway
        made = node.meta.get("val")
        for dim, other in enumerate(made.shape if isinstance(made, torch.Tensor) else ()):
            if expression(other) == wanted:
                return call(graph, aten.sym_size.int, node, dim)
    combine = operator.mul if wanted.is_Mul else operator.add if wanted.is_Add else None
    if combine is None:
        raise UnknownSizeError(str(wanted))
    parts = [int(part) if part.is_number else length.node.shape_env.create_symintnode(part, hint=None) for part in wanted.args]
    result = size(graph, parts[0], near)
    for part in parts[1:]:
        result = call(graph, combine, result, size(graph, part, near))
    return result


def sizes(graph: Graph, lengths: Iterable[Any], near: Iterable[Node] = ()) -> list[int | Node]:
    return [size(graph, length, near) for length in lengths]


def product(graph: Graph, lengths: Sequence[Any], near: Iterable[Node] = ()) -> int | Node:
    """The product of sizes as an argument."""
    result: int | Node = math.prod(number for length in lengths if (number := static(length)) is not None)
    for length in lengths:
        if static(length) is None:
            factor = size(graph, length, near)
            result = factor if result == 1 else call(graph, operator.mul, result, factor)
    return result


def viewed(graph: Graph, x: Node, lengths: Sequence[int | Node], like: Node) -> Node:
    """The elements of x in another shape; a view where its layout allows one."""
    known = [value(length) for length in lengths]
    if same(shape(x), known):
        return x
    try:
        with fake_mode(graph):
            value(x).view(known)
    except (RuntimeError, ValueError):
        return call(graph, aten.reshape.default, x, list(lengths), like=like)
    return call(graph, aten.reshape.default if _is_expanded(value(x)) else aten.view.default, x, list(lengths), like=like)


def _is_expanded(made: torch.Tensor) -> bool:
    """Whether elements stand for several: a tensor without data may then allow a view that a real one refuses (torch 2.13)."""
    return any(static(stride) == 0 and static(size) != 1 for stride, size in zip(made.stride(), made.shape, strict=True))


def flattened(graph: Graph, x: Node, like: Node) -> Node:
    """``[..., K]`` as ``[M, K]``."""
    *leading, last = shape(x)
    near = [x, *like.all_input_nodes]
    return viewed(graph, x, [product(graph, leading, near), size(graph, last, near)], like)


def transposed(graph: Graph, x: Node, like: Node) -> Node:
    """The transpose of a matrix: of a transpose what it was made of."""
    if x.target is not aten.t.default:
        return call(graph, aten.t.default, x, like=like)
    source: Node = x.args[0]  # type: ignore[assignment]
    return source


def filled(node: Node, constant: Any) -> Node:
    """A constant in the place of a node."""
    made = value(node)
    lengths = sizes(node.graph, made.shape, node.all_input_nodes)
    return call(node.graph, aten.full.default, lengths, constant, dtype=made.dtype, device=made.device, pin_memory=False, like=node)


def matched(node: Node, by: Any) -> Node:
    """``by`` with the dtype, device and shape of the node that it shall replace: a number or a tensor that broadcasts."""
    if not isinstance(by, Node):
        return filled(node, by)
    result, graph, wanted, made = by, node.graph, value(node), value(by)
    changes: dict[str, Any] = {}
    if made.dtype != wanted.dtype:
        changes["dtype"] = wanted.dtype
    if made.device != wanted.device:
        changes["device"] = wanted.device
    if changes:
        result = call(graph, aten._to_copy.default, result, **changes, like=node)
    if not same(made.shape, wanted.shape):
        result = call(graph, aten.expand.default, result, sizes(graph, wanted.shape, node.all_input_nodes), like=node)
    return result


def substitute(node: Node, by: Node) -> None:
    """`replace`, where the layouts may differ: what follows learns the new one, and a view that it does not allow becomes a reshape."""
    same_layout = _same_layout(value(node), value(by))
    replace(node, by)
    if not same_layout:
        _relay(by)


def _same_layout(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return True
    return same(one.stride(), other.stride())


def _relay(changed: Node) -> None:
    graph = changed.graph
    moved = {changed}
    behind = False
    for node in list(graph.nodes):
        behind = behind or node is changed
        if node.op != "call_function" or not behind or not moved.intersection(node.all_input_nodes):
            continue
        before, node.meta["val"] = node.meta["val"], _made(node)
        leaves = zip(pytree.tree_leaves(before), pytree.tree_leaves(node.meta["val"]), strict=True)
        if not all(_same_layout(one, other) for one, other in leaves):
            moved.add(node)


def _made(node: Node) -> Any:
    arguments, keywords = pytree.tree_map_only(Node, value, (node.args, node.kwargs))
    if node.target in VIEWS and _is_expanded(arguments[0]):
        node.target = aten.reshape.default
    with fake_mode(node.graph):
        try:
            return node.target(*arguments, **keywords)  # type: ignore[operator]
        except (RuntimeError, ValueError):
            if node.target not in VIEWS:
                return value(node)  # some operators of torch refuse symbols; what they make has the sizes that it had
            node.target = aten.reshape.default
            return node.target(*arguments, **keywords)


def rewrite(graph: Graph, rules: Mapping[Any, Sequence[Rule]]) -> int:
    """Apply rules, by the operator they look at, until none applies; how many nodes were replaced."""
    total = 0
    while changes := _sweep(graph, rules):
        total += changes
    return total


def _sweep(graph: Graph, rules: Mapping[Any, Sequence[Rule]]) -> int:
    changes = 0
    keeps_layout = any(node.target in LAYOUT_READERS for node in graph.nodes)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.users:
            by = _first(rules.get(node.target, ()), node, keeps_layout)
            if by is not None:
                substitute(node, by)
                changes += 1
    return changes


def _first(rules: Sequence[Rule], node: Node, keeps_layout: bool) -> Node | None:
    """The first replacement that a rule makes; what a rule that gives up has made is taken back."""
    graph, last = node.graph, node.prev
    for rule in rules:
        try:
            with graph.inserting_before(node):
                by: Node | None = rule(node)
        except UnknownSizeError:
            by = None
        if by is not None and not (keeps_layout and not _same_layout(value(node), value(by))):
            return by
        while node.prev is not last:
            graph.erase_node(node.prev)
    return None


def argument(node: Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of a node, however it was passed."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
