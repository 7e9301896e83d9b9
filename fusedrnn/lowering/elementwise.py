"""Elementwise operators, fills and draws in C++: one rule an operator."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..capture import ops
from ..optimise.graph import aten, value
from . import pointwise
from .pointwise import cast, computed_in, narrowed
from .rule import Lowering, rule
from .values import Index, Value

_DIVISIONS = {
    op for name in ("remainder", "fmod", "floor_divide") for op in pointwise.TABLE if str(op).split(".")[1] == name
}  # of integers, a zero divisor is an error


def elementwise(self: Lowering) -> Value:
    """An operator of `pointwise.TABLE`."""
    kind, written = pointwise.TABLE[self.node.target]
    operands = list(self.node.args)
    names = [argument.name for argument in self.node.target._schema.arguments]
    alpha = operands.pop(names.index("alpha")) if "alpha" in names[: len(operands)] else self.node.kwargs.get("alpha", 1)
    if kind == "result":
        dtype = self.dtype
    elif kind == "bool":
        dtype = torch.bool
    else:
        made = [value(argument) if isinstance(argument, Node) else argument for argument in operands]
        dtype = torch.result_type(*made) if len(made) == 2 else made[0].dtype

    def load(index: Index) -> str:
        texts = []
        for argument in operands:
            if kind == "bool" and isinstance(argument, Node):
                texts.append(self.read(argument, index, torch.bool))
            else:
                texts.append(self.read(argument, index, dtype))
        if alpha != 1:
            scaled = 0 if "rsub" in str(self.node.target) else 1
            texts[scaled] = narrowed(f"({texts[scaled]} * {self.scalar(alpha, dtype)})", dtype)
        if not dtype.is_floating_point and self.node.target in _DIVISIONS:
            texts[-1] = f"frnn::divisor({texts[-1]}, fault)"
        return narrowed(written(*texts), self.dtype)

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten.div.Tensor_mode, aten.div.Scalar_mode)
def _div_mode(self: Lowering) -> Value:
    mode = self.node.kwargs.get("rounding_mode")
    name = {"floor": "floor_divide", "trunc": "trunc_divide"}.get(mode)
    a, b = self.node.args[:2]

    def load(index: Index) -> str:
        x, y = self.read(a, index, self.dtype), self.read(b, index, self.dtype)
        if not self.dtype.is_floating_point:
            y = f"frnn::divisor({y}, fault)"
        return narrowed(f"frnn::{name}({x}, {y})" if name else f"({x} / {y})", self.dtype)

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(self: Lowering) -> Value:
    condition, yes, no = self.node.args

    def load(index: Index) -> str:
        return f"({self.read(condition, index, torch.bool)} ? {self.read(yes, index, self.dtype)} : {self.read(no, index, self.dtype)})"

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(self: Lowering) -> Value:
    x, mask, fill = self.node.args

    def load(index: Index) -> str:
        return f"({self.read(mask, index, torch.bool)} ? {self.scalar(fill, self.dtype)} : {self.read(x, index, self.dtype)})"

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_max.default, aten.clamp_min.Tensor, aten.clamp_max.Tensor)
def _clamp(self: Lowering) -> Value:
    low = self.argument(1, "min")
    high = self.argument(2, "max")
    if self.node.target in (aten.clamp_max.default, aten.clamp_max.Tensor):
        low, high = None, self.argument(1, "max")

    def load(index: Index) -> str:
        text = self.read(self.node.args[0], index, self.dtype)
        text = text if low is None else f"frnn::maximum({text}, {self.read(low, index, self.dtype)})"
        return text if high is None else f"frnn::minimum({text}, {self.read(high, index, self.dtype)})"

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten._to_copy.default, torch.ops.prims.convert_element_type.default, aten.clone.default, aten.detach.default, aten.alias.default,
      aten.lift_fresh_copy.default, aten.lift_fresh.default, ops.guard)  # fmt: skip
def _copy(self: Lowering) -> Value:
    source: Any = self.node.args[0]
    operand = self.operand(source)
    if operand.dtype == self.dtype:
        return operand
    return Value(self.dims, self.dtype, lambda index: cast(operand.load(index), operand.dtype, self.dtype), cheap=operand.cheap)


@rule(aten.copy.default, aten.fill.Tensor, aten.fill.Scalar)
def _overwritten(self: Lowering) -> Value:
    return Value(self.dims, self.dtype, lambda index: self.read(self.node.args[1], index, self.dtype))


@rule(ops.quiet)
def _quiet(self: Lowering) -> Value:
    x, finished = self.node.args

    def load(index: Index) -> str:
        element = self.operand(x).load(index)
        done = self.operand(finished).load(index[:1] if self.rows(self.node) is None else ())
        return f"({done} && !frnn::isfinite({element}) ? 0 : {element})"

    return Value(self.dims, self.dtype, load, cheap=False)


@rule(aten.full.default, aten.full_like.default, aten.zeros.default, aten.ones.default, aten.zeros_like.default, aten.ones_like.default,
      aten.scalar_tensor.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
      aten.empty.memory_format, aten.empty_like.default)  # fmt: skip
def _filled(self: Lowering) -> Value:
    name = self.node.target._schema.name.removeprefix("aten::")
    if name in ("full", "full_like"):
        number: Any = self.argument(1, "fill_value")
    elif name == "scalar_tensor":
        number = self.node.args[0]
    elif name == "new_full":
        number = self.argument(2, "fill_value")
    else:
        number = 1 if "ones" in name else 0
    return Value(self.dims, self.dtype, lambda _: self.scalar(number, self.dtype))


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _arange(self: Lowering) -> Value:
    args = list(self.node.args)
    start, step = (args[0], args[2] if len(args) > 2 else 1) if self.node.target != aten.arange.default else (0, 1)
    kind = computed_in(self.dtype)

    def load(index: Index) -> str:
        at = self.row if self.rows(self.node) is not None else index[0]
        return f"({kind})({self.scalar(start, self.dtype)} + ({kind}){at} * {self.scalar(step, self.dtype)})"

    return Value(self.dims, self.dtype, load)


@rule(ops.draw)
def _draw(self: Lowering) -> Value:
    seed, _, time, site, lineage = self.node.args
    clock = self.scalar(time, torch.int32)
    key = self.operand(seed)

    def load(index: Index) -> str:
        row_key, column = (key.load(()), index[0]) if self.rows(self.node) is not None else (key.load(index[:1]), index[1])
        return f"(int64_t)frnn::philox((uint64_t){row_key}, (uint32_t){column}, (uint32_t){clock}, {site}u, {lineage}u)"

    return Value(self.dims, self.dtype, load, cheap=False)
