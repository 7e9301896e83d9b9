"""Elementwise operators as Triton expressions. In: the operands as expressions in the dtype the operator computes in; out: the result's.

A new operator is one line here and one in its test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...optimise.graph import aten
from ..pointwise import overloads

Expression = Callable[..., str]


def _infix(operator: str) -> Expression:
    return lambda a, b: f"({a} {operator} {b})"


def _function(name: str) -> Expression:
    return lambda *operands: f"{name}({', '.join(operands)})"


def _like(number: str, tile: str) -> str:
    """A tile of what may be a number of Python's."""
    return f"tl.where({tile} == {tile}, {number}, {number})"


def _extreme(name: str) -> Expression:
    return lambda a, b: f"tl.{name}({a}, {b}, propagate_nan=tl.PropagateNan.ALL)"


_ARITHMETIC: dict[str, Expression] = {
    "add": _infix("+"), "sub": _infix("-"), "mul": _infix("*"), "neg": lambda a: f"(-{a})", "rsub": lambda a, b: f"({b} - {a})",
    "abs": _function("tl.abs"), "maximum": _extreme("maximum"), "minimum": _extreme("minimum"),
    "relu": lambda a: f"tl.where({a} < 0, 0, {a})",
    "sign": lambda a: f"(({a} > 0).to({a}.dtype) - ({a} < 0).to({a}.dtype))",
    "bitwise_and": _infix("&"), "bitwise_or": _infix("|"), "bitwise_xor": _infix("^"),
    "__and__": _infix("&"), "__or__": _infix("|"),
    "copysign": lambda a, b: f"signed({a}, {_like(b, a)})", "fmod": _infix("%"),
    "remainder": _function("remainder"), "floor_divide": _function("floor_divide"),
}  # fmt: skip

# Of these an integer operand makes a float.
_FLOATING: dict[str, Expression] = {
    "div": _infix("/"), "reciprocal": lambda a: f"(1.0 / {a})", "exp": _function("tl.exp"), "exp2": _function("tl.exp2"),
    "log": _function("tl.log"), "log2": _function("tl.log2"), "sqrt": _function("tl.sqrt"), "rsqrt": lambda a: f"(1.0 / tl.sqrt({a}))",
    "sin": _function("tl.sin"), "cos": _function("tl.cos"), "erf": _function("tl.erf"), "tanh": _function("tanh"),
    "sigmoid": _function("sigmoid"), "expm1": _function("expm1"), "log1p": _function("log1p"),
}  # fmt: skip

_FLOATING |= {
    "tan": lambda a: f"(tl.sin({a}) / tl.cos({a}))",
    "cosh": lambda a: f"(0.5 * (tl.exp({a}) + tl.exp(-{a})))",
    "sinh": lambda a: f"(0.5 * (expm1({a}) - expm1(-{a})))",
    "log10": lambda a: f"(tl.log({a}) * 0.4342944819032518)",  # 1 / ln 10
}

_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LOGICAL: dict[str, Expression] = {
    "logical_and": _infix("&"), "logical_or": _infix("|"), "logical_xor": _infix("!="), "logical_not": lambda a: f"({a} == 0)",
}  # fmt: skip
_TESTS: dict[str, Expression] = {
    "isnan": lambda a: f"({a} != {a})",
    "isinf": lambda a: f'(tl.abs({a}) == float("inf"))',
    "signbit": lambda a: f"(signed({_like('1.0', a)}, {a} * 1.0) < 0.0)",
    "isfinite": lambda a: f'(tl.abs({a}) < float("inf"))',
}

SHIFTS = [op for name in ("bitwise_left_shift", "bitwise_right_shift", "__lshift__", "__rshift__") for op in overloads(name)]

# operator -> (what its operands become, expression): "result": the result's dtype, "common": that of the operands together, "bool".
TABLE: dict[Any, tuple[str, Expression]] = {
    **{op: ("result", e) for name, e in {**_ARITHMETIC, **_FLOATING}.items() for op in overloads(name)},
    **{op: ("common", _infix(sign)) for name, sign in _COMPARISONS.items() for op in overloads(name)},
    **{op: ("bool", e) for name, e in _LOGICAL.items() for op in overloads(name)},
    **{op: ("common", e) for name, e in _TESTS.items() for op in overloads(name)},
    aten.bitwise_not.default: ("result", lambda a: f"(~{a})"),
}
