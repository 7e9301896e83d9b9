"""Every operator that the lowering knows, in a loop, on `native` and `stepwise` against `reference`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fusedrnn import executors
from fusedrnn.capture import ops
from fusedrnn.lowering import operators, pointwise
from fusedrnn.optimise.graph import aten

from .compare import MODES, STEPS, WIDTH, Case, Values, check

pytestmark = pytest.mark.usefixtures("float64")

B = 3
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, *INTEGERS, torch.bool)


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


def _sample(op: Any, dtypes: tuple[torch.dtype, ...]) -> list[Any]:
    """Arguments for an operator: names of values, and 3 for numbers."""
    arguments: list[Any] = []
    tensors = iter(dtypes)
    for argument in op._schema.arguments:
        if argument.kwarg_only or argument.has_default_value():
            continue
        arguments.append(f"{next(tensors)}{len(arguments)}" if str(argument.type) == "Tensor" else 3)
    return arguments


def _value(op: Any, name: str) -> torch.Tensor:
    """``[STEPS, B, WIDTH]`` of the dtype and for the place that a name says, fit for the operator."""
    dtype, place = next(dtype for dtype in DTYPES if name[:-1] == str(dtype)), int(name[-1])
    made = values_of(dtype, 10 * DTYPES.index(dtype) + place, WIDTH)
    whole = not dtype.is_floating_point and dtype != torch.bool
    if "shift" in str(op) and place and whole:
        made = made % 80 - (8 if dtype != torch.uint8 else 0)
    if whole and place and any(word in str(op) for word in ("div", "remainder", "fmod")):
        made = torch.where(made == 0, torch.ones_like(made), made)  # torch raises, C++ does not
    if "pow" in str(op) and whole:
        made = made % 5
    return made


def _call(op: Any, arguments: list[Any], v: Values) -> Any:
    return op(*[v[f"{op}|{argument}"] if isinstance(argument, str) else argument for argument in arguments])


def pointwise_cases(op: Any, dtypes: Sequence[torch.dtype], mixed: bool) -> tuple[dict[str, Case], Values]:
    """The operator on each dtype that torch has it for, on mixed ones, and with several numbers; and the values for that."""
    tensors = sum(str(argument.type) == "Tensor" for argument in op._schema.arguments)
    kinds = [(dtype,) * tensors for dtype in dtypes]
    if tensors == 2 and mixed:
        kinds += [(torch.float64, torch.float32), (torch.int32, torch.float32), (torch.int64, torch.int8), (torch.bool, torch.int64)]
        kinds += [(torch.bfloat16, torch.float32), (torch.uint8, torch.int8), (torch.float32, torch.bool), (torch.bfloat16, torch.float16)]
    found: dict[str, Case] = {}
    data: Values = {}
    for chosen in kinds:
        arguments = _sample(op, chosen)
        numbers = [3, 1, 0, -1, 70] if "shift" in str(op) else [3, -2, 2.5, True]
        for number in numbers if 3 in arguments else [3]:
            given = [number if argument == 3 else argument for argument in arguments]
            values = {f"{op}|{name}": _value(op, name) for name in given if isinstance(name, str)}
            try:
                made = _call(op, given, {name: tensor[0] for name, tensor in values.items()})
                with FakeTensorMode() as mode:  # which knows less than torch does of bools
                    fake = _call(op, given, {name: mode.from_tensor(tensor[0]) for name, tensor in values.items()})
            except (RuntimeError, TypeError):
                continue
            if made.dtype in pointwise.C_TYPES and fake.dtype == made.dtype:
                found[f"{op}({', '.join(map(str, given))})"] = functools.partial(_call, op, given)
                data |= values
    return found, data


TABLED = [op for op in pointwise.TABLE if op not in NUMBERS_ONLY]
GROUPS = 8


def test_the_tabled_operators_have_cases():
    assert [str(op) for op in TABLED if not pointwise_cases(op, DTYPES, mixed=False)[0]] == []


def _check_pointwise(group: Sequence[Any], dtypes: Callable[[int], Sequence[torch.dtype]], mixed: bool, mode: str) -> None:
    cases: dict[str, Case] = {}
    data = plain()
    for place, op in enumerate(group):
        more, values = pointwise_cases(op, dtypes(place), mixed)
        cases |= more
        data |= values
    check(cases, data, mode=mode)


@pytest.mark.parametrize("group", range(GROUPS))
def test_pointwise(group):
    """Each operator on float64 and on two other dtypes."""

    def dtypes(place: int) -> Sequence[torch.dtype]:
        return torch.float64, (*FLOATS[1:], torch.bool)[place % 4], INTEGERS[place % 5]

    _check_pointwise(TABLED[group::GROUPS], dtypes, False, MODES[group % 4])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group", range(4 * GROUPS))
def test_pointwise_on_every_dtype(group, mode):
    _check_pointwise(TABLED[group :: 4 * GROUPS], lambda _: DTYPES, True, mode)
