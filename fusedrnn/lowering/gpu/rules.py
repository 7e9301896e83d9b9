"""The rules of the persistent kernel's elementwise operators, and all rules together. In: a `Lowering`; out: a Triton expression.

An operator is lowered by a line of `pointwise.TABLE` or by one rule: here, in `views`, `lookups`, `reductions` or `sums`.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from ...capture import ops
from ...optimise.graph import TRANSPARENT, aten, value
from ..pointwise import overloads
from . import lookups, reductions, sums, types  # noqa: F401  (they register their rules)
from .pointwise import SHIFTS, TABLE
from .rule import RULES, Lowering, Unlowered, rule
from .views import REINDEXED


def lower(self: Lowering) -> str:
    """The expression of a node."""
    target = self.node.target
    if target in RULES:
        return RULES[target](self)
    if target in TABLE:
        return _elementwise(self)
    raise Unlowered(self.node, "the persistent kernel has no rule for it")


def _elementwise(self: Lowering) -> str:
    kind, written = TABLE[self.node.target]
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
    if kind == "bool":
        texts = [types.cast(self.operand(a), value(a).dtype, dtype) if isinstance(a, Node) else types.literal(a, dtype) for a in operands]
    else:
        texts = [self.read(argument, dtype) for argument in operands]
    if alpha != 1:
        scaled = 0 if "rsub" in str(self.node.target) else 1
        texts[scaled] = f"({texts[scaled]} * {self.read(alpha, dtype)})"
    if not isinstance(operands[0], Node):  # functions of the kernel take tensors
        texts[0] = f"tl.full((1, 1), {texts[0]}, {types.REGISTERS[dtype]})"
    if dtype == torch.bool and self.node.target in overloads("add"):
        return f"({texts[0]} | {texts[1]})"  # one bit and one bit are none
    return written(*texts)


@rule(aten.floor.default, aten.ceil.default)
def _whole(self: Lowering) -> str:
    text = self.read(self.node.args[0], self.dtype)
    if not self.dtype.is_floating_point:
        return text
    return f"tl.floor({text})" if self.node.target is aten.floor.default else f"tl.ceil({text})"


@rule(aten.trunc.default)
def _truncated(self: Lowering) -> str:
    text = self.read(self.node.args[0], self.dtype)
    return f"tl.where({text} < 0, tl.ceil({text}), tl.floor({text}))" if self.dtype.is_floating_point else text


@rule(aten.round.default)
def _rounded(self: Lowering) -> str:
    """To the nearest whole number, of two the even one; from 2^23 on a float32 is whole."""
    text = self.read(self.node.args[0], self.dtype)
    if not self.dtype.is_floating_point:
        return text
    up = f"tl.floor({text} + 0.5)"
    odd = f"(tl.floor({up} * 0.5) * 2.0 != {up})"
    return f"tl.where(tl.abs({text}) < 8388608.0, tl.where(({text} + 0.5 == {up}) & {odd}, {up} - 1.0, {up}), {text})"


@rule(aten.copy.default)
def _copied(self: Lowering) -> str:
    source = self.node.args[1]
    return types.cast(self.operand(source), value(source).dtype, self.dtype)


@rule(aten.fill.Scalar, aten.fill.Tensor)
def _fill(self: Lowering) -> str:
    number = self.node.args[1]
    return types.cast(self.operand(number), value(number).dtype, self.dtype) if isinstance(number, Node) else self.read(number, self.dtype)


@rule(aten.pow.Tensor_Scalar)
def _power(self: Lowering) -> str:
    base, exponent = self.read(self.node.args[0], self.dtype), self.node.args[1]
    if exponent in (1, 2, 3, 4):
        return "(" + " * ".join([base] * int(exponent)) + ")"
    if exponent == 0.5:
        return f"tl.sqrt({base})"
    if exponent in (-0.5, -1, -2):
        return {-0.5: f"(1.0 / tl.sqrt({base}))", -1: f"(1.0 / {base})", -2: f"(1.0 / ({base} * {base}))"}[exponent]
    if not self.dtype.is_floating_point:
        raise Unlowered(self.node, f"the power {exponent} of integers")
    return f"power({base}, {self.read(exponent, self.dtype)})"


@rule(aten.pow.Tensor_Tensor, aten.pow.Scalar)
def _powers(self: Lowering) -> str:
    if not self.dtype.is_floating_point:
        raise Unlowered(self.node, "powers of integers")
    base, exponent = (self.read(operand, self.dtype) for operand in self.node.args)
    return f"power({base}, {exponent})"


@rule(*SHIFTS)
def _shift(self: Lowering) -> str:
    """By as many bits as there are or more, or by fewer than none, all are shifted out."""
    x, by = (self.read(operand, self.dtype) for operand in self.node.args)
    left, bits = "left" in str(self.node.target) or "lshift" in str(self.node.target), 8 * self.dtype.itemsize
    outside = f"(({by} < 0) | ({by} >= {bits}))"
    kept = f"tl.minimum(tl.maximum({by}, 0), {bits - 1})"
    gone = "0" if left or not self.dtype.is_signed else f"({x} >> {bits - 1})"
    return f"tl.where({outside}, {gone}, {x} {'<<' if left else '>>'} {kept})"


@rule(aten.div.Tensor_mode, aten.div.Scalar_mode)
def _div_mode(self: Lowering) -> str:
    a, b = (self.read(operand, self.dtype) for operand in self.node.args[:2])
    mode = self.node.kwargs.get("rounding_mode")
    return f"({a} / {b})" if mode is None else f"{mode}_divide({a}, {b})"


@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def _where(self: Lowering) -> str:
    condition, yes, no = self.node.args
    return f"tl.where({self.operand(condition)}, {self.read(yes, self.dtype)}, {self.read(no, self.dtype)})"


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(self: Lowering) -> str:
    x, mask, fill = self.node.args
    return f"tl.where({self.operand(mask)}, {self.read(fill, self.dtype)}, {self.read(x, self.dtype)})"


@rule(aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_max.default, aten.clamp_min.Tensor, aten.clamp_max.Tensor)
def _clamp(self: Lowering) -> str:
    low, high = self.argument(1, "min"), self.argument(2, "max")
    if self.node.target in (aten.clamp_max.default, aten.clamp_max.Tensor):
        low, high = None, self.argument(1, "max")
    text = self.read(self.node.args[0], self.dtype)
    if low is not None:
        text = f"tl.maximum({text}, {self.read(low, self.dtype)}, propagate_nan=tl.PropagateNan.ALL)"
    return text if high is None else f"tl.minimum({text}, {self.read(high, self.dtype)}, propagate_nan=tl.PropagateNan.ALL)"


@rule(aten._to_copy.default, torch.ops.prims.convert_element_type.default)
def _converted(self: Lowering) -> str:
    source = self.node.args[0]
    return types.cast(self.operand(source), value(source).dtype, self.dtype)


# Of the same elements in the same order.
@rule(*TRANSPARENT)
def _same(self: Lowering) -> str:
    source = self.node.args[0]
    return self.writer.demand(source, None if self.writer.width(source) is None else self.columns)


@rule(ops.quiet)
def _quiet(self: Lowering) -> str:
    x = self.operand(self.node.args[0])
    finished = self.operand(self.node.args[1])
    return f'tl.where({finished} & ~(tl.abs({x}) < float("inf")), 0.0, {x})'


_FILLS = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}


_FILLED = {
    aten.full.default, aten.full_like.default, aten.zeros.default, aten.ones.default, aten.zeros_like.default, aten.ones_like.default,
    aten.scalar_tensor.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
}  # fmt: skip
READ_THROUGH = TRANSPARENT | REINDEXED | _FILLED  # what costs nothing in the kernel, known before the loop or not


@rule(*_FILLED)
def _filled(self: Lowering) -> str:
    name = self.node.target._schema.name.removeprefix("aten::")
    number = self.node.args[_FILLS[name]] if name in _FILLS else int("ones" in name)
    return self.read(number, self.dtype)
