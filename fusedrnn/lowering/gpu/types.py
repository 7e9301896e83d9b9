"""Dtypes in a kernel. In: torch's dtype, an expression; out: Triton's type, and the expression as another dtype by torch's rules.

Half precisions are float32 in registers and are rounded where they are stored, multiplied or converted to, not after every operator.
"""

from __future__ import annotations

import math
from typing import Any

import torch

HALVES = (torch.float16, torch.bfloat16)
REGISTERS = {
    torch.float32: "tl.float32", torch.float16: "tl.float32", torch.bfloat16: "tl.float32", torch.bool: "tl.int1", torch.int64: "tl.int64",
    torch.int32: "tl.int32", torch.int16: "tl.int16", torch.int8: "tl.int8", torch.uint8: "tl.uint8",
}  # fmt: skip
MEMORY = {**REGISTERS, torch.float16: "tl.float16", torch.bfloat16: "tl.bfloat16", torch.bool: "tl.uint8"}


def cast(expression: str, source: torch.dtype, target: torch.dtype) -> str:
    """A value as another dtype: to bool what is not zero, to an integer towards zero, to a half precision rounded."""
    if source == target:
        return expression
    if target == torch.bool:
        return f"({expression} != 0)"
    if target in HALVES:
        return f"({expression}).to({MEMORY[target]}).to(tl.float32)"
    if REGISTERS[source] == REGISTERS[target]:
        return expression
    return f"({expression}).to({REGISTERS[target]})"


def promoted(expression: str, source: torch.dtype, target: torch.dtype) -> str:
    """An operand as the dtype that its operator computes in: half precisions are not rounded on the way."""
    return expression if source.is_floating_point and target.is_floating_point else cast(expression, source, target)


def literal(number: Any, dtype: torch.dtype) -> str:
    """A Python number of a dtype."""
    if dtype == torch.bool:
        return "True" if number else "False"
    if not dtype.is_floating_point:
        return str(int(number))
    number = float(number)
    if math.isnan(number):
        return 'float("nan")'
    if math.isinf(number):
        return 'float("inf")' if number > 0 else '(-float("inf"))'
    return repr(number) if math.copysign(1, number) > 0 else f"({number!r})"


def loaded(expression: str, dtype: torch.dtype) -> str:
    """What `tl.load` gives as it stands in a register."""
    if dtype == torch.bool:
        return f"({expression} != 0)"
    return f"{expression}.to(tl.float32)" if dtype in HALVES else expression


def stored(expression: str, dtype: torch.dtype) -> str:
    """A register as `tl.store` takes it."""
    return f"({expression}).to({MEMORY[dtype]})"


def carried_in(dtype: torch.dtype) -> str:
    """The type in which a leaf goes from step to step."""
    return "tl.int32" if dtype == torch.bool else REGISTERS[dtype]
