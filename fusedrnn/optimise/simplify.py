"""A step in fewer nodes. In: a step graph as it was captured; out: the same graph without what does nothing or is there twice.

Rules work on values: a result may lie in memory in another order than before. With ``differentiable`` a pass keeps what a gradient sees.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.fx import Graph, Node

from ..capture import ops
from ..capture.sizes import expression
from .graph import aten, call, replace, value
from .shapes import VIEWS, Rule, argument, filled, matched, rewrite, same, shape, sizes, static, viewed

_CONVERSIONS = (aten._to_copy.default, torch.ops.prims.convert_element_type.default, aten.to.dtype)
_COPIES = (
    aten.alias.default, aten.clone.default, aten.contiguous.default, aten.lift_fresh.default, aten.lift_fresh_copy.default,
)  # fmt: skip
_PERMUTATIONS = (aten.permute.default, aten.t.default, aten.transpose.int)
_SQUEEZES = (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
_RESHAPES = {*VIEWS, *_SQUEEZES, aten.unsqueeze.default}


def simplify(graph: Graph, *, differentiable: bool = False) -> int:
    """All passes of this module except `assume_none_finished`, until none finds anything; how many changes they made.

    Args:
        differentiable: the graph will be differentiated: what stops or cleans gradients stays.
    """
    total = 0
    while changes := _simplify_once(graph, differentiable):
        total += changes
    return total


def _simplify_once(graph: Graph, differentiable: bool) -> int:
    changes = slices_of_splits(graph) + choices_of_masks(graph)
    changes += drop_no_ops(graph, differentiable=differentiable) + fold_constants(graph)
    return changes + share(graph, differentiable=differentiable) + dead_code(graph)


def dead_code(graph: Graph) -> int:
    """Drop the nodes that nothing uses. Placeholders stay."""
    before = len(graph.nodes)
    graph.eliminate_dead_code()
    return before - len(graph.nodes)


# What does nothing.


def drop_no_ops(graph: Graph, *, differentiable: bool = False) -> int:
    """Drop copies, conversions, slices, views and permutations that change no value, and put permutations and slices in one form."""
    return rewrite(graph, _NO_OPS if differentiable else {**_NO_OPS, aten.detach.default: [_operand]})


def _operand(node: Node) -> Node:
    return node.args[0]  # type: ignore[return-value]


def _conversion(node: Node) -> Node | None:
    before, after = value(_operand(node)), value(node)
    return _operand(node) if before.dtype == after.dtype and before.device == after.device else None


def _same_shape(node: Node) -> Node | None:
    return _operand(node) if same(shape(_operand(node)), shape(node)) else None


def _reshape_of_reshape(node: Node) -> Node | None:
    source = _operand(node)
    while source.target in _RESHAPES:
        source = _operand(source)
        if same(shape(source), shape(node)):
            return source
    if source is _operand(node) or node.target not in VIEWS:
        return None
    return viewed(node.graph, source, sizes(node.graph, shape(node), [source, *node.all_input_nodes]), node)


def _order(node: Node) -> list[int] | None:
    """The order of dimensions that a permutation makes, None of any other node."""
    if node.target not in _PERMUTATIONS:
        return None
    rank = len(shape(node))
    order = list(range(rank))
    if node.target is aten.permute.default:
        dims: Any = node.args[1]
        return [dim % rank for dim in dims]
    if rank:
        one, other = node.args[1:3] if node.target is aten.transpose.int else (0, rank - 1)
        order[one], order[other] = order[other], order[one]  # type: ignore[index]
    return order


def _permutation(node: Node) -> Node | None:
    order, source, graph = _order(node), _operand(node), node.graph
    assert order is not None
    inner = _order(source)
    if inner is not None:
        order, source = [inner[dim] for dim in order], _operand(source)
    long = [dim for dim in order if static(shape(source)[dim]) != 1]
    if order == sorted(order):
        return source
    if long == sorted(long):  # only dimensions of size 1 move
        return viewed(graph, source, sizes(graph, [shape(source)[dim] for dim in order], [source]), node)
    if order == [1, 0]:
        return None if node.target is aten.t.default and inner is None else call(graph, aten.t.default, source, like=node)
    if inner is None and node.target is aten.permute.default:
        return None
    return call(graph, aten.permute.default, source, order, like=node)


def _select_of_unsqueeze(node: Node) -> Node | None:
    inner = _operand(node)
    if inner.target is not aten.unsqueeze.default:
        return None
    rank = len(shape(inner))
    return _operand(inner) if node.args[1] % rank == inner.args[1] % rank else None  # type: ignore[operator]


def _any_of_one(node: Node) -> Node | None:
    source = value(_operand(node))
    return _operand(node) if source.ndim == 0 and source.dtype == torch.bool and value(node).ndim == 0 else None


def _not_of_not(node: Node) -> Node | None:
    inner = _operand(node)
    is_not = inner.target in (aten.bitwise_not.default, aten.logical_not.default)
    return _operand(inner) if is_not and value(_operand(inner)).dtype == torch.bool else None


def _slice(node: Node) -> Node | None:
    """A slice of all, of a slice, of a concatenation; any other with numbers as they count from the front."""
    source, graph = _operand(node), node.graph
    dim = argument(node, 1, "dim", 0) % len(shape(source))
    start, stop, step = argument(node, 2, "start"), argument(node, 3, "end"), argument(node, 4, "step", 1)
    whole = shape(source)[dim]
    if start in (None, 0) and step == 1 and same([whole], [shape(node)[dim]]):
        return source
    length = static(whole)
    if length is None or any(bound is not None and static(bound) is None for bound in (start, stop, step)):
        return None
    begin, end, step = slice(static(start), static(stop), static(step)).indices(length)
    end = max(begin, end)
    if step == 1 and source.target is aten.slice.Tensor and _begins(source, dim) is not None:
        begin, end, source = begin + _begins(source, dim), end + _begins(source, dim), _operand(source)  # type: ignore[operator]
    elif step == 1 and source.target is aten.cat.default and (parts := _parts(source, dim, begin, end)):
        return parts[0] if len(parts) == 1 else call(graph, aten.cat.default, parts, dim, like=node)
    elif list(node.args) == [source, dim, begin, end, step][: len(node.args)] and len(node.args) == (4 if step == 1 else 5):
        return None
    return call(graph, aten.slice.Tensor, source, dim, begin, end, *([] if step == 1 else [step]), like=node)


def _begins(node: Node, dim: int) -> int | None:
    """Where a slice along a dimension begins, if it takes every element from there and the numbers are known."""
    mine = argument(node, 1, "dim", 0) % len(shape(node))
    start, length = argument(node, 2, "start", 0), static(shape(_operand(node))[mine])
    if mine != dim or argument(node, 4, "step", 1) != 1 or length is None or isinstance(start, Node):
        return None
    return slice(start, None).indices(length)[0]


def _parts(node: Node, dim: int, begin: int, end: int) -> list[Node]:
    """The whole operands that are elements ``begin`` to ``end`` of a concatenation, none if these cut one."""
    operands: Sequence[Node] = node.args[0]  # type: ignore[assignment]
    if argument(node, 1, "dim", 0) % len(shape(node)) != dim or any(len(shape(part)) != len(shape(node)) for part in operands):
        return []
    lengths = [static(shape(part)[dim]) for part in operands]
    if None in lengths or value(node).dtype != value(operands[0]).dtype or len({value(part).dtype for part in operands}) > 1:
        return []
    bounds = [sum(lengths[:place]) for place in range(len(lengths) + 1)]  # type: ignore[arg-type]
    if begin not in bounds or end not in bounds or begin >= end:
        return []
    return [part for part, low, high in zip(operands, bounds, bounds[1:], strict=False) if begin <= low and high <= end and low < high]


_NO_OPS: dict[Any, Sequence[Rule]] = {
    **{target: [_operand] for target in _COPIES},
    **{target: [_conversion] for target in _CONVERSIONS},
    **{target: [_same_shape, _reshape_of_reshape] for target in _RESHAPES},
    **{target: [_permutation] for target in _PERMUTATIONS},
    aten.expand.default: [_same_shape],
    aten.slice.Tensor: [_slice],
    aten.select.int: [_select_of_unsqueeze],
    **{target: [_any_of_one] for name in ("any", "all") for target in (getattr(aten, name).default, getattr(aten, name).dim)},
    aten.bitwise_not.default: [_not_of_not],
    aten.logical_not.default: [_not_of_not],
}


# Splits.


def slices_of_splits(graph: Graph) -> int:
    """Make the pieces of splits slices, those of unbind selections. Pieces whose sizes are symbols stay."""
    return rewrite(graph, {operator.getitem: [_piece]})


_SPLITS = (
    aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default, aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default, aten.unsafe_chunk.default, aten.tensor_split.sections, aten.tensor_split.indices,
)  # fmt: skip


def _piece(node: Node) -> Node | None:
    split, place = node.args
    if not isinstance(split, Node) or not isinstance(place, int):
        return None
    if split.target is aten.unbind.int:
        dim = argument(split, 1, "dim", 0) % len(shape(_operand(split)))
        return call(node.graph, aten.select.int, _operand(split), dim, place % len(value(split)), like=split)
    if split.target not in _SPLITS:
        return None
    dim = argument(split, 2, "dim", 0) % len(shape(node))
    lengths = [static(piece.shape[dim]) for piece in value(split)]
    if None in lengths:
        return None
    place %= len(lengths)
    begin = sum(lengths[:place])  # type: ignore[arg-type]
    return call(node.graph, aten.slice.Tensor, _operand(split), dim, begin, begin + lengths[place], like=split)  # type: ignore[operator]


def choices_of_masks(graph: Graph) -> int:
    """Make ``x[mask] = value`` a where. With a value for each place in the mask it stays: how many those are, only the mask tells."""
    return rewrite(graph, {aten.index_put.default: [_choice]})


def _choice(node: Node) -> Node | None:
    x, indices, new = node.args[:3]
    given: list[tuple[int, Node]] = [(place, index) for place, index in enumerate(indices) if index is not None]  # type: ignore[arg-type]
    place, mask = given[0]
    if len(given) != 1 or value(mask).dtype != torch.bool:
        return None
    graph, masked = node.graph, len(shape(mask))
    behind = len(shape(node)) - place - masked
    result: Any = new
    before = len(shape(result)) - behind - 1  # what is written has one dimension for all that the mask covers
    if before >= 0:
        if static(shape(result)[before]) != 1:
            return None
        for _ in range(masked - 1):
            result = call(graph, aten.unsqueeze.default, result, before, like=node)
        if not masked:
            result = call(graph, aten.squeeze.dim, result, before, like=node)
    if value(result).dtype != value(node).dtype:
        result = call(graph, aten._to_copy.default, result, dtype=value(node).dtype, like=node)
    if argument(node, 3, "accumulate", False):
        result = call(graph, aten.add.Tensor, x, result, like=node)
    for _ in range(behind):
        mask = call(graph, aten.unsqueeze.default, mask, -1, like=node)
    return call(graph, aten.where.self, mask, result, x, like=node)


# Constants.

Known = dict[Node, torch.Tensor]

_FILLS: dict[Any, Callable[[Node], Any]] = {
    **{getattr(aten, name).default: lambda node: 0 for name in ("zeros", "zeros_like", "new_zeros")},
    **{getattr(aten, name).default: lambda node: 1 for name in ("ones", "ones_like", "new_ones")},
    **{getattr(aten, name).default: lambda node: argument(node, 1, "fill_value") for name in ("full", "full_like")},
    aten.new_full.default: lambda node: argument(node, 2, "fill_value"),
    aten.scalar_tensor.default: lambda node: node.args[0],
}
_KEEPS_ELEMENTS = {
    *_COPIES, *_CONVERSIONS, *_PERMUTATIONS, *_RESHAPES, aten.detach.default, aten.expand.default, aten.slice.Tensor, aten.select.int,
}  # fmt: skip


def constants(graph: Graph) -> Known:
    """The nodes all of whose elements are one number, known now: that number with the node's dtype and rank, on the CPU."""
    known: Known = {}
    for node in graph.nodes:
        if not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        found = _constant(node, known)
        if found is not None:
            made = value(node)
            known[node] = found.reshape([1] * made.ndim).to(made.dtype)
    return known


def _constant(node: Node, known: Known) -> torch.Tensor | None:
    if node.op == "get_attr":
        return _held(node)
    if node.op != "call_function":
        return None
    if node.target in _FILLS:
        number = _FILLS[node.target](node)
        return None if isinstance(number, Node) else torch.tensor(number, dtype=value(node).dtype)
    operands = node.all_input_nodes
    if node.target in _KEEPS_ELEMENTS:
        return known.get(_operand(node))
    if not operands or not all(operand in known for operand in operands):
        return None
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        arguments, keywords = pytree.tree_map_only(Node, known.__getitem__, (node.args, node.kwargs))
        return node.target(*arguments, **keywords)  # type: ignore[no-any-return, operator]
    reductions: dict[Any, bool] = {aten.any.default: False, aten.any.dim: False, aten.all.default: True, aten.all.dim: True}
    empty_is = reductions.get(node.target)
    truth = bool(known[operands[0]])
    return torch.tensor(truth) if empty_is is truth else None  # of no elements it is that as well


def _held(node: Node) -> torch.Tensor | None:
    data = _data(node)
    if data is None or not data.numel() or data.numel() > 1 << 16:
        return None
    first = data.detach().reshape(-1)[:1].cpu()
    return first if bool((data.detach() == first.to(data.device)).all()) else None


def _data(node: Node) -> torch.Tensor | None:
    """The tensor that the graph holds under a name."""
    owner: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        owner = getattr(owner, name, None)
    return owner if isinstance(owner, torch.Tensor) and type(owner) in (torch.Tensor, torch.nn.Parameter) else None


def fold_constants(graph: Graph) -> int:
    """Use that flags and numbers are constant: and, or, not, where, masks, plus 0, times 1."""
    total = 0
    while changes := _fold_known(graph, constants(graph)):
        total += changes
    return total


def _fold_known(graph: Graph, known: Known) -> int:
    def knowing(rule: Callable[[Node, Known], Any]) -> list[Rule]:
        return [lambda node: rule(node, known)]

    return rewrite(graph, {target: knowing(rule) for target, rule in _FOLDS.items()})


def _number(argument: Any, known: Known) -> Any:
    """The number that an argument is everywhere, None where it is not known."""
    if isinstance(argument, Node):
        return known[argument].item() if argument in known else None
    return argument if isinstance(argument, (bool, int, float)) else None


def _either_way(node: Node, known: Known) -> list[tuple[Any, Any]]:
    """The known numbers among two operands, each with the other operand."""
    a, b = node.args[:2]
    return [(number, other) for one, other in ((a, b), (b, a)) if (number := _number(one, known)) is not None]


def _or(node: Node, known: Known) -> Node | None:
    for number, other in _either_way(node, known):
        if not number:
            return matched(node, other)
        if value(node).dtype == torch.bool:
            return filled(node, True)
    return None


def _and(node: Node, known: Known) -> Node | None:
    for number, other in _either_way(node, known):
        if not number:
            return filled(node, value(node).dtype == torch.bool and False)
        if value(node).dtype == torch.bool:
            return matched(node, other)
    return None


def _xor(node: Node, known: Known) -> Node | None:
    return next((matched(node, other) for number, other in _either_way(node, known) if not number), None)


def _where(node: Node, known: Known) -> Node | None:
    condition, one, other = node.args
    truth = _number(condition, known)
    if truth is None:
        return matched(node, one) if one is other else None
    return matched(node, one if truth else other)


def _masked(node: Node, known: Known) -> Node | None:
    x, mask, by = node.args
    truth = _number(mask, known)
    return None if truth is None else matched(node, by if truth else x)


def _of_finished_rows(node: Node, known: Known) -> Node | None:
    return _operand(node) if _number(node.args[1], known) is False else None


def _neutral(node: Node, other: Any) -> Node | None:
    return matched(node, other) if isinstance(other, Node) and value(other).dtype == value(node).dtype else None


def _add(node: Node, known: Known) -> Node | None:
    scale = argument(node, 2, "alpha", 1)
    for (number, other), swapped in zip(_either_way(node, known), (False, True), strict=False):
        if number == 0 and (other is node.args[0] or (scale == 1 and not swapped)):
            return _neutral(node, other)
    return None


def _sub(node: Node, known: Known) -> Node | None:
    return _neutral(node, node.args[0]) if _number(node.args[1], known) == 0 else None


def _mul(node: Node, known: Known) -> Node | None:
    return next((_neutral(node, other) for number, other in _either_way(node, known) if number == 1), None)


def _div(node: Node, known: Known) -> Node | None:
    return _neutral(node, node.args[0]) if _number(node.args[1], known) == 1 else None


def _overloads(rule: Callable[[Node, Known], Any], *names: str) -> dict[Any, Callable[[Node, Known], Any]]:
    packets = [getattr(aten, name) for name in names]
    return {
        getattr(packet, overload): rule
        for packet in packets
        for overload in ("default", "self", "Tensor", "Scalar", "Scalar_Tensor", "ScalarSelf", "ScalarOther")
        if overload in packet.overloads()
    }


_FOLDS: dict[Any, Callable[[Node, Known], Any]] = {
    **_overloads(_or, "bitwise_or", "logical_or", "__or__"),
    **_overloads(_and, "bitwise_and", "logical_and", "__and__"),
    **_overloads(_xor, "bitwise_xor", "logical_xor", "__xor__"),
    **_overloads(_where, "where"),
    **_overloads(_masked, "masked_fill"),
    **_overloads(_add, "add"),
    **_overloads(_sub, "sub"),
    **_overloads(_mul, "mul"),
    **_overloads(_div, "div"),
    ops.quiet: _of_finished_rows,
    ops.guard: _of_finished_rows,
}


def assume_none_finished(graph: Graph, finished: Node) -> int:
    """Make the step that of the time before any row has finished: the placeholder ``finished`` is False everywhere.

    What does not fold reads a constant. Of the placeholder at most the size is used any more.
    """
    users = [user for user in finished.users if user.target is not aten.sym_size.int and user.target not in _FILLS]
    if not users:
        return 0
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        none = call(graph, aten.zeros_like.default, finished)
    for user in users:
        user.replace_input_with(finished, none)
    changes = len(users)
    while folded := fold_constants(graph) + drop_no_ops(graph, differentiable=True):
        changes += folded
    return changes + dead_code(graph)


# What is there twice.


def share(graph: Graph, *, differentiable: bool = False) -> int:
    """Let equal operators on equal operands be one node. Constants are equal by their content, sizes by what they are."""
    first: dict[Any, Node] = {}
    changes = 0
    for node in list(graph.nodes):
        key = _identity(node, differentiable)
        if key is None:
            continue
        earlier = first.setdefault(key, node)
        if earlier is not node:
            replace(node, earlier)
            changes += 1
    return changes


def _identity(node: Node, differentiable: bool) -> Any:
    """What nodes that make the same have in common; None of a node that stands for itself."""
    if node.op == "get_attr":
        return _content(node)
    if node.op != "call_function" or not _is_pure(node) or (differentiable and node.target is ops.guard):
        return None  # two guards drop the gradients of two uses, each by itself
    made = node.meta.get("val")
    if isinstance(made, torch.SymInt):
        return "size", expression(made)
    leaves, structure = pytree.tree_flatten((list(node.args), dict(sorted(node.kwargs.items()))))
    return node.target, str(structure), tuple((type(leaf), repr(leaf) if isinstance(leaf, float) else leaf) for leaf in leaves)


def _content(node: Node) -> Any:
    data = _data(node)
    if data is None or data.layout is not torch.strided or data.requires_grad:
        return "attribute", node.target
    content = data.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    return "constant", data.dtype, data.device, tuple(data.shape), hashlib.sha256(content.numpy().tobytes()).digest()


def _is_pure(node: Node) -> bool:
    if isinstance(node.target, torch._ops.OpOverload):
        return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags and not node.is_impure()
    return getattr(node.target, "__module__", None) in ("_operator", "math", "torch.fx.experimental.sym_node") or node.target in _SYMBOLIC


_SYMBOLIC = {getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not", "sym_sqrt") if hasattr(torch, name)}
