"""Every operator that the lowering knows, in a loop, on `native` and `stepwise` against `reference`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import fusedrnn
from fusedrnn import raw_rnn
from fusedrnn.capture import ops
from fusedrnn.errors import PlanError
from fusedrnn.lowering import operators, pointwise
from fusedrnn.optimise.graph import aten

from .compare import MODES, STEPS, WIDTH, Case, Values, check

pytestmark = pytest.mark.usefixtures("float64")

B = 3
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, *INTEGERS, torch.bool)


@functools.cache
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
    aten.eq.Tensor_list,
    aten.ne.Tensor_list,
}


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
            except (RuntimeError, TypeError):
                continue
            if made.dtype in pointwise.C_TYPES and not (
                torch.bool in chosen and any(word in str(op) for word in ("shift", "pow"))
            ):  # tracing refuses
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
    """Each operator on float64 and on another dtype."""

    def dtypes(place: int) -> Sequence[torch.dtype]:
        return torch.float64, (*FLOATS[1:], *INTEGERS, torch.bool)[place % 9]

    _check_pointwise(TABLED[group::GROUPS], dtypes, False, MODES[group % 4])


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("group", range(4 * GROUPS))
def test_pointwise_on_every_dtype(group, mode):
    _check_pointwise(TABLED[group :: 4 * GROUPS], lambda _: DTYPES, True, mode)


# Operators with a rule ------------------------------------------------------------------------------------------------------


def shaped() -> Values:
    """Values of many shapes and dtypes."""
    draw = torch.Generator().manual_seed(2)

    def floats(*shape: int) -> torch.Tensor:
        return torch.randn(STEPS, B, *shape, generator=draw)

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, (STEPS, B, *shape), generator=draw)

    return plain() | {
        "y": floats(4),
        "m": floats(2, 6),
        "q": floats(3, 4),
        "r": floats(4, 2),
        "s": floats(),
        "one": floats(1, 4),
        "n": whole(9, 4) - 4,
        "d": whole(4, 4) + 1,
        "k": whole(4),
        "pair": whole(4, 2),
        "at": whole(4, 3, 2),
        "b": whole(2, 4).bool(),
        "odd": values_of(torch.float64, 5, 6),
        "ties": whole(3, 6).double(),
        "flag": whole(2).bool(),
        "many": whole(3, 2, 6),
        "i32": whole(4).int(),
        "half": floats(4).bfloat16(),
        "f16": floats(4).half(),
        "single": floats(4).float(),
        "u8": whole(256, 4).to(torch.uint8),
        "seed": whole(1 << 40),
        "perm": torch.rand(STEPS, B, 4, generator=draw).argsort(-1),
    }


def known() -> Values:
    """What is the same at every step."""
    draw = torch.Generator().manual_seed(3)
    return {
        "w": torch.randn(4, 4, generator=draw),
        "table": torch.randn(5, 4, generator=draw),
        "w3": torch.randn(3, 4, 4, generator=draw),
        "fixed": torch.tensor([2, 0]),
        "long": torch.randn(6, 4, generator=draw),
        "u8s": torch.tensor([250, 3, 7, 9, 1, 2], dtype=torch.uint8),
        "mask": torch.tensor([True, False, True, True]),
        "single_w": torch.randn(4, 4, generator=draw).float(),
    }


prims = torch.ops.prims


def assigned(x: torch.Tensor, index: Any, new: Any) -> torch.Tensor:
    """A copy of x with ``x[index] = new``."""
    made = x.clone()
    made[index] = new
    return made


def attended(v: Values) -> torch.Tensor:
    """``[B, 4]``: attention of two heads over q, without weights, so that torch takes its fused function."""
    places = v["q"].transpose(0, 1)
    made, _ = torch.nn.functional.multi_head_attention_forward(
        v["x"][None], places, places, 4, 2, v["long"].repeat(2, 1), None, None, None, False, 0.0, v["w"], None, need_weights=False
    )
    return made[0]


# For each operator loops that call it. A new rule without one fails `test_the_rules_have_cases`.
CASES: dict[Any, list[Case]] = {
    aten.div.Tensor_mode: [
        lambda v: aten.div.Tensor_mode(v["x"], v["y"], rounding_mode="floor"),
        lambda v: aten.div.Tensor_mode(v["n"], v["d"], rounding_mode="floor"),
        lambda v: aten.div.Tensor_mode(v["n"], -v["d"], rounding_mode="trunc"),
        lambda v: aten.div.Tensor_mode(v["x"], v["y"], rounding_mode="trunc"),
        lambda v: aten.div.Tensor_mode(v["n"], v["d"], rounding_mode=None),
        lambda v: aten.div.Tensor_mode(v["n"], -v["d"], rounding_mode="floor"),
        lambda v: aten.div.Tensor_mode(v["odd"], v["ties"], rounding_mode="floor"),
        lambda v: aten.div.Tensor_mode(v["half"], v["f16"], rounding_mode="trunc"),
    ],
    aten.div.Scalar_mode: [
        lambda v: aten.div.Scalar_mode(v["n"], -3, rounding_mode="floor"),
        lambda v: aten.div.Scalar_mode(v["n"], 3, rounding_mode="trunc"),
        lambda v: aten.div.Scalar_mode(v["n"], 2.5, rounding_mode="floor"),
        lambda v: aten.div.Scalar_mode(v["u8"], 7, rounding_mode="floor"),
    ],
    aten.where.self: [
        lambda v: torch.where(v["b"], v["x"], v["y"]),
        lambda v: torch.where(v["flag"][:, None], v["x"], v["w"][0]),
        lambda v: torch.where(v["b"], v["n"], v["x"]),
        lambda v: torch.where(v["mask"], v["half"], v["single"]),
    ],
    aten.where.ScalarSelf: [lambda v: aten.where.ScalarSelf(v["b"], 2.5, v["x"]), lambda v: aten.where.ScalarSelf(v["b"], 2, v["n"])],
    aten.where.ScalarOther: [lambda v: aten.where.ScalarOther(v["b"], v["x"], -1), lambda v: aten.where.ScalarOther(v["b"], v["n"], 0.5)],
    aten.where.Scalar: [lambda v: aten.where.Scalar(v["b"], 2.5, -1), lambda v: aten.where.Scalar(v["b"], 1, 0)],
    aten.masked_fill.Scalar: [lambda v: v["x"].masked_fill(v["b"], -torch.inf), lambda v: v["n"].masked_fill(v["flag"][:, None], 7)],
    aten.masked_fill.Tensor: [lambda v: v["x"].masked_fill(v["b"], v["w"][0, 0]), lambda v: v["half"].masked_fill(v["mask"], v["w"][0, 1])],
    aten.clamp.default: [
        lambda v: v["x"].clamp(-0.5, 0.25),
        lambda v: v["n"].clamp(-1, 2),
        lambda v: v["odd"].clamp(-1, 1),
        lambda v: v["half"].clamp(max=0.1),
    ],
    aten.clamp.Tensor: [
        lambda v: torch.clamp(v["x"], v["y"] - 1, v["y"]),
        lambda v: torch.clamp(v["x"], min=v["y"]),
        lambda v: torch.clamp(v["x"], max=v["s"][:, None]),
    ],
    aten.clamp_min.default: [lambda v: v["x"].clamp_min(0.1), lambda v: v["odd"].clamp_min(0)],
    aten.clamp_max.default: [lambda v: v["x"].clamp_max(0.1), lambda v: v["n"].clamp_max(2)],
    aten.clamp_min.Tensor: [lambda v: aten.clamp_min.Tensor(v["x"], v["y"])],
    aten.clamp_max.Tensor: [lambda v: aten.clamp_max.Tensor(v["x"], v["y"])],
    aten._to_copy.default: [
        lambda v: [v["x"].to(dtype) for dtype in DTYPES if dtype != torch.uint8],
        lambda v: [v["n"].to(dtype) for dtype in DTYPES],
        lambda v: [v["u8"].to(dtype) for dtype in DTYPES],
        lambda v: [v["half"].to(dtype) for dtype in DTYPES if dtype != torch.uint8],
        lambda v: v["odd"].bool(),
        lambda v: v["single"].double() * 3,
        lambda v: (v["u8"] - 200).long(),
        lambda v: v["b"].to(torch.uint8) * 200 + 100,
    ],
    prims.convert_element_type.default: [
        lambda v: prims.convert_element_type(v["x"], torch.float16),
        lambda v: prims.convert_element_type(v["n"], torch.int8),
    ],
    aten.clone.default: [lambda v: v["x"].clone()],
    aten.detach.default: [lambda v: v["x"].detach() + 1],
    aten.alias.default: [lambda v: aten.alias(v["x"]) + 1],
    aten.lift_fresh_copy.default: [lambda v: v["x"] + torch.tensor([1.0, 2.0, 3.0, 4.0])],
    aten.lift_fresh.default: [lambda v: v["x"] + torch.tensor(2.5)],
    ops.guard: [lambda v: v["h"] * 2],
    aten.copy.default: [
        lambda v: aten.copy(v["x"], v["s"][:, None]),
        lambda v: aten.copy(v["n"], v["x"] * 3),
        lambda v: aten.copy(v["half"], v["x"]),
    ],
    aten.fill.Tensor: [lambda v: aten.fill.Tensor(v["x"], v["w"][0, 0]), lambda v: aten.fill.Tensor(v["half"], v["w"][0, 0])],
    aten.fill.Scalar: [lambda v: aten.fill.Scalar(v["x"], 3), lambda v: aten.fill.Scalar(v["n"], -3)],
    ops.quiet: [lambda v: v["h"] - 2],
    aten.full.default: [lambda v: torch.full((v["x"].shape[0], 2), 2.5), lambda v: torch.full((3, 4), 7) * v["q"]],
    aten.full_like.default: [
        lambda v: torch.full_like(v["x"], 2.5),
        lambda v: torch.full_like(v["q"], torch.inf),
        lambda v: torch.full_like(v["u8"], 200),
    ],
    aten.zeros.default: [lambda v: torch.zeros(v["x"].shape[0], 2), lambda v: torch.zeros(4) + v["x"]],
    aten.ones.default: [lambda v: torch.ones(v["x"].shape[0], 2, dtype=torch.int32), lambda v: torch.ones(4) + v["x"]],
    aten.zeros_like.default: [lambda v: torch.zeros_like(v["q"])],
    aten.ones_like.default: [lambda v: torch.ones_like(v["b"]), lambda v: torch.ones_like(v["half"])],
    aten.scalar_tensor.default: [
        lambda v: torch.scalar_tensor(2.5) * v["x"],
        lambda v: torch.where(v["b"], torch.scalar_tensor(-torch.inf), v["x"]),
    ],
    aten.new_zeros.default: [lambda v: v["x"].new_zeros(v["x"].shape[0], 2), lambda v: v["x"].new_zeros(4) + v["x"]],
    aten.new_ones.default: [lambda v: v["n"].new_ones(v["x"].shape[0], 2), lambda v: v["x"].new_ones(4) + v["x"]],
    aten.new_full.default: [lambda v: v["x"].new_full((v["x"].shape[0], 2), -1.5), lambda v: v["n"].new_full((4,), 3) + v["x"]],
    aten.empty.memory_format: [lambda v: torch.empty(v["x"].shape[0], 2).fill_(2.0), lambda v: torch.empty(4).copy_(v["w"][0]) + v["x"]],
    aten.empty_like.default: [lambda v: torch.empty_like(v["x"]).copy_(v["y"]), lambda v: torch.empty_like(v["x"]).fill_(1.5)],
    aten.arange.default: [lambda v: v["x"] * torch.arange(4), lambda v: torch.arange(v["x"].shape[0]) * v["k"]],
    aten.arange.start: [lambda v: v["x"] * torch.arange(-2, 2), lambda v: v["x"] * torch.arange(1.5, 5.0)],
    aten.arange.start_step: [
        lambda v: v["x"] * torch.arange(-4, 4, 2),
        lambda v: v["x"] * torch.arange(9.0, 1.0, -2.0),
        lambda v: v["n"] + torch.arange(7, -1, -2),
    ],
    aten.view.default: [
        lambda v: v["m"].reshape(-1, 12),
        lambda v: v["m"].reshape(-1, 3, 4) * 2,
        lambda v: v["m"].unflatten(2, (3, 2)).tanh(),
        lambda v: (v["m"] * v["s"][:, None, None]).reshape(-1, 4, 3),
        lambda v: v["q"].view(-1, 4).reshape(-1, 3, 4) + 1,
        lambda v: v["m"].flatten(1).unflatten(1, (6, 2)).sum(1),
        lambda v: v["m"].transpose(1, 2).reshape(-1, 12),
    ],
    aten._unsafe_view.default: [lambda v: aten._unsafe_view(v["m"], [v["m"].shape[0], 3, 4]) * 2],
    aten.reshape.default: [lambda v: v["q"].transpose(1, 2).reshape(-1, 2, 6), lambda v: v["one"].reshape(-1, 2, 2)],
    aten.unsqueeze.default: [lambda v: v["x"].unsqueeze(1), lambda v: v["x"].unsqueeze(-1) * 2, lambda v: v["s"][:, None, None] + v["m"]],
    aten.squeeze.default: [lambda v: v["x"] + v["w"][:1].squeeze(), lambda v: v["x"] + (v["time"] * v["w"][:1]).squeeze()],
    aten.squeeze.dim: [lambda v: v["one"].squeeze(1), lambda v: v["one"].squeeze(2), lambda v: (v["one"] * 2).squeeze(-2)],
    aten.squeeze.dims: [lambda v: v["one"].unsqueeze(-1).squeeze((1, -1)), lambda v: v["x"][:, None, :, None].squeeze((1, 3)) + 1],
    aten.permute.default: [
        lambda v: v["q"].permute(0, 2, 1),
        lambda v: v["m"].reshape(-1, 2, 3, 2).permute(0, 3, 1, 2) * 2,
        lambda v: v["q"].permute(1, 0, 2).sum(0),
        lambda v: v["m"].reshape(-1, 2, 3, 2).permute(0, 3, 2, 1).reshape(-1, 12),
    ],
    aten.t.default: [lambda v: v["x"].t().tanh().t(), lambda v: v["x"] @ (v["w"] * v["time"]).t()],
    aten.transpose.int: [
        lambda v: v["q"].transpose(-1, -2) * 2,
        lambda v: v["m"].transpose(0, 1).amax(0),
        lambda v: v["m"].transpose(0, 2).tanh().transpose(0, 2),
    ],
    aten.numpy_T.default: [lambda v: v["x"].T.exp().T, lambda v: v["x"] @ (v["w"] * v["time"]).T],
    aten.expand.default: [
        lambda v: v["one"].expand(-1, 3, 4),
        lambda v: v["s"][:, None].expand(-1, 4) * 2,
        lambda v: v["w"][0].expand(v["x"].shape[0], 4),
        lambda v: (v["w"][0] * v["time"]).expand(v["x"].shape[0], 4),
        lambda v: v["s"][:, None, None].expand(-1, 2, 3).clone(),
    ],
    aten.select.int: [
        lambda v: v["q"][:, -1],
        lambda v: v["q"][:, 1, -3],
        lambda v: v["m"].select(2, 5) * 2,
        lambda v: v["x"] + v["w"][-2],
        lambda v: v["q"][:, v["time"] % 3],
    ],
    aten.slice.Tensor: [
        lambda v: v["m"][:, :, 1:5:2],
        lambda v: v["m"][:, :, -4:-1],
        lambda v: v["m"][:, -1:, ::5],
        lambda v: v["x"][:, 2:100],
        lambda v: v["x"][:, -100:3] * 2,
        lambda v: v["x"][:, 3:1],
        lambda v: v["x"] + v["table"][-3, :],
        lambda v: v["x"][:] + 1,
        lambda v: v["x"] + v["table"][1:4:2].sum(0) * v["time"],
    ],
    aten.flip.default: [
        lambda v: v["m"].flip(-1),
        lambda v: v["m"].flip(1, 2) * 2,
        lambda v: v["x"] * v["table"].flip(0)[1],
        lambda v: v["q"].flip(1)[:, 0],
    ],
    aten.cat.default: [
        lambda v: torch.cat([v["x"], v["y"][:, :1], v["m"].flatten(1)], 1),
        lambda v: torch.cat([v["q"], v["one"]], 1),
        lambda v: torch.cat([v["x"], v["n"]], -1),
        lambda v: torch.cat([v["q"], v["q"] * 2], -1).sum(1),
        lambda v: torch.stack([v["x"], v["y"]], 1),
        lambda v: torch.stack([v["x"], v["y"] + 1], 2),
        lambda v: torch.cat([v["half"], v["single"]], -1),
        lambda v: torch.cat([v["b"], v["b"] ^ True], 1),
        lambda v: torch.cat([v["x"][:, :0], v["y"]], 1),
        lambda v: torch.cat([v["x"], v["w"][0].expand(v["x"].shape[0], 4)], 1),
        lambda v: torch.cat([torch.zeros(v["x"].shape[0], 1), v["x"]], 1),
    ],
    ops.read: [
        lambda v: v["x"] * v["long"][v["time"]],
        lambda v: v["x"] * v["long"].t()[:, v["time"]].sum(),
        lambda v: v["m"][:, :, v["time"]],
        lambda v: v["q"][:, v["time"] // 9 - 1],
        lambda v: v["x"] * v["long"].select(0, 2),
        lambda v: v["u8s"][v["time"]] * v["u8"],
    ],
    aten.embedding.default: [
        lambda v: torch.nn.functional.embedding(v["k"], v["table"]),
        lambda v: torch.nn.functional.embedding(v["at"], v["table"]) * 2,
        lambda v: torch.nn.functional.embedding(v["i32"], v["table"]),
        lambda v: torch.nn.functional.embedding(v["h"].argmax(-1), v["table"]),
    ],
    ops.within: [],  # the embedding of a token that is carried: see the token loops of test_random_programs
    aten.index_select.default: [
        lambda v: v["q"].index_select(2, v["fixed"]),
        lambda v: v["table"].index_select(0, v["k"]),
        lambda v: v["x"] * v["w"].index_select(1, v["fixed"]).sum(),
    ],
    aten.gather.default: [
        lambda v: v["x"].gather(1, v["pair"]),
        lambda v: v["q"].gather(2, v["at"] % 4),
        lambda v: v["q"].gather(
            1,
            v["at"].transpose(1, 2)[
                :,
                :,
                :,
            ]
            % 3,
        ),
        lambda v: torch.take_along_dim(v["x"], v["perm"], 1) * 2,
        lambda v: v["x"].gather(1, v["k"][:, None]).squeeze(1),
    ],
    aten.index.Tensor: [
        lambda v: v["table"][v["k"]],
        lambda v: v["table"][v["at"]],
        lambda v: v["w"][v["k"], 1],
        lambda v: v["w"][v["pair"][:, 0], v["pair"][:, 1]],
        lambda v: v["x"][torch.arange(v["x"].shape[0]), v["k"]],
        lambda v: v["q"][torch.arange(v["x"].shape[0]), v["k"] % 3],
        lambda v: v["x"][:, v["fixed"]],
        lambda v: v["q"][:, :, v["fixed"]],
        lambda v: v["q"][:, v["fixed"], v["fixed"]],
        lambda v: v["q"][torch.arange(v["x"].shape[0]), :, v["k"]],
        lambda v: v["q"][torch.arange(v["x"].shape[0])[:, None], v["pair"] % 3],
        lambda v: v["table"][v["k"] - 4],
        lambda v: v["q"][:, [0, -1]],
        lambda v: v["w3"][v["k"] % 3, :, v["k"]],
        lambda v: v["q"][:, v["fixed"][:, None], v["fixed"]],
        lambda v: v["w"][:, v["k"]].t(),
    ],
    aten.index_put.default: [
        lambda v: v["x"].index_put((torch.arange(v["x"].shape[0]), v["k"]), v["s"]),
        lambda v: v["q"].index_put((torch.arange(v["x"].shape[0]), v["k"] % 3), v["y"]),
        lambda v: v["x"].index_put((torch.arange(v["x"].shape[0]), v["k"]), v["s"], accumulate=True),
        lambda v: v["x"].index_put((torch.arange(v["x"].shape[0])[:, None], v["pair"]), v["y"][:, :2], accumulate=True),
        lambda v: v["half"].index_put((torch.arange(v["x"].shape[0])[:, None], v["pair"]), v["half"][:, :2], accumulate=True),
        lambda v: v["b"].index_put((torch.arange(v["x"].shape[0]), v["k"]), torch.tensor(True)),
        lambda v: v["x"].index_put((torch.arange(v["x"].shape[0]), v["k"]), v["w"][0, 0]),
        lambda v: assigned(v["x"], (slice(None), v["fixed"]), v["y"][:, :2]),
        lambda v: assigned(v["x"], (slice(None), v["fixed"]), 0.5),
        lambda v: assigned(v["x"], (slice(None), v["fixed"]), v["w"][:1, :2]),
        lambda v: assigned(v["q"], (slice(None), v["fixed"]), v["q"][:, 1:] * 2),
        lambda v: assigned(v["q"], (slice(None), slice(None), v["fixed"]), v["x"][:, :3, None]),
        lambda v: assigned(v["q"], (slice(None), v["fixed"], v["fixed"]), v["y"][:, :2]),
        lambda v: assigned(v["q"], (slice(None), v["fixed"][:, None], v["fixed"]), v["r"][:, :2]),
        lambda v: assigned(v["q"][:, None], (slice(None), 0, slice(None), v["fixed"]), v["q"][:, :, :2]),
        lambda v: v["x"].index_add(1, v["fixed"], v["y"][:, :2]),
        lambda v: v["x"].index_copy(1, v["fixed"], v["y"][:, :2]),
        lambda v: v["x"].index_fill(1, v["fixed"], 0.5),
        lambda v: v["half"].index_add(1, v["fixed"].repeat(2), v["half"]),
    ],
    aten.scatter.src: [
        lambda v: v["x"].scatter(1, v["pair"], v["y"]),
        lambda v: v["q"].scatter(2, v["at"], v["q"] * 2),
        lambda v: v["half"].scatter(1, v["perm"], v["half"] * 2),
    ],
    aten.scatter.value: [
        lambda v: v["x"].scatter(1, v["pair"], 7.0),
        lambda v: v["b"].scatter(1, v["k"][:, None], True),
        lambda v: v["n"].scatter(1, v["k"][:, None], 3),
    ],
    aten.scatter_add.default: [
        lambda v: v["x"].scatter_add(1, v["pair"], v["y"]),
        lambda v: v["n"].scatter_add(1, v["perm"], v["n"]),
        lambda v: torch.zeros_like(v["m"]).scatter_add(2, v["many"], v["m"]),
        lambda v: v["half"].scatter_add(1, v["perm"], v["half"]),
    ],
    aten.slice_scatter.default: [
        lambda v: aten.slice_scatter(v["x"], v["y"][:, :2], 1, 1, 3),
        lambda v: aten.slice_scatter(v["m"], v["m"][:, :, :2] * 3, 2, 1, 5, 2),
        lambda v: aten.slice_scatter(v["x"], v["y"][:, :2], 1, -2),
        lambda v: aten.slice_scatter(v["x"], v["y"] * 2, 0),
        lambda v: aten.slice_scatter(v["half"], v["half"][:, 1:], 1, 0, -1),
    ],
    aten.select_scatter.default: [
        lambda v: aten.select_scatter(v["x"], v["s"], 1, -1),
        lambda v: aten.select_scatter(v["q"], v["y"], 1, 1),
        lambda v: aten.select_scatter(v["q"], v["y"][:, :3], 2, 0),
    ],
    aten.constant_pad_nd.default: [
        lambda v: torch.nn.functional.pad(v["x"], (1, 2)),
        lambda v: torch.nn.functional.pad(v["q"], (0, 1, 2, 0), value=-1.5),
        lambda v: torch.nn.functional.pad(v["n"], (1, 0), value=9),
        lambda v: torch.nn.functional.pad(v["half"], (1, 0), value=0.3),
        lambda v: torch.nn.functional.pad(v["b"], (0, 1), value=True),
    ],
    aten.sum.default: [lambda v: v["x"] + v["w"].sum(), lambda v: v["x"] + (v["w"] * v["time"]).sum()],
    aten.sum.dim_IntList: [
        lambda v: v["x"].sum(1),
        lambda v: v["m"].sum((1, 2)),
        lambda v: v["m"].sum(1, keepdim=True),
        lambda v: v["m"].sum((-1, 1), keepdim=True),
        lambda v: v["b"].sum(1),
        lambda v: v["n"].sum(1),
        lambda v: v["u8"].sum(1),
        lambda v: v["half"].sum(1),
        lambda v: v["x"].sum(1, dtype=torch.float32),
        lambda v: v["q"].transpose(1, 2).sum(1),
        lambda v: v["x"][:, :0].sum(1),
        lambda v: v["m"].reshape(-1, 2, 3, 2).sum((1, 3)),
        lambda v: v["x"] + (v["w"] * v["time"]).sum(0),
        lambda v: v["half"].sum(1, dtype=torch.float32),
    ],
    aten.prod.default: [lambda v: v["x"] + v["w"].prod(), lambda v: v["x"] + (v["w"] * v["time"]).prod()],
    aten.prod.dim_int: [
        lambda v: v["x"].prod(1),
        lambda v: v["q"].prod(1, keepdim=True),
        lambda v: v["n"].prod(-1),
        lambda v: v["b"].prod(1),
    ],
    aten.mean.default: [lambda v: v["x"] + v["w"].mean(), lambda v: v["x"] + (v["w"] * v["time"]).mean()],
    aten.mean.dim: [
        lambda v: v["x"].mean(1),
        lambda v: v["m"].mean((1, 2), keepdim=True),
        lambda v: v["half"].mean(1),
        lambda v: v["f16"].mean(1, keepdim=True),
        lambda v: v["n"].mean(1, dtype=torch.float64),
    ],
    aten.any.default: [lambda v: v["x"] * v["mask"].any(), lambda v: v["x"] * (v["w"] > v["time"]).any()],
    aten.any.dim: [lambda v: v["b"].any(1), lambda v: v["n"].any(1, keepdim=True), lambda v: v["odd"].any(1), lambda v: v["u8"].any(1)],
    aten.any.dims: [lambda v: (v["m"] > 1).any((1, 2)), lambda v: (v["m"] > 1).any((1, 2), keepdim=True)],
    aten.all.default: [lambda v: v["x"] * v["mask"].all(), lambda v: v["x"] * (v["w"] < v["time"]).all()],
    aten.all.dim: [lambda v: v["b"].all(1), lambda v: v["n"].all(1, keepdim=True), lambda v: v["x"].all(1)],
    aten.all.dims: [lambda v: (v["m"] > -1).all((1, 2)), lambda v: (v["m"] > -1).all((1, 2), keepdim=True)],
    aten.amax.default: [
        lambda v: v["odd"].amax(1),
        lambda v: v["m"].amax((1, 2), keepdim=True),
        lambda v: v["n"].amax(1),
        lambda v: v["half"].amax(1),
        lambda v: v["b"].amax(1),
        lambda v: v["u8"].amax(1),
    ],
    aten.amin.default: [
        lambda v: v["odd"].amin(1),
        lambda v: v["m"].amin((1, 2)),
        lambda v: v["n"].amin(1),
        lambda v: v["f16"].amin(1),
        lambda v: v["b"].amin(1),
        lambda v: v["n"].to(torch.int8).amin(1),
    ],
    aten.max.default: [lambda v: v["x"] + v["w"].max(), lambda v: v["x"] + (v["w"] * v["time"]).max()],
    aten.min.default: [lambda v: v["x"] + v["w"].min(), lambda v: v["x"] + (v["w"] * v["time"]).min()],
    aten.argmax.default: [
        lambda v: v["x"].argmax(1),
        lambda v: v["ties"].argmax(1),
        lambda v: v["odd"].argmax(1),
        lambda v: v["m"].argmax(1, keepdim=True),
        lambda v: v["n"].argmax(-1),
        lambda v: v["half"].argmax(1),
        lambda v: (v["w"] * v["time"]).argmax() + v["k"],
        lambda v: v["many"].argmax(2),
        lambda v: (v["odd"] * torch.nan).argmax(1),
        lambda v: torch.full_like(v["x"], -torch.inf).argmax(1),
        lambda v: v["ties"].float().argmax(-1),
        lambda v: v["u8"].argmax(1),
        lambda v: v["q"].transpose(1, 2).argmax(1),
    ],
    aten.argmin.default: [
        lambda v: v["x"].argmin(1),
        lambda v: v["ties"].argmin(1),
        lambda v: v["odd"].argmin(1),
        lambda v: v["m"].argmin(2, keepdim=True),
        lambda v: v["n"].argmin(-1),
    ],
    aten.cumsum.default: [
        lambda v: v["x"].cumsum(1),
        lambda v: v["m"].cumsum(1),
        lambda v: v["n"].cumsum(1),
        lambda v: v["b"].cumsum(1),
        lambda v: v["half"].cumsum(1),
        lambda v: v["u8"].cumsum(1),
    ],
    aten.cumprod.default: [
        lambda v: v["x"].cumprod(1),
        lambda v: v["m"].cumprod(2),
        lambda v: v["n"].cumprod(1),
        lambda v: v["f16"].cumprod(1),
    ],
    aten.sort.default: [
        lambda v: aten.sort.default(v["x"], -1)[0],
        lambda v: list(torch.sort(v["odd"], 1, descending=True))[:1],
        lambda v: aten.sort.default(v["m"], 1, True),
        lambda v: aten.sort.default(v["perm"]),
    ],
    aten.sort.stable: [
        lambda v: torch.sort(v["ties"], dim=1, stable=True),
        lambda v: torch.sort(v["ties"], dim=-1, descending=True, stable=True),
        lambda v: torch.sort(v["odd"], stable=True),
        lambda v: torch.argsort(v["many"], dim=2, stable=True),
        lambda v: torch.sort(v["u8"], dim=-1, stable=True),
        lambda v: torch.sort(v["half"], dim=-1, stable=True),
    ],
    aten.topk.default: [
        lambda v: v["x"].topk(2),
        lambda v: v["m"].topk(3, 2),
        lambda v: v["q"].topk(1, 1, largest=False),
        lambda v: v["odd"].topk(3)[0],
        lambda v: v["perm"].topk(4),
    ],
    aten.max.dim: [
        lambda v: v["x"].max(1),
        lambda v: v["ties"].max(1),
        lambda v: v["odd"].max(-1),
        lambda v: v["m"].max(1, keepdim=True),
        lambda v: v["q"].max(2),
        lambda v: v["n"].max(1),
        lambda v: v["half"].max(1),
        lambda v: v["b"].max(1),
        lambda v: v["q"].max(2, keepdim=True).values * 2,
        lambda v: v["u8"].max(1, keepdim=True),
    ],
    aten.min.dim: [
        lambda v: v["x"].min(1),
        lambda v: v["ties"].min(1),
        lambda v: v["odd"].min(-1),
        lambda v: v["m"].min(1, keepdim=True),
        lambda v: v["n"].min(1).indices,
    ],
    operator.getitem: [lambda v: v["x"].topk(2)[1] * 3],
    aten.bmm.default: [
        lambda v: torch.bmm(v["q"], v["r"]),
        lambda v: torch.bmm(v["q"], v["x"][:, :, None]).squeeze(2),
        lambda v: torch.bmm(v["x"][:, None], v["r"]),
        lambda v: v["q"] @ v["q"].transpose(1, 2),
        lambda v: torch.bmm(v["x"][:, :, None], v["y"][:, None]),
        lambda v: torch.bmm(v["half"][:, None], v["half"][:, :, None]).flatten(1),
    ],
    aten.mm.default: [
        lambda v: v["x"] @ v["w"],
        lambda v: v["x"] @ v["w"].t(),
        lambda v: (v["w"] @ v["x"].t()).t(),
        lambda v: v["h"] @ v["w"],
        lambda v: v["x"] @ (v["w"] * v["time"]),
        lambda v: v["q"] @ v["w"],
        lambda v: v["h"] @ v["w"][:, :2],
        lambda v: (v["h"] @ v["w"]).tanh() @ v["w"].t(),
        lambda v: v["single"] @ v["single_w"],
        lambda v: v["h"] @ v["w"][:, :0],
        lambda v: v["half"] @ v["single_w"].bfloat16(),
        lambda v: v["f16"] @ v["single_w"].half(),
        lambda v: v["n"] @ v["fixed"].repeat(2)[:, None],
        lambda v: torch.addmm(v["y"], v["h"], v["w"], beta=0.5, alpha=2),
        lambda v: torch.nn.functional.linear(v["h"], v["w"], v["w"][0]),
        lambda v: v["h"] @ v["w"][0],
        lambda v: torch.baddbmm(v["q"], v["q"], v["w3"][:1].expand(v["x"].shape[0], 4, 4)),
    ],
    ops.draw: [
        lambda v: fusedrnn.random.uniform((4,), v["seed"]),
        lambda v: fusedrnn.random.uniform((), v["seed"]),
        lambda v: fusedrnn.random.gumbel((2, 3), v["seed"]),
        lambda v: fusedrnn.random.bernoulli((4,), v["seed"], p=0.3),
        lambda v: fusedrnn.random.uniform((4,), v["seed"], every_step=False),
        lambda v: fusedrnn.random.uniform((4,), v["seed"], dtype=torch.bfloat16),
        lambda v: torch.rand(v["x"].shape[0], 4),
        lambda v: torch.randn_like(v["x"]),
        lambda v: torch.bernoulli(torch.sigmoid(v["x"])),
        lambda v: torch.multinomial(torch.softmax(v["x"], -1), 1),
        lambda v: torch.multinomial(torch.softmax(v["x"], -1), 2),
        lambda v: torch.nn.functional.dropout(v["h"], 0.3),
        lambda v: torch.randint(0, 9, (v["x"].shape[0], 3)),
        lambda v: torch.rand_like(v["single"]),
        lambda v: torch.normal(v["x"], 2.0),
        lambda v: torch.multinomial(torch.softmax(v["x"], -1), 3, replacement=True),
        lambda v: torch.randn(4) * v["x"],
        lambda v: torch.rand(()) * v["x"],
        lambda v: torch.empty_like(v["x"]).exponential_(),
        lambda v: v["h"].clone().normal_(),
        lambda v: torch.rand(v["x"].shape[0], 2, 3),
        lambda v: torch.nn.functional.gumbel_softmax(v["x"]),
        lambda v: torch.nn.functional.gumbel_softmax(v["x"], hard=True),
        lambda v: torch.nn.functional.dropout1d(v["q"], 0.4),
        lambda v: torch.nn.functional.dropout2d(v["q"][:, :, None], 0.4)[:, :, 0],
        lambda v: torch.distributions.Categorical(logits=v["x"]).sample(),
        lambda v: torch.distributions.Normal(v["x"], v["y"].abs() + 0.1).rsample(),
        lambda v: torch.distributions.Bernoulli(logits=v["x"]).sample(),
    ],
}

# What torch takes apart into operators with a rule.
COMPOSED: list[Case] = [
    lambda v: torch.diagonal(v["q"] @ v["q"].transpose(1, 2), 1, 1, 2),
    lambda v: torch.einsum("bii->b", v["q"] @ v["q"].transpose(1, 2)),
    lambda v: v["q"].unfold(2, 2, 1).sum(-1) + v["q"].unfold(-1, 3, 1).amax(-1).sum(2, keepdim=True),
    lambda v: torch.softmax(v["x"], -1),
    lambda v: torch.log_softmax(v["m"], 1),
    lambda v: torch.softmax(v["q"], 2).sum(1),
    lambda v: torch.softmax(v["half"], -1),
    lambda v: torch.softmax(v["single"], -1),
    lambda v: torch.nn.functional.layer_norm(v["x"], (4,)),
    lambda v: torch.nn.functional.layer_norm(v["q"], (3, 4)),
    lambda v: torch.nn.functional.layer_norm(v["x"], (4,), v["w"][0], v["w"][1]),
    lambda v: torch.nn.functional.gelu(v["x"]),
    lambda v: torch.nn.functional.gelu(v["x"], approximate="tanh"),
    lambda v: torch.nn.functional.silu(v["x"]),
    lambda v: torch.nn.functional.softplus(v["x"] * 9),
    lambda v: torch.nn.functional.elu(v["x"]),
    lambda v: torch.nn.functional.leaky_relu(v["x"]),
    lambda v: torch.nn.functional.hardtanh(v["x"]),
    lambda v: torch.nn.functional.mish(v["x"]),
    lambda v: torch.einsum("bij,bj->bi", v["q"], v["x"]),
    lambda v: torch.einsum("bi,ij,bj->b", v["x"], v["w"], v["y"]),
    lambda v: torch.einsum("bij,jk->bik", v["q"], v["w"]),
    lambda v: torch.einsum("bi,bj->bij", v["x"], v["y"]),
    lambda v: torch.einsum("bsd,kd->bsk", v["q"], v["w"]),
    lambda v: torch.einsum("bi,kij->bkj", v["x"], v["w3"]),
    lambda v: v["q"].var(-1),
    lambda v: v["x"].std(1, unbiased=False),
    lambda v: v["x"].norm(dim=1),
    lambda v: torch.logsumexp(v["m"], (1, 2)),
    lambda v: torch.nn.functional.one_hot(v["k"], 4),
    lambda v: v["x"].chunk(2, 1),
    lambda v: v["m"].unbind(1),
    lambda v: torch.split(v["m"], [1, 2, 3], 2),
    lambda v: v["x"].roll(1, 1),
    lambda v: v["x"].repeat(1, 2),
    lambda v: v["x"].tril(),
    lambda v: torch.lerp(v["x"], v["y"], 0.3),
    lambda v: torch.addcmul(v["x"], v["y"], v["y"], value=0.5),
    lambda v: v["x"].square(),
    lambda v: torch.nn.functional.normalize(v["x"], dim=1),
    lambda v: torch.cumsum(v["b"], 1),
    lambda v: v["x"].nan_to_num(),
    lambda v: v["odd"].nan_to_num(1.0, 2.0, 3.0),
    lambda v: (v["q"] * torch.softmax((v["q"] @ v["x"][:, :, None]), 1)).sum(1),
    lambda v: torch.nn.functional.log_softmax(v["x"], -1).gather(1, v["k"][:, None]),
    lambda v: torch.xlogy(v["x"].abs(), v["y"].abs()),
    lambda v: v["x"].logit(0.1),
    lambda v: torch.outer(v["w"][0], v["w"][1]) * v["s"][:, None, None],
    lambda v: v["x"].diff(dim=1),
    lambda v: v["x"].sum(1, keepdim=True).expand(-1, 4) / v["x"].shape[0],
    lambda v: torch.copysign(v["x"], v["y"]),
    lambda v: torch.nn.functional.glu(v["x"], -1),
    lambda v: torch.bucketize(v["x"], v["w"][0].sort().values),
    lambda v: v["x"].argsort(-1),
    lambda v: torch.aminmax(v["x"], dim=1).max,
    lambda v: torch.isin(v["k"], v["fixed"]),
    lambda v: v["x"].heaviside(v["y"]),
    lambda v: v["x"].frac(),
    lambda v: torch.logaddexp(v["x"], v["y"]),
    lambda v: torch.nn.functional.prelu(v["x"], v["w"][0]),
    lambda v: v["x"].median(1).values,
    lambda v: v["odd"].median(1, keepdim=True)[0],
    lambda v: torch.kthvalue(v["x"], 2, 1),
    lambda v: torch.kthvalue(v["odd"], 3, keepdim=True).values,
    lambda v: torch.quantile(v["x"], 0.3, dim=1),
    lambda v: torch.nn.functional.group_norm(v["x"], 2),
    lambda v: torch.nn.functional.group_norm(v["q"], 3, v["w"][0, :3], v["w"][1, :3]),
    lambda v: torch.nn.functional.instance_norm(v["q"]),
    lambda v: torch.nn.functional.rms_norm(v["x"], (4,)),
    lambda v: torch.nn.functional.batch_norm(v["x"], v["w"][0], v["w"][1].abs(), v["w"][2], v["w"][3]),
    lambda v: torch.nn.functional.conv1d(v["q"], v["w3"][:, :3, :2], v["w"][0, :3], padding=1),
    lambda v: torch.nn.functional.conv1d(v["m"], v["w"][:, :2, None].expand(4, 2, 2), stride=2, dilation=2),
    lambda v: torch.nn.functional.conv1d(v["m"], v["w"][:, None, :2], padding=1, groups=2),
    lambda v: torch.nn.functional.conv2d(v["q"][:, None], v["w3"][:2, None, :2, :3], stride=(1, 2), padding=(1, 1)),
    lambda v: torch.nn.functional.conv1d(v["half"][:, None], v["w"].bfloat16()[:, None, :3], padding=1),
    # Writes at a mask.
    lambda v: assigned(v["x"], v["x"] > 0, 0.5),
    lambda v: assigned(v["x"], v["b"], v["s"][0]),
    lambda v: assigned(v["q"], v["b"][:, :3], v["w"][0]),
    lambda v: assigned(v["q"], v["flag"], v["w"][:3]),
    lambda v: assigned(v["q"], v["q"] > 0, v["w"][0, :1]),
    lambda v: assigned(v["x"], (slice(None), v["mask"]), v["y"][:, :1]),
    lambda v: assigned(v["q"], (slice(None), slice(None), v["mask"]), v["x"][:, :3, None]),
    lambda v: v["x"].index_put((v["b"],), v["w"][0, 0], accumulate=True),
    lambda v: assigned(v["n"], v["n"] < 0, 7),
    lambda v: v["x"].masked_fill(v["b"], -1.0),
    # Changes in place of what the step has made.
    lambda v: v["x"].clone().clamp_(-0.5, 0.5).mul_(2).sub_(v["y"]),
    lambda v: v["x"].clone().cumsum_(1),
    lambda v: v["n"].clone().floor_divide_(3),
    lambda v: v["q"].clone().transpose_(1, 2).neg_(),
    lambda v: assigned(v["x"], (slice(None), slice(1, 3)), v["y"][:, :2]),
    # What torch's Python functions call.
    lambda v: attended(v),
]

# What the native executor cannot do: it says so, and `stepwise` does it.
REFUSED: dict[str, Case] = {
    "hypot": lambda v: torch.hypot(v["x"], v["y"]),
    "logcumsumexp": lambda v: v["x"].logcumsumexp(1),
    "mode": lambda v: v["ties"].mode(1).values,
    "cummax": lambda v: torch.cummax(v["x"], 1).values,
}

# What the capture refuses and should not: functionalisation meets a size that is a symbol; attention without dropout counts as a draw.
# They belong to COMPOSED once that is mended.
SPELLED_OUT: dict[str, Case] = {
    "cosine_similarity": lambda v: torch.nn.functional.cosine_similarity(v["x"], v["y"]),
    "attention": lambda v: torch.nn.functional.scaled_dot_product_attention(v["x"][:, None, None], v["q"][:, None], v["q"][:, None])[
        :, 0, 0
    ],
    "lerp": lambda v: torch.lerp(v["x"], v["y"], v["x"][0].sigmoid()) + v["x"].lerp(v["y"], 0.7),
    "bilinear": lambda v: torch.nn.functional.bilinear(v["x"], v["y"], v["x"][0].outer(v["x"][0]).expand(2, -1, -1)),
    "cdist": lambda v: torch.cdist(v["x"], v["x"][:3]) + torch.cdist(v["x"], v["y"][:3], p=1),
    "searchsorted": lambda v: torch.searchsorted(v["x"].sort(1).values, v["y"]).to(v["x"].dtype),
    "bucketize": lambda v: torch.bucketize(v["x"], torch.tensor([-0.5, 0.0, 0.5], dtype=v["x"].dtype), right=True).to(v["x"].dtype),
}

# What the lowering never meets, with the pass that takes it away.
NOT_MET = {ops.within}


def test_the_rules_have_cases():
    assert [str(op) for op in operators.RULES if op not in CASES] == []
    assert [str(op) for op, cases in CASES.items() if not cases and op not in NOT_MET] == []


RULED = [op for op in CASES if op is not ops.draw]
RULE_GROUPS = 12


def _numbered(chosen: Sequence[Any]) -> dict[str, Case]:
    return {f"{op}: {place}": case for op in chosen for place, case in enumerate(CASES[op])}


@pytest.mark.parametrize(
    "mode",
    [
        "rows",
        pytest.param("mixed", marks=pytest.mark.exhaustive),
        pytest.param("one", marks=pytest.mark.exhaustive),
        pytest.param("stays", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("group", [group if group % 2 else pytest.param(group, marks=pytest.mark.slow) for group in range(RULE_GROUPS)])
def test_operators_with_a_rule(group, mode):
    check(_numbered(RULED[group * len(RULED) // RULE_GROUPS : (group + 1) * len(RULED) // RULE_GROUPS]), shaped(), known(), mode)


@pytest.mark.parametrize("mode", [mode if mode == "rows" else pytest.param(mode, marks=pytest.mark.slow) for mode in MODES])
def test_draws(mode):
    check(_numbered([ops.draw]), shaped(), known(), mode)


@pytest.mark.parametrize(
    "mode",
    [
        "rows",
        pytest.param("mixed", marks=pytest.mark.exhaustive),
        pytest.param("one", marks=pytest.mark.exhaustive),
        pytest.param("stays", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("group", [0, *[pytest.param(group, marks=pytest.mark.slow) for group in (1, 2, 3)]])
def test_what_torch_takes_apart(group, mode):
    check({f"composed {place}": COMPOSED[place] for place in range(group, len(COMPOSED), 4)}, shaped(), known(), mode)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    with pytest.raises(PlanError, match=f"the native executor has no {name}"):
        check({name: REFUSED[name]}, shaped(), known(), backends=["native"])
    check({name: REFUSED[name]}, shaped(), known(), backends=["stepwise"])


@pytest.mark.parametrize("name", SPELLED_OUT)
def test_what_torch_cannot_trace(name):
    """With free sizes torch 2.13 traces these only as they are spelled out in fusedrnn.capture.spelled_out."""
    check({name: SPELLED_OUT[name]}, shaped(), known())


@pytest.mark.parametrize("more", [{}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False}, {"proj_size": 3, "num_layers": 2}])
@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_of_torch_in_a_cell(more, batch_first):
    layer = torch.nn.LSTM(WIDTH, 5, batch_first=batch_first, **more)
    x = plain()["x"]

    def cell(inputs, state):
        output, (_, c) = layer(torch.stack([inputs, 2 * inputs], 1 if batch_first else 0))
        return output.sum((0, 2) if not batch_first else (1, 2)).unsqueeze(1) + state, state + c[-1][:, :1]

    class Cell:
        output_size = state_size = 1
        __call__ = staticmethod(cell)

    def loop_fn(time, output, state, _):
        return time >= STEPS, x[time], torch.zeros(B, 1) if output is None else state, output, None

    with torch.no_grad():
        expected = raw_rnn(Cell(), loop_fn, backend="reference").emit_ta.stack()
        for backend in ("stepwise", "native"):
            torch.testing.assert_close(raw_rnn(Cell(), loop_fn, backend=backend).emit_ta.stack(), expected)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings(mode):
    bag, ids, cell = torch.nn.EmbeddingBag(7, WIDTH, mode=mode), torch.randint(0, 7, (STEPS, B, 3)), torch.nn.GRUCell(WIDTH, 5)

    def loop_fn(time, output, state, _):
        return time >= STEPS, bag(ids[time]), torch.zeros(B, 5) if output is None else state, output, None

    results = [raw_rnn(cell, loop_fn, backend=backend).emit_ta.stack() for backend in ("reference", "stepwise", "native")]
    gradients = [torch.autograd.grad(result.square().sum(), bag.weight)[0] for result in results]
    for result, gradient in zip(results, gradients, strict=True):
        torch.testing.assert_close(result, results[0])
        torch.testing.assert_close(gradient, gradients[0])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("backend", ["stepwise", "native"])
def test_what_no_executor_but_the_reference_takes(backend):
    x, sparse = plain()["x"], torch.eye(WIDTH).to_sparse()
    other = torch.eye(WIDTH, dtype=torch.float32 if x.dtype == torch.float64 else torch.float64)
    cell = torch.nn.GRUCell(WIDTH, 5)

    def reads_sparse(time, output, state, _):
        return time >= STEPS, (sparse @ x[time].t()).t(), torch.zeros(B, 5) if output is None else state, output, None

    def mixes(time, output, state, _):
        read = x[time] if output is None else (x[time] @ other).to(x.dtype)
        return time >= STEPS, read, torch.zeros(B, 5) if output is None else state, output, None

    with pytest.raises(PlanError, match=r"sparse tensor .* give it a dense one"):
        raw_rnn(cell, reads_sparse, backend=backend)
    with pytest.raises(PlanError, match=r"a product of torch\.float\d\d and torch\.float\d\d, which torch refuses"):
        raw_rnn(cell, mixes, backend=backend)
