"""Every operator that the lowering knows, in a loop, on `native` and `stepwise` against `reference`."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from fusedrnn import executors
from fusedrnn.capture import ops
from fusedrnn.lowering import operators, pointwise
from fusedrnn.optimise.graph import aten

from .compare import MODES, STEPS, WIDTH, Case, Values, check

pytestmark = pytest.mark.usefixtures("float64")

B = 3
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def values_of(dtype: torch.dtype, seed: int, *shape: int) -> torch.Tensor:
    """``[STEPS, B, *shape]``, with NaN, infinities and zeros where the dtype has them, and ties."""
    draw = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, (STEPS, B, *shape), generator=draw).bool()
    if not dtype.is_floating_point:
        low, high = (0, 256) if dtype == torch.uint8 else (-128, 128)
        made = torch.randint(low, high, (STEPS, B, *shape), generator=draw)
        small = torch.randint(0 if dtype == torch.uint8 else -4, 5, (STEPS, B, *shape), generator=draw)
        return torch.where(torch.rand(made.shape, generator=draw) < 0.5, made, small).to(dtype)
    made = torch.randn(STEPS, B, *shape, generator=draw, dtype=torch.float64) * 2
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 700.0, -700.0, 1e-3])
    pick = torch.randint(0, len(odd), made.shape, generator=draw)
    return torch.where(torch.rand(made.shape, generator=draw) < 0.4, odd[pick], made).to(dtype)


def plain() -> Values:
    draw = torch.Generator().manual_seed(1)
    return {"x": torch.randn(STEPS, B, WIDTH, generator=draw)}


# Pointwise ------------------------------------------------------------------------------------------------------------------

# Those of two Python numbers, or of lists, make no tensor: a step has no node of them.
NUMBERS_ONLY = {op for op in pointwise.TABLE if not any("Tensor" in str(a.type) for a in op._schema.arguments)} | {
    aten.eq.Tensor_list, aten.ne.Tensor_list
}  # fmt: skip


def _sample(op: Any, dtypes: tuple[torch.dtype, ...]) -> tuple[list[Any], bool] | None:
    """Arguments for an operator as names of values or as numbers."""
    arguments: list[Any] = []
    tensors = iter(dtypes)
    for argument in op._schema.arguments:
        if argument.kwarg_only or argument.has_default_value():
            continue
        kind = str(argument.type)
        if kind == "Tensor":
            arguments.append(f"{next(tensors)}{len(arguments)}")
        else:
            arguments.append(3)
    return arguments


def _call(op: Any, arguments: list[Any], v: Values) -> Any:
    return op(*[v[argument] if isinstance(argument, str) else argument for argument in arguments])


def pointwise_cases(op: Any, data: Values) -> dict[str, Case]:
    """The operator on each dtype that torch has it for, on mixed ones, and with other numbers."""
    tensors = sum(str(argument.type) == "Tensor" for argument in op._schema.arguments)
    dtypes = [(d,) * tensors for d in (*FLOATS, *INTEGERS, torch.bool)]
    if tensors == 2:
        dtypes += [(torch.float64, torch.float32), (torch.int32, torch.float32), (torch.int64, torch.int8), (torch.bool, torch.int64)]
        dtypes += [(torch.bfloat16, torch.float32), (torch.uint8, torch.int8), (torch.float32, torch.bool), (torch.bfloat16, torch.float16)]
    shift = "shift" in str(op)
    found: dict[str, Case] = {}
    for kinds in dtypes:
        arguments = _sample(op, kinds)
        numbers = [3] if not any(isinstance(a, int) for a in arguments) else [3, 1, 0] if shift else [3, -2, 2.5, True]
        for number in numbers:
            given = [number if isinstance(a, int) else a for a in arguments]
            try:
                made = _call(op, given, {name: tensor[0] for name, tensor in data.items()})
            except (RuntimeError, TypeError):
                continue
            if made.dtype not in pointwise.C_TYPES:
                continue
            found[f"{op}({', '.join(map(str, given))})"] = functools.partial(_call, op, given)
    return found


def pointwise_data(op: Any) -> Values:
    """Values for each dtype and place."""
    name = str(op)
    data = plain()
    for place in range(2):
        for seed, dtype in enumerate((*FLOATS, *INTEGERS, torch.bool)):
            made = values_of(dtype, 10 * seed + place, WIDTH)
            if "shift" in name and place:
                made = made % 7
            if not dtype.is_floating_point and dtype != torch.bool and place and any(w in name for w in ("div", "remainder", "fmod")):
                made = torch.where(made == 0, torch.ones_like(made), made)  # torch raises, C++ cannot
            if "pow" in name and not dtype.is_floating_point and dtype != torch.bool:
                made = made % 5
            data[f"{dtype}{place}"] = made
    return data


GROUPS = 8
TABLED = [op for op in pointwise.TABLE if op not in NUMBERS_ONLY]


def test_the_tabled_operators_have_cases():
    without = [str(op) for op in TABLED if not pointwise_cases(op, pointwise_data(op))]
    assert without == []


@pytest.mark.parametrize("op", TABLED, ids=str)
def test_pointwise(op, lowered):
    data = pointwise_data(op)
    cases = pointwise_cases(op, data)
    used = {argument for case in cases.values() for argument in case.args[1] if isinstance(argument, str)} | {"x"}
    check(cases, {name: tensor for name, tensor in data.items() if name in used})


@pytest.fixture
def lowered(monkeypatch):
    """Collects what the lowering meets."""
    met: set[Any] = set()
    lower = operators.lower

    def noted(lowering: Any) -> Any:
        met.add(lowering.node.target)
        return lower(lowering)

    monkeypatch.setattr(operators, "lower", noted)
    return met
