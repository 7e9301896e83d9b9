"""A step with its derivative. In: a `Core`; out: one graph that makes what the step makes, and the gradients of what it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._decomp import get_decompositions
from torch.fx import Graph, GraphModule, Node
from torch.fx import traceback as node_meta
from torch.fx.experimental.proxy_tensor import make_fx

from ..capture import ops
from ..capture.program import Source, Target
from ..capture.sizes import expression
from ..capture.step import COPIES, interpreted, is_mutation, tracing
from ..optimise.graph import TRANSPARENT, aten, call, fake_mode, outputs, placeholders, replace, value
from ..optimise.simplify import simplify
from .core import Core

_CARRIED = ("inputs", "state", "loop_state")
_TAKEN_APART = [aten.native_layer_norm_backward]  # its sums over the rows belong behind the loop


@dataclass(frozen=True)
class Joint:
    """A step and its derivative.

    Attributes:
        graph: takes the step's sources, what is known, and a gradient for each of ``given``; returns what the step returns, then a gradient
            for each of ``wanted``.
        module: holds the graph's constants.
        sources: of the step.
        known: the placeholders of what is known before the loop.
        given: the targets whose gradients come in: what is carried, emitted or written, of a floating dtype.
        tangents: those gradients' placeholders.
        made: the step's results.
        wanted: what gradients are made of: a source, or the number of a known value.
        gradients: those, None where nothing depends on it.
        backward: the nodes that depend on a gradient.
        fed: those of them that depend on gradients of next inputs alone: of a row's last step there is none.
    """

    graph: Graph
    module: GraphModule
    sources: dict[Node, Source]
    known: tuple[Node, ...]
    given: tuple[Target, ...]
    tangents: tuple[Node, ...]
    made: tuple[Node, ...]
    wanted: tuple[Source | int, ...]
    gradients: tuple[Node | None, ...]
    backward: frozenset[Node]
    fed: frozenset[Node]


def joint(core: Core) -> Joint:
    """Trace a step together with its derivative.

    Raises:
        RuntimeError, NotImplementedError: torch knows no derivative of an operator.
    """
    step = GraphModule(core.hoisted.module, core.step)
    takes = placeholders(core.step)
    results = outputs(core.step)
    wanted: list[Source | int] = [source for source, node in zip(core.sources, takes, strict=False) if _floats(value(node))]
    places = [place for place, source in enumerate(core.sources) if source in wanted]
    for number, node in enumerate(core.known):
        if _floats(value(node)):
            wanted.append(number)
            places.append(len(core.sources) + number)
    given = [
        target
        for target, node in zip(core.targets, results, strict=True)
        if target.kind in (*_CARRIED, "emit", "value") and _floats(value(node))
    ]
    differentiated = [core.targets.index(target) for target in given]
    missing: list[bool] = []

    def with_derivative(*arguments: torch.Tensor) -> list[torch.Tensor]:
        taken = [argument.detach() for argument in arguments[: len(takes)]]
        for place in places:
            taken[place].requires_grad_()
        made = list(_Differentiable(step).run(*taken))
        pairs = [
            (made[place], tangent)
            for place, tangent in zip(differentiated, arguments[len(takes) :], strict=True)
            if made[place].requires_grad
        ]
        found: Sequence[torch.Tensor | None] = [None] * len(places)
        if pairs:
            found = torch.autograd.grad([m for m, _ in pairs], [taken[place] for place in places], [t for _, t in pairs], allow_unused=True)
        missing[:] = [gradient is None for gradient in found]
        return [*[one.detach() for one in made], *[gradient for gradient in found if gradient is not None]]

    mode = fake_mode(core.step)
    tangents = [value(results[place]) for place in differentiated]
    with tracing(), mode, node_meta.preserve_node_meta():
        fakes = [*[value(node) for node in takes], *[torch.empty_like(tangent) for tangent in tangents]]
        apart = {**COPIES, **get_decompositions(_TAKEN_APART), aten.native_layer_norm.default: _layer_norm}
        module = make_fx(with_derivative, apart)(*fakes)
        if any(is_mutation(node) for node in module.graph.nodes):  # of derivatives that torch makes in place
            module = make_fx(torch.func.functionalize(interpreted(module), remove="mutations"), COPIES)(*fakes)
    graph = module.graph
    _without_padding(graph)
    simplify(graph)
    _without_padding(graph)
    _vectors_of_rows(graph, value(results[0]).shape[0])
    simplify(graph)
    graph.lint()
    inputs, returned = placeholders(graph), outputs(graph)
    gradients = iter(returned[len(results) :])
    taken, comes_in = inputs[: len(takes)], inputs[len(takes) :]
    return Joint(
        graph, module, dict(zip(taken, core.sources, strict=False)), tuple(taken[len(core.sources) :]), tuple(given), tuple(comes_in),
        tuple(returned[: len(results)]), tuple(wanted), tuple([None if none else next(gradients) for none in missing]),
        frozenset(_dependent(graph, comes_in)), _fed(graph, given, comes_in, len(core.hoisted.state_port.leaves)),
    )  # fmt: skip


def _layer_norm(x: torch.Tensor, shape: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """As its derivative has it: what is normalised is made once, and kept once. Half precision is normalised in another one."""
    if x.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    dims = list(range(x.ndim - len(shape), x.ndim))
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    rstd = torch.rsqrt((centred * centred).mean(dims, keepdim=True) + epsilon)
    made = centred * rstd
    made = made if weight is None else made * weight
    return made if bias is None else made + bias, mean, rstd


def _floats(made: Any) -> bool:
    return isinstance(made, torch.Tensor) and (made.is_floating_point() or made.is_complex())


def _fed(graph: Graph, given: Sequence[Target], tangents: Sequence[Node], own: int) -> frozenset[Node]:
    """As `Joint.fed`. Behind the state's ``own`` leaves come inputs (`fusedrnn.derivative.segments`)."""
    kinds = {node: kind == "inputs" or (kind == "state" and place >= own) for (kind, place), node in zip(given, tangents, strict=True)}
    others = _dependent(graph, [node for node, is_input in kinds.items() if not is_input])
    return frozenset(_dependent(graph, [node for node, is_input in kinds.items() if is_input]) - others)


def _dependent(graph: Graph, sources: Sequence[Node]) -> set[Node]:
    found = set(sources)
    for node in graph.nodes:
        if node.op != "output" and any(operand in found for operand in node.all_input_nodes):
            found.add(node)
    return found


class _Differentiable(torch.fx.Interpreter):
    """Runs a step with the operators of `fusedrnn.capture.ops` as functions that have a derivative."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_function(_DERIVATIVES.get(target, target), args, kwargs)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
        ctx.save_for_backward(x, index)
        ctx.dim = dim
        made: torch.Tensor = ops.read(x, index, dim)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, index = ctx.saved_tensors
        return ops.unread(gradient, x, index, ctx.dim), None, None


class _Quiet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, finished)
        made: torch.Tensor = ops.quiet(x, finished)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, finished = ctx.saved_tensors
        return gradient.masked_fill(_shaped(finished, x) & ~torch.isfinite(x), 0), None


class _Guard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(finished)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ops.quiet(gradient, ctx.saved_tensors[0]), None


def _shaped(flags: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    return flags.view(-1, *[1] * (leaf.ndim - 1))


_DERIVATIVES: dict[Any, Callable[..., Any]] = {ops.read: _Read.apply, ops.quiet: _Quiet.apply, ops.guard: _Guard.apply}


def _without_padding(graph: Graph) -> None:
    """Gradients of slices of one tensor side by side: torch pads each with zeros and adds them up."""
    for node in reversed(list(graph.nodes)):
        if node.target is not aten.add.Tensor or any(user.target is aten.add.Tensor and _is_sum_of_parts(user) for user in node.users):
            continue
        parts = _parts(node)
        if parts is None:
            continue
        dim, pieces = parts
        with graph.inserting_before(node):
            made = call(graph, aten.cat.default, [piece for _, piece in pieces], dim, like=node)
        replace(node, made)
    graph.eliminate_dead_code()


def _vectors_of_rows(graph: Graph, batch: Any) -> None:
    """A product ``X^T v`` over the places of all rows, as that of each row and a sum over the rows: so rows stay apart."""
    for node in list(graph.nodes):
        if node.target is not aten.mv.default:
            continue
        turned, vector = node.args
        matrix: Any = turned.args[0] if turned.target in (aten.t.default, aten.permute.default) else None
        parts = [_of_rows(part, batch) for part in (matrix, vector)]
        if None in parts or value(parts[0]).ndim != 3 or value(parts[1]).ndim != 2:
            continue
        with graph.inserting_before(node):
            rows = call(graph, aten.bmm.default, call(graph, aten.unsqueeze.default, parts[1], 1), parts[0], like=node)
            made = call(graph, aten.sum.dim_IntList, call(graph, aten.squeeze.dim, rows, 1), [0], like=node)
        replace(node, made)


def _of_rows(node: Any, batch: Any) -> Node | None:
    """What a view with the batch flattened into its first dimension was, before."""
    if not isinstance(node, Node) or node.target not in TRANSPARENT:
        return None
    before: Any = node.args[0]
    made = value(before)
    return before if made.ndim == value(node).ndim + 1 and expression(made.shape[0]) == expression(batch) else None


def _is_sum_of_parts(node: Node) -> bool:
    return _parts(node) is not None


def _parts(node: Node) -> tuple[int, list[tuple[int, Node]]] | None:
    """The dimension and the begins of slices whose gradients a node adds up, where they are the whole tensor; None of any other node."""
    found: list[tuple[int, int, Node]] = []
    dims: set[int] = set()
    waiting: list[Any] = [node]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Node):
            return None
        if part.target is aten.add.Tensor and not part.kwargs:
            waiting += part.args
            continue
        if part.target is not aten.slice_backward.default:
            return None
        gradient, _, dim, begin, end, step = part.args
        rank = value(part).ndim
        size = value(part).shape[dim]
        if step != 1 or not isinstance(size, int) or not isinstance(begin, int) or not isinstance(end, int):
            return None
        dims.add(dim % rank)
        begin, end = (min(place + size if place < 0 else place, size) for place in (begin, end))
        found.append((begin, end, gradient))  # type: ignore[arg-type]
    found.sort(key=lambda part: part[0])
    size = value(node).shape[next(iter(dims))]
    ends = [0, *[end for _, end, _ in found]]
    if len(dims) != 1 or ends[-1] != size or any(begin != end for (begin, _, _), end in zip(found, ends, strict=False)):
        return None
    return dims.pop(), [(begin, piece) for begin, _, piece in found]
