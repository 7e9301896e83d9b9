"""Elementwise operators as C++ expressions. In: the operands as C expressions of the type the operator computes in; out: the result's.

Half precisions compute in float and round after each operator, as torch does. A new operator is one line here and one in its test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..optimise.graph import aten

Expression = Callable[..., str]

C_TYPES = {
    torch.float32: "float", torch.float64: "double", torch.bfloat16: "frnn::bf16", torch.float16: "frnn::f16", torch.bool: "uint8_t",
    torch.int8: "int8_t", torch.uint8: "uint8_t", torch.int16: "int16_t", torch.int32: "int32_t", torch.int64: "int64_t",
}  # fmt: skip
HALVES = (torch.bfloat16, torch.float16)


def computed_in(dtype: torch.dtype) -> str:
    """The C type that values of a dtype have in an expression."""
    if dtype in HALVES:
        return "float"
    return "bool" if dtype == torch.bool else C_TYPES[dtype]


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums of a dtype are kept in."""
    return torch.float32 if dtype in HALVES else dtype


def packed(dtype: torch.dtype) -> torch.dtype:
    """What the weights of products of a dtype are stored in: bfloat16 is widened as it is read."""
    return dtype if dtype == torch.bfloat16 else wide(dtype)


def rounded(expression: str, dtype: torch.dtype) -> str:
    """A float that a half precision can hold."""
    if dtype not in HALVES:
        return expression
    kind = C_TYPES[dtype]
    return f"frnn::to_float({kind.replace('frnn::', 'frnn::to_')}({expression}))"


def narrowed(expression: str, dtype: torch.dtype) -> str:
    """The result of arithmetic as its dtype holds it: C++ computes with small integers and bools as int."""
    if dtype in (torch.bool, torch.int8, torch.uint8, torch.int16):
        return f"({computed_in(dtype)})({expression})"
    return rounded(expression, dtype)


def cast(expression: str, source: torch.dtype, target: torch.dtype) -> str:
    """A value as another dtype, by torch's rules: to bool what is not zero, to an integer towards zero."""
    if source == target:
        return expression
    if target == torch.bool:
        return f"({expression} != 0)"
    return rounded(f"({computed_in(target)})({expression})", target)


def literal(number: Any, dtype: torch.dtype) -> str:
    """A Python number in the type a dtype computes in."""
    if dtype == torch.bool:
        return "true" if number else "false"
    if dtype.is_floating_point:
        number = float(number)
        kind = computed_in(dtype)
        if math.isnan(number):
            return f"({kind})NAN"
        if math.isinf(number):
            return f"({kind})INFINITY" if number > 0 else f"(-({kind})INFINITY)"
        return f"({kind}){number!r}" if number >= 0 and not math.copysign(1, number) < 0 else f"(({kind}){number!r})"
    return f"({computed_in(dtype)}){int(number)}LL"


def _function(name: str) -> Expression:
    return lambda *operands: f"frnn::{name}({', '.join(operands)})"


def _infix(operator: str) -> Expression:
    return lambda a, b: f"({a} {operator} {b})"


_ARITHMETIC: dict[Any, Expression] = {
    "add": _infix("+"), "sub": _infix("-"), "mul": _infix("*"), "neg": lambda a: f"(-{a})",
    "rsub": lambda a, b: f"({b} - {a})",
    "maximum": _function("maximum"), "minimum": _function("minimum"),
    "remainder": _function("remainder"), "fmod": _function("fmod"), "floor_divide": _function("floor_divide"),
    "abs": _function("abs"), "sign": _function("sign"), "relu": lambda a: f"frnn::maximum({a}, 0)",
    "bitwise_and": _infix("&"), "bitwise_or": _infix("|"), "bitwise_xor": _infix("^"),
    "bitwise_left_shift": _function("shift_left"), "bitwise_right_shift": _function("shift_right"),
    "floor": _function("floor"), "ceil": _function("ceil"), "round": _function("round"), "trunc": _function("trunc"),
}  # fmt: skip

# Of these an integer operand makes a float.
_FLOATING: dict[Any, Expression] = {
    "div": _infix("/"), "reciprocal": lambda a: f"(1 / {a})",
    **{name: _function(name) for name in (
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan", "tanh", "sigmoid",
        "erf", "erfc", "erfinv", "atan", "asin", "acos", "sinh", "cosh", "atan2", "copysign",
    )},
}  # fmt: skip

_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LOGICAL: dict[str, Expression] = {
    "logical_and": _infix("&&"), "logical_or": _infix("||"), "logical_xor": _infix("!="), "logical_not": lambda a: f"(!{a})",
}  # fmt: skip
_TESTS: dict[str, Expression] = {
    "isnan": _function("isnan"),
    "isinf": _function("isinf"),
    "isfinite": _function("isfinite"),
    "signbit": _function("signbit"),
}


def overloads(name: str) -> list[Any]:
    packet = getattr(aten, name, None)
    if packet is None:
        return []
    return [getattr(packet, overload) for overload in packet.overloads() if overload.split("_")[0] in ("default", "Tensor", "Scalar")
            and "out" not in overload and overload not in ("Tensor_mode", "Scalar_mode")]  # fmt: skip


# operator -> (what its operands become, expression): "result": the result's dtype, "common": that of the operands together, "bool".
TABLE: dict[Any, tuple[str, Expression]] = {
    **{op: ("result", e) for name, e in {**_ARITHMETIC, **_FLOATING}.items() for op in overloads(name)},
    **{op: ("common", _infix(sign)) for name, sign in _COMPARISONS.items() for op in overloads(name)},
    **{op: ("bool", e) for name, e in _LOGICAL.items() for op in overloads(name)},
    **{op: ("common", e) for name, e in _TESTS.items() for op in overloads(name)},
    aten.pow.Tensor_Tensor: ("result", _function("pow")),
    aten.pow.Tensor_Scalar: ("result", _function("pow")),
    aten.pow.Scalar: ("result", _function("pow")),
    aten.__lshift__.Scalar: ("result", _function("shift_left")),
    aten.__rshift__.Scalar: ("result", _function("shift_right")),
    aten.__lshift__.Tensor: ("result", _function("shift_left")),
    aten.__rshift__.Tensor: ("result", _function("shift_right")),
}
for _operator in overloads("bitwise_not"):
    TABLE[_operator] = ("result", lambda a: f"frnn::invert({a})")
for _and in (aten.__and__.Tensor, aten.__and__.Scalar):
    TABLE[_and] = ("result", _infix("&"))
for _or in (aten.__or__.Tensor, aten.__or__.Scalar):
    TABLE[_or] = ("result", _infix("|"))
