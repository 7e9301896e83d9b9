"""Every operator of the kernel's table and rules, emulated against `reference`."""

from __future__ import annotations

import functools
import re
from operator import getitem
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fusedrnn import PlanError
from fusedrnn.capture import ops
from fusedrnn.lowering.gpu.arguments import place_along
from fusedrnn.lowering.gpu.batch import fold
from fusedrnn.lowering.gpu.pointwise import SHIFTS, TABLE
from fusedrnn.lowering.gpu.rules import RULES
from fusedrnn.lowering.gpu.sorting import rank, ranked, ranked_place
from fusedrnn.optimise.graph import aten

from ...executors import test_operators as operators
from ...executors.compare import STEPS, WIDTH, Case, Values, check

B = operators.B
DTYPES = (torch.float32, torch.int64, torch.int32, torch.bool, torch.bfloat16, torch.float16)
TABLED = [op for op in TABLE if op not in operators.NUMBERS_ONLY]


def plain() -> Values:
    return {"x": torch.randn(STEPS, B, WIDTH, generator=torch.Generator().manual_seed(1))}


def is_traced_with_free_sizes(name: str) -> bool:
    """torch fixes the batch size where a number makes another dtype of a tensor in an overload that Python does not call."""
    whole = "int" in name and "2.5" in name
    boolean = "torch.bool" in name and "True" not in name
    return not (("add.Scalar" in name or "sub.Scalar" in name) and (whole or boolean))


def pointwise_cases(chosen: list[tuple[Any, torch.dtype]]) -> tuple[dict[str, Case], Values]:
    cases: dict[str, Case] = {}
    data = plain()
    for op, dtype in chosen:
        more, values = operators.pointwise_cases(op, [dtype], mixed=False)
        cases |= {name: case for name, case in more.items() if is_traced_with_free_sizes(name)}
        data |= values
    return cases, data


@pytest.mark.slow
@pytest.mark.parametrize("turn", [0, 1])
def test_pointwise(turn):
    """Each operator on one dtype or another."""
    check(*pointwise_cases([(op, DTYPES[(place + 3 * turn) % 6]) for place, op in enumerate(TABLED)]), backends=["persistent"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pointwise_on_every_dtype(dtype):
    cases, data = pointwise_cases([(op, dtype) for op in TABLED])
    assert len(cases) >= 50
    check(cases, data, backends=["persistent"])


def test_mixed_dtypes():
    x = {
        "f": operators.values_of(torch.float32, 3, WIDTH), "h": operators.values_of(torch.bfloat16, 4, WIDTH),
        "i": operators.values_of(torch.int64, 5, WIDTH), "j": operators.values_of(torch.int32, 6, WIDTH),
        "b": operators.values_of(torch.bool, 7, WIDTH),
    }  # fmt: skip
    cases: dict[str, Case] = {
        "f + i": lambda v: v["f"] + v["i"],
        "j - f": lambda v: v["j"] - v["f"],
        "h * f": lambda v: v["h"] * v["f"],
        "i * j": lambda v: v["i"] * v["j"],
        "b + i": lambda v: v["b"] + v["i"],
        "b * f": lambda v: v["b"] * v["f"],
        "i / j": lambda v: v["i"] / (v["j"].abs() + 1),
        "i > f": lambda v: v["i"] > v["f"],
        "j == b": lambda v: v["j"] == v["b"],
        "i + 2.5": lambda v: v["i"] + 2.5,
        "b + 3": lambda v: v["b"] + 3,
        "7 - i": lambda v: 7 - v["i"],
        "2.5 / j": lambda v: 2.5 / (v["j"].abs() + 1),
        "i // -3": lambda v: v["i"] // -3,
        "i % -3": lambda v: v["i"] % -3,
        "-7 // j": lambda v: torch.full_like(v["j"], -7) // (v["j"].abs() + 1),
        "-7 % j": lambda v: torch.full_like(v["j"], -7) % -(v["j"].abs() + 1),
        "f // 0.3": lambda v: v["f"] // 0.3,
        "f % -0.3": lambda v: v["f"] % -0.3,
    }
    check(cases, plain() | x, backends=["persistent"])


# Operators with a rule --------------------------------------------------------------------------------------------------------------


def values() -> Values:
    draw = torch.Generator().manual_seed(2)

    def floats(*shape: int) -> torch.Tensor:
        return torch.randn(STEPS, B, *shape, generator=draw)

    def whole(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, (STEPS, B, *shape), generator=draw)

    odd = operators.values_of(torch.float32, 8, WIDTH)
    return plain() | {
        "y": floats(4), "s": floats(), "one": floats(1, 4), "w6": floats(6), "n": whole(9, 4) - 4, "d": whole(4, 4) + 1,
        "k": whole(4), "b": whole(2, 4).bool(), "flag": whole(2).bool(), "half": floats(4).bfloat16(), "i32": whole(4).int(),
        "odd": odd, "ties": whole(3, 6).float(),
    }  # fmt: skip


def known() -> Values:
    draw = torch.Generator().manual_seed(3)
    return {
        "w": torch.randn(4, 4, generator=draw),
        "table": torch.randn(5, 4, generator=draw),
        "long": torch.randn(6, 4, generator=draw),
        "mask": torch.tensor([True, False, True, True]),
    }


WHOLE = (torch.int64, torch.int8, torch.uint8)


def shifted(op: Any, dtype: torch.dtype, by: int, v: Values) -> torch.Tensor:
    x = v["n"].to(dtype)
    if str(op).endswith("Scalar_Tensor"):
        return op(3 + by, x % 7)
    return op(x * 3, by if "Scalar" in str(op) else torch.full_like(x, by))


# For each operator loops that call it. A new rule without one fails `test_the_rules_have_cases`.
CASES: dict[Any, list[Case]] = {
    aten.pow.Tensor_Scalar: [lambda v, p=p: (v["x"].abs() + 0.5) ** p for p in (1, 2, 3, 4, 0.5, -0.5, -1, -2, 5, 1.7, -0.3, 0)],
    aten.pow.Tensor_Tensor: [
        lambda v: (v["x"].abs() + 0.5) ** v["y"], lambda v: v["odd"] ** v["odd"].flip(1), lambda v: v["half"].abs() ** v["x"],
    ],
    aten.pow.Scalar: [lambda v: 1.5 ** v["x"], lambda v: 0.9 ** v["time"] * v["x"], lambda v: torch.pow(2.0, v["n"])],
    **{op: [functools.partial(shifted, op, dtype, by) for dtype in WHOLE for by in (1, 5, 9)] for op in SHIFTS},
    aten.floor.default: [lambda v: v["odd"].floor(), lambda v: v["n"].floor()],
    aten.ceil.default: [lambda v: v["odd"].ceil(), lambda v: v["i32"].ceil()],
    aten.trunc.default: [lambda v: (v["h"] * 5 + v["odd"]).trunc(), lambda v: v["n"].trunc()],
    aten.round.default: [
        lambda v: (v["h"] * 5).round(),
        lambda v: ((v["h"] * 1e-30).floor() + v["n"] + 0.5).round(),
        lambda v: (v["h"] * 1e-30 + torch.tensor([8388609.0, -8388609.0, 4194303.5, torch.inf])).round(),
    ],
    aten.div.Tensor_mode: [
        lambda v: aten.div.Tensor_mode(v["x"], v["y"], rounding_mode="floor"),
        lambda v: aten.div.Tensor_mode(v["n"], v["d"], rounding_mode="floor"),
        lambda v: aten.div.Tensor_mode(v["n"], -v["d"], rounding_mode="floor"),
        lambda v: aten.div.Tensor_mode(v["n"], v["d"], rounding_mode=None),
    ],
    aten.div.Scalar_mode: [
        lambda v: aten.div.Scalar_mode(v["n"], -3, rounding_mode="floor"),
        lambda v: aten.div.Scalar_mode(v["x"], 0.7, rounding_mode="floor"),
    ],
    aten.where.self: [
        lambda v: torch.where(v["b"], v["x"], v["y"]),
        lambda v: torch.where(v["flag"][:, None], v["x"], v["w"][0]),
        lambda v: torch.where(v["b"], v["n"], v["x"]),
        lambda v: torch.where(v["mask"], v["half"], v["x"]),
        lambda v: torch.where(v["b"], v["odd"], 0.0),
    ],
    aten.where.ScalarSelf: [lambda v: aten.where.ScalarSelf(v["b"], 2.5, v["x"])],
    aten.where.ScalarOther: [lambda v: aten.where.ScalarOther(v["b"], v["x"], -1)],
    aten.where.Scalar: [lambda v: aten.where.Scalar(v["b"], 2.5, -1)],
    aten.masked_fill.Scalar: [lambda v: v["x"].masked_fill(v["b"], -torch.inf), lambda v: v["n"].masked_fill(v["flag"][:, None], 7)],
    aten.masked_fill.Tensor: [lambda v: v["x"].masked_fill(v["b"], v["w"][0, 0])],
    aten.clamp.default: [
        lambda v: v["x"].clamp(-0.5, 0.25), lambda v: v["n"].clamp(-1, 2), lambda v: v["odd"].clamp(-1, 1),
        lambda v: v["half"].clamp(max=0.1),
    ],
    aten.clamp.Tensor: [lambda v: torch.clamp(v["x"], v["y"] - 1, v["y"]), lambda v: torch.clamp(v["x"], max=v["s"][:, None])],
    aten.clamp_min.default: [lambda v: v["x"].clamp_min(0.1), lambda v: v["odd"].clamp_min(0)],
    aten.clamp_max.default: [lambda v: v["x"].clamp_max(0.1), lambda v: v["n"].clamp_max(2)],
    aten.clamp_min.Tensor: [lambda v: aten.clamp_min.Tensor(v["x"], v["y"])],
    aten.clamp_max.Tensor: [lambda v: aten.clamp_max.Tensor(v["x"], v["y"])],
    aten._to_copy.default: [
        lambda v: [v["x"].to(dtype) for dtype in DTYPES],
        lambda v: [v["n"].to(dtype) for dtype in DTYPES],
        lambda v: [v["half"].to(dtype) for dtype in DTYPES],
        lambda v: [v["b"].to(dtype) for dtype in DTYPES],
        lambda v: v["odd"].bool(),
    ],
    torch.ops.prims.convert_element_type.default: [
        lambda v: torch.ops.prims.convert_element_type(v["x"], torch.float16),
        lambda v: torch.ops.prims.convert_element_type(v["n"], torch.int32),
    ],
    aten.clone.default: [lambda v: v["x"].clone()],
    aten.detach.default: [lambda v: v["x"].detach() + 1],
    aten.alias.default: [lambda v: aten.alias(v["x"]) + 1],
    aten.lift_fresh_copy.default: [lambda v: v["x"] + torch.tensor([1.0, 2.0, 3.0, 4.0])],
    aten.lift_fresh.default: [lambda v: v["x"] + torch.tensor(2.5)],
    ops.guard: [lambda v: v["h"] * 2],
    ops.quiet: [lambda v: v["h"] - 2],
    aten.view.default: [lambda v: v["x"].view(-1, 1, 4).view(-1, 4) * 2],
    aten._unsafe_view.default: [lambda v: aten._unsafe_view(v["x"], [v["x"].shape[0], 1, 4])],
    aten.reshape.default: [lambda v: v["one"].reshape(-1, 4)],
    aten.unsqueeze.default: [lambda v: v["x"].unsqueeze(1), lambda v: v["s"][:, None] + v["x"]],
    aten.squeeze.default: [lambda v: v["x"] + v["w"][:1].squeeze()],
    aten.squeeze.dim: [lambda v: v["one"].squeeze(1)],
    aten.squeeze.dims: [lambda v: v["x"][:, None, :, None].squeeze((1, 3)) + 1],
    aten.expand.default: [lambda v: v["s"][:, None].expand(-1, 4) * 2, lambda v: (v["w"][0] * v["time"]).expand(v["x"].shape[0], 4)],
    aten.permute.default: [lambda v: v["one"].permute(0, 2, 1)],
    aten.t.default: [lambda v: v["x"].t().tanh().t()],
    aten.transpose.int: [lambda v: v["one"].transpose(1, 2) * 2],
    aten.contiguous.default: [lambda v: aten.contiguous(v["x"].t()).t()],
    aten.full.default: [lambda v: torch.full((v["x"].shape[0], 2), 2.5)],
    aten.full_like.default: [lambda v: torch.full_like(v["x"], 2.5), lambda v: torch.full_like(v["n"], -3)],
    aten.zeros.default: [lambda v: torch.zeros(4) + v["x"]],
    aten.ones.default: [lambda v: torch.ones(v["x"].shape[0], 2, dtype=torch.int32)],
    aten.zeros_like.default: [lambda v: torch.zeros_like(v["half"])],
    aten.ones_like.default: [lambda v: torch.ones_like(v["b"])],
    aten.scalar_tensor.default: [lambda v: torch.scalar_tensor(2.5) * v["x"]],
    aten.new_zeros.default: [lambda v: v["w"].new_zeros(4) + v["x"]],
    aten.new_ones.default: [lambda v: v["w"].new_ones(4) + v["x"]],
    aten.new_full.default: [lambda v: v["w"].new_full((4,), 3) + v["x"]],
    aten.slice.Tensor: [
        lambda v: v["w6"][:, 1:5], lambda v: v["w6"][:, -4:-1] * 2, lambda v: v["x"][:, 2:100], lambda v: v["x"][:, -100:3] * 2,
        lambda v: (v["h"] * 2)[:, 1:3], lambda v: v["h"][:, 3:],
    ],
    aten.select.int: [lambda v: v["x"][:, -1], lambda v: (v["h"] * 3)[:, 2] * 2, lambda v: v["x"] + v["w"][-2], lambda v: v["one"][:, 0]],
    aten.cat.default: [
        lambda v: torch.cat([v["x"], v["y"][:, :1], v["w6"]], 1),
        lambda v: torch.cat([v["x"], v["n"]], -1),
        lambda v: torch.cat([v["h"][:, 1:], v["h"][:, :1]], 1),
        lambda v: torch.cat([v["half"], v["x"]], -1),
        lambda v: torch.cat([v["x"], v["w"][0].expand(v["x"].shape[0], 4)], 1),
    ],
    ops.read: [lambda v: v["x"] * v["long"][v["time"]], lambda v: v["x"] * v["long"].select(0, 2), lambda v: v["x"] * v["long"][-1]],
    aten.embedding.default: [
        lambda v: F.embedding(v["k"], v["table"]),
        lambda v: F.embedding(v["i32"], v["table"]) * 2,
        lambda v: F.embedding(v["h"].argmax(-1), v["table"]),
        lambda v: F.embedding(v["k"], v["table"])[:, 1:3],
    ],
    aten.argmax.default: [
        lambda v: v["x"].argmax(1), lambda v: v["ties"].argmax(1), lambda v: v["odd"].argmax(1), lambda v: v["half"].argmax(1),
        lambda v: (v["odd"] * torch.nan).argmax(1), lambda v: torch.full_like(v["x"], -torch.inf).argmax(1),
    ],
    aten.mm.default: [
        lambda v: v["x"] @ v["w"],
        lambda v: v["h"] @ v["w"],
        lambda v: v["h"] @ v["w"][:, :2],
        lambda v: (v["h"] @ v["w"]).tanh() @ v["w"].t(),
        lambda v: v["half"] @ v["w"].bfloat16(),
        lambda v: torch.addmm(v["y"], v["h"], v["w"], beta=0.5, alpha=2),
        lambda v: v["h"] @ v["w"][:, :1],
        lambda v: v["h"][:, :1] @ v["w"][:1],
        lambda v: v["h"] @ v["w"][0],
    ],
}  # fmt: skip

# What the lowering never meets, with the pass that takes it away.
NOT_MET = {ops.within}
SORTS = {aten.sort.default, aten.sort.stable, aten.topk.default, aten.max.dim, aten.min.dim}  # taken apart
OTHERS = {op: cases for op, cases in operators.CASES.items() if op in RULES or op in SORTS}  # of the executors that compute in float64
GROUPS = 8


def test_the_rules_have_cases():
    assert [
        str(op)
        for op in RULES
        if op not in CASES and op not in OTHERS and op not in NOT_MET | {getitem, fold, place_along, rank, ranked, ranked_place}
    ] == []


def of_a_step(case: Case) -> Case:
    """The same values, but made of the state: they cannot be made before the loop."""

    def made(v: Values) -> Any:
        tiny = v["h"][:, 0] * 1e-30
        found = dict(v)
        for name, x in v.items():
            if name in SHAPED:
                zero = tiny.reshape(-1, *[1] * (x.ndim - 1))
                found[name] = (
                    x + zero.to(x.dtype)
                    if x.is_floating_point()
                    else x ^ (zero > 1)
                    if x.dtype == torch.bool
                    else x + (zero > 1).to(x.dtype)
                )
        return case(found)

    return made


def in_single(tensors: Values) -> Values:
    return {name: x.float() if x.dtype == torch.float64 else x for name, x in tensors.items()}


SHAPED, SHAPED_KNOWN = in_single(operators.shaped()), in_single(operators.known())

# Why a kernel may not hold one of these cases. Anything else is a failure.
ACCEPTED = (
    r"rows depend on one another", r"the step holds for a batch of", r"float64 numbers", r"a vector without columns",
    r"a row that looks into another",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_cases_of_the_other_executors(group):
    chosen = [(op, place) for op in OTHERS for place in range(len(OTHERS[op]))][group::GROUPS]
    ran, refused = 0, []
    for op, place in chosen:
        try:
            check({f"{op}: {place}": of_a_step(OTHERS[op][place])}, SHAPED, SHAPED_KNOWN, backends=["persistent"])
            ran += 1
        except PlanError as error:
            refused.append(f"{op}: {place}: {error}")
    assert [one for one in refused if not any(re.search(reason, one) for reason in ACCEPTED)] == []
    assert ran > 0.7 * len(chosen)


QUICK = (aten.sum.dim_IntList, aten.amax.default, aten.bmm.default, aten.permute.default, aten.index.Tensor, aten.gather.default)


def test_reductions_and_look_ups():
    check({f"{op}: 0": of_a_step(OTHERS[op][0]) for op in QUICK}, SHAPED, SHAPED_KNOWN, backends=["persistent"])


def test_the_greatest_of_all_of_the_only_row():
    cases = {
        "floats": lambda v: v["x"].argmax()[None],
        "integers": lambda v: ((v["x"] * 8).long().argmax() + 8 * (v["x"] * 8).int().argmin())[None],
    }
    check(cases, values(), known(), "one", backends=["persistent"])


@pytest.mark.slow
@pytest.mark.parametrize("group", range(3))
def test_operators_with_a_rule(group):
    chosen = list(CASES)[group::3]
    check({f"{op}: {place}": case for op in chosen for place, case in enumerate(CASES[op])}, values(), known(), backends=["persistent"])
