"""Operators without a rule, as operators with one. In: a program; out: a graph that the lowering knows, or the operator it does not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch.fx import Graph, Interpreter, Node
from torch.fx import traceback as node_meta
from torch.fx.experimental.proxy_tensor import make_fx

from ..capture.program import INVARIANT, Source
from ..capture.sizes import expression
from ..capture.spelled_out import padded
from ..optimise.graph import fake_mode, made_of, placeholders, value
from ..optimise.shapes import VIEWS
from . import operators, pointwise
from .operators import Unlowered


def decomposed(graph: Graph, module: torch.nn.Module, sources: Sequence[Source]) -> torch.fx.GraphModule:
    """The graph in operators that have a rule, with the constants of ``module``; torch computes what is the same at every step.

    Raises:
        Unlowered: there are operators that torch cannot take apart either.
    """
    for node in stepped(graph, sources):
        made = node.meta.get("val")
        if isinstance(made, torch.Tensor) and made.dtype not in pointwise.C_TYPES:
            raise Unlowered(node, f"{made.dtype}")
        if any(symbol.name.startswith("u") for size in getattr(made, "shape", ()) for symbol in expression(size).free_symbols):
            raise Unlowered(node, "a tensor whose size depends on values")
    if all(operators.is_lowered(node) for node in stepped(graph, sources)):
        return torch.fx.GraphModule(module, graph)
    table: dict[Any, Any] = {
        target: rule for target, rule in decomposition_table.items() if target not in operators.RULES and target not in pointwise.TABLE
    }
    table |= _OURS
    fakes = [value(node) for node in placeholders(graph)]
    whole = torch.fx.GraphModule(module, graph)

    class Located(Interpreter):
        def run_node(self, node: Node) -> Any:
            node_meta.current_meta["stack_trace"] = node.meta.get("stack_trace")
            return super().run_node(node)

        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target in VIEWS:  # what an operator is taken apart into may have another layout than its own result
                return args[0].reshape(args[1])
            return super().call_function(target, args, kwargs)

    mode = fake_mode(graph)
    symbols = {symbol for fake in fakes for size in fake.shape for symbol in expression(size).free_symbols}
    with mode, node_meta.preserve_node_meta(), torch.no_grad():
        made = make_fx(lambda *arguments: Located(whole).run(*arguments), decomposition_table=table)(*fakes)
    made.graph.eliminate_dead_code()
    env: Any = mode.shape_env
    if any(env.simplify(symbol).is_number for symbol in symbols):  # the program would hold for fewer sizes than it was captured for
        taken = next(node for node in stepped(graph, sources) if not operators.is_lowered(node))
        raise Unlowered(taken, "a size that is free: torch fixes it")
    for node in stepped(made.graph, sources):
        if not operators.is_lowered(node):
            raise Unlowered(node)
    return made


def stepped(graph: Graph, sources: Sequence[Source]) -> list[Node]:
    """The nodes that a step computes: those that depend on more than what is known before the loop."""
    invariant = made_of(graph, sources, INVARIANT)
    return [node for node in graph.nodes if node not in invariant]


def _variance(x: torch.Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> torch.Tensor:
    dims = list(range(x.ndim)) if dim is None or dim == [] else [d % x.ndim for d in dim]
    count: Any = 1
    for d in dims:
        count = count * x.shape[d]
    from_mean = x - x.mean(dims, keepdim=True)
    correction = 1 if correction is None else correction
    variance: torch.Tensor = (from_mean * from_mean).sum(dims, keepdim=keepdim) / max(count - correction, 0)
    return variance


def _unbiased(x: torch.Tensor, *args: Any, keepdim: bool = False) -> torch.Tensor:
    """The older forms: ``(unbiased)`` and ``(dim, unbiased, keepdim)``."""
    if len(args) < 2 and (not args or isinstance(args[0], bool)):
        return _variance(x, correction=float(args[0] if args else True))
    dim, unbiased, keep = (*args, True, keepdim)[:3] if len(args) < 3 else args
    return _variance(x, dim, correction=float(unbiased), keepdim=keep)


def _root(variance: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: variance(*args, **kwargs).sqrt()


def _prims_variance(x: torch.Tensor, dims: Any, correction: float = 1, *, output_dtype: torch.dtype | None = None) -> torch.Tensor:
    return _variance(x if output_dtype is None else x.to(output_dtype), dims, correction=correction)


def _sum(x: torch.Tensor, dims: Any, *, output_dtype: torch.dtype | None = None) -> torch.Tensor:
    return x.sum(dims, dtype=output_dtype) if dims is None or len(dims) else x.clone()


def _kth(x: torch.Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    values, places = (sorted_.narrow(dim, k - 1, 1) for sorted_ in x.sort(dim))
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _median(x: torch.Tensor, dim: int = -1, keepdim: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower one of two, and a NaN where there is one."""
    middle, at = _kth(x, (x.shape[dim] + 1) // 2, dim, True)
    last, end = _kth(x, x.shape[dim], dim, True)  # where NaN is
    values, places = torch.where(last.isnan(), last, middle), torch.where(last.isnan(), end, at)
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _convolution(
    x: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, _: Any, groups: int
) -> Any:
    """One product of the windows, for each group of channels."""
    if transposed:
        return NotImplemented
    places = range(2, x.ndim)
    wide = padded(x, [pad for pad in reversed(padding) for _ in range(2)])
    lengths = [(wide.shape[d] - dilation[d - 2] * (weight.shape[d] - 1) - 1) // stride[d - 2] + 1 for d in places]
    windows = []
    for offset in itertools.product(*(range(weight.shape[d]) for d in places)):
        window = wide
        for d, at in zip(places, offset, strict=True):
            begin = at * dilation[d - 2]
            window = window[(slice(None),) * d + (slice(begin, begin + (lengths[d - 2] - 1) * stride[d - 2] + 1, stride[d - 2]),)]
        windows.append(window)
    stacked = torch.stack(windows, 2)  # [B, C, window, *lengths]
    made = []
    taken, given = stacked.shape[1] // groups, weight.shape[0] // groups
    for group in range(groups):
        part, kernel = stacked[:, group * taken : (group + 1) * taken], weight[group * given : (group + 1) * given]
        rows = part.flatten(1, 2).movedim(1, -1)
        product = rows.reshape(-1, rows.shape[-1]) @ kernel.flatten(1).t()
        made.append(product.view(*rows.shape[:-1], given).movedim(-1, 1))
    result = torch.cat(made, 1) if groups > 1 else made[0]
    return result if bias is None else result + bias.view(-1, *[1] * len(lengths))


def _layer_norm(
    x: torch.Tensor, normalized_shape: Any, weight: Any, bias: Any, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dims = list(range(x.ndim - len(normalized_shape), x.ndim))
    wide = x.float() if x.dtype in pointwise.HALVES else x
    mean = wide.mean(dims, keepdim=True)
    from_mean = wide - mean
    scale = ((from_mean * from_mean).mean(dims, keepdim=True) + eps).rsqrt()
    normal = from_mean * scale
    normal = normal if weight is None else normal * weight
    normal = normal if bias is None else normal + bias
    return normal.to(x.dtype), mean, scale


def _group_norm(
    x: torch.Tensor, weight: Any, bias: Any, rows: Any, channels: int, _: Any, groups: int, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    normal, mean, scale = _layer_norm(x.reshape(rows, groups, -1), [x[0].numel() // groups], None, None, eps)
    normal, per_channel = normal.view(x.shape), [1, channels, *[1] * (x.ndim - 2)]
    normal = normal if weight is None else normal * weight.view(per_channel)
    normal = normal if bias is None else normal + bias.view(per_channel)
    return normal.to(x.dtype), mean.squeeze(-1), scale.squeeze(-1)


def _diagonal(x: torch.Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> torch.Tensor:
    rows, columns = x.shape[dim1], x.shape[dim2]
    begin = max(-offset, 0), max(offset, 0)
    along = torch.arange(max(min(rows - begin[0], columns - begin[1]), 0), device=x.device)
    return x.movedim((dim1, dim2), (-2, -1)).flatten(-2).index_select(-1, (along + begin[0]) * columns + along + begin[1])


def _unfold(x: torch.Tensor, dimension: int, size: int, step: int) -> torch.Tensor:
    windows = (x.shape[dimension] - size) // step + 1
    places = torch.arange(windows, device=x.device).unsqueeze(1) * step + torch.arange(size, device=x.device)
    made = x.movedim(dimension, -1).index_select(-1, places.flatten())
    return made.view(*made.shape[:-1], windows, size).movedim(-2, dimension % x.ndim)


def _broadcast(x: torch.Tensor, shape: Any, dims: Any) -> torch.Tensor:
    for place in range(len(shape)):
        if place not in dims:
            x = x.unsqueeze(place)
    return x.expand(shape)


_aten = torch.ops.aten
_OURS: dict[Any, Any] = {
    _aten.constant_pad_nd.default: lambda x, pads, value=0: padded(x, pads, value),
    _aten.var.correction: _variance,
    _aten.var.default: _unbiased,
    _aten.var.dim: _unbiased,
    _aten.std.correction: _root(_variance),
    _aten.std.default: _root(_unbiased),
    _aten.std.dim: _root(_unbiased),
    torch.ops.prims.var.default: _prims_variance,
    torch.ops.prims.broadcast_in_dim.default: _broadcast,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_group_norm.default: _group_norm,
    torch.ops.prims.sum.default: _sum,
    torch.ops.prims.div.default: lambda x, y: x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc"),
    _aten.kthvalue.default: _kth,
    _aten.median.dim: _median,
    _aten.convolution.default: _convolution,
    _aten.diagonal.default: _diagonal,
    _aten.unfold.default: _unfold,
}
