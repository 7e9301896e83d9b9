"""Small loops that once gave something else than ``reference``, or might."""

from __future__ import annotations

import pytest
import torch

import fusedrnn
from fusedrnn.optimise.graph import aten

from .compare import MODES, STEPS, WIDTH, check

pytestmark = pytest.mark.usefixtures("float64")

B = 3


def data(**more):
    draw = torch.Generator().manual_seed(4)
    return {
        "x": torch.randn(STEPS, B, WIDTH, generator=draw),
        "u8": torch.randint(0, 256, (STEPS, B, 4), generator=draw).to(torch.uint8),
        "i8": torch.randint(-128, 128, (STEPS, B, 4), generator=draw).to(torch.int8),
        "b": torch.rand(STEPS, B, 4, generator=draw) < 0.6,
        "n": torch.randint(-9, 9, (STEPS, B, 4), generator=draw),
        **more,
    }


@pytest.mark.parametrize("mode", MODES)
def test_small_integers_wrap_within_an_expression(mode):
    check(
        {
            "add": lambda v: (v["u8"] + 200) > 250,
            "neg": lambda v: (-v["u8"]).double(),
            "mul": lambda v: (v["i8"] * 3 + 100) // 7,
            "invert": lambda v: (~v["u8"]).long() - v["n"],
            "shift": lambda v: (v["i8"] << 3).double() * 0.5,
            "abs": lambda v: v["i8"].abs() > 0,
            "cumsum": lambda v: (v["i8"].to(torch.int16) * 300 * 300).sum(1),
            "bool": lambda v: ((v["b"] + v["b"]) == v["b"]).long() + (v["b"] + v["b"]).long(),
            "bool sum": lambda v: (v["b"] + v["b"]).sum(1),
        },
        data(),
        mode=mode,
    )


def test_wide_integers_wrap():
    big = 2**63 - 5
    check(
        {
            "compare": lambda v: (v["n"] + big) > v["n"],
            "order": lambda v: (v["n"].abs() + big) > 0,
            "product": lambda v: (v["n"] * 6364136223846793005 + 1442695040888963407) * 3 // 2,
            "int32": lambda v: (v["n"].int() + (2**31 - 5)) > 0,
            "int32 twice": lambda v: (v["n"].abs().int() * (2**30)) * 4 == 0,
        },
        data(),
    )


def test_alpha():
    check(
        {
            "rsub": lambda v: torch.rsub(v["x"], v["x"] * v["x"], alpha=3),
            "rsub number": lambda v: torch.rsub(v["x"], 2.0, alpha=3),
            "sub": lambda v: torch.sub(v["x"], v["x"] * v["x"], alpha=3),
            "add number": lambda v: aten.add.Scalar(v["x"], 2, 3),
            "rsub in order": lambda v: aten.rsub.Scalar(v["n"], 2, 3),
            "u8": lambda v: torch.add(v["u8"], v["u8"], alpha=3) > 200,
        },
        data(),
    )


def test_what_orders_or_reduces_the_batch():
    """Pairs of results too: rows depend on one another."""
    check(
        {
            "sort": lambda v: torch.sort(v["x"], dim=0, stable=True).values,
            "max": lambda v: v["x"] - v["x"].max(0).values,
            "max, kept": lambda v: v["x"] - v["x"].max(0, keepdim=True).values,
            "min": lambda v: v["x"] + v["x"].min(0).indices,
            "topk": lambda v: v["x"] - v["x"].topk(1, 0).values,
            "sort of no row": lambda v: v["x"] - (v["w"] * v["time"]).sort(0).values[0],
            "cumsum": lambda v: v["x"].cumsum(0),
            "flip": lambda v: v["x"].flip(0),
            "roll": lambda v: v["x"].roll(1, 0),
            "argmax": lambda v: v["n"] + v["x"].argmax(0),
            "whole": lambda v: v["x"] / v["x"].sum(),
            "gram": lambda v: v["x"] @ v["x"].t() @ v["x"],
        },
        data(),
        {"w": torch.randn(6, 4)},
    )


@pytest.mark.parametrize("case", ["sort", "max", "topk", "min"])
def test_a_pair_along_the_batch_alone(case):
    cases = {
        "sort": lambda v: torch.sort(v["x"], dim=0, stable=True).values,
        "max": lambda v: v["x"] - v["x"].max(0, keepdim=True).values,
        "topk": lambda v: v["x"] - v["x"].topk(1, 0).values,
        "min": lambda v: v["x"] + v["x"].min(0).indices,
    }
    check({case: cases[case]}, data())


def test_half_precision_sums_into_places():
    half = torch.randn(STEPS, B, 4).bfloat16()
    rows = torch.arange(B)
    check(
        {
            "scatter_add": lambda v: v["half"].scatter_add(1, v["at"], v["half"]),
            "index_put": lambda v: v["half"].index_put((v["rows"][:, None], v["at"][:, :2]), v["half"][:, :2], accumulate=True),
        },
        data(half=half, at=torch.randint(0, 4, (STEPS, B, 4))),
        {"rows": rows},
        backends=["native"],
    )


def test_a_read_of_small_integers():
    check({"read": lambda v: torch.remainder(v["i8"], 5) + torch.fmod(v["i8"], 5) + (v["i8"] // 3)}, data())


def test_as_many_steps_as_rows():
    x = torch.randn(3, 3, WIDTH)
    check({"all": lambda v: v["x"] * 2 + v["h"], "sum": lambda v: v["x"].sum(1)}, {"x": x}, lengths=(3, 1, 2))


def test_as_many_rows_as_columns():
    x = torch.randn(5, 4, 4)
    check(
        {"t": lambda v: v["x"] + v["x"].t(), "w": lambda v: v["x"] @ v["w"], "g": lambda v: v["x"].softmax(1)},
        {"x": x},
        {"w": torch.randn(4, 4)},
        lengths=(3, 5, 2, 1),
    )


@pytest.mark.parametrize("divide", [torch.remainder, torch.fmod, torch.floor_divide, lambda a, b: torch.div(a, b, rounding_mode="trunc")])
def test_an_integer_divided_by_zero_is_an_error(divide):
    def loop_fn(time, output, state, _):
        if output is None:
            return torch.zeros(2, dtype=torch.bool), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros((), dtype=torch.int64), None
        whole = torch.full((2,), 7)
        return time >= 4, torch.zeros(2, 3), state, divide(whole, whole * 0 + 2 - time), None

    for backend in ("reference", "stepwise", "native"):
        with torch.no_grad(), pytest.raises(RuntimeError, match="ZeroDivisionError"):
            fusedrnn.raw_rnn(torch.nn.GRUCell(3, 3), loop_fn, backend=backend)


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
def test_a_mask_of_uint8_is_a_mask():
    mask = torch.tensor([1, 0, 1, 0, 1, 0, 0, 0], dtype=torch.uint8)
    assert len(mask) >= WIDTH

    def assigned(x, index, value):
        x = x.clone()
        x[index] = value
        return x

    x, values = torch.randn(3, 2, WIDTH), torch.arange(float(mask[:WIDTH].sum()))

    def loop_fn(time, output, state, loop_state):
        state = x[0] if output is None else assigned(state, (slice(None), mask[:WIDTH]), values)
        return time >= 3, x[time], state, output, None

    cell = torch.nn.RNNCell(WIDTH, WIDTH).to(x.dtype).requires_grad_(False)
    with pytest.raises(fusedrnn.PlanError, match="a mask with a value for each place in it"):
        fusedrnn.raw_rnn(cell, loop_fn, backend="native")
    want, got = (fusedrnn.raw_rnn(cell, loop_fn, backend=backend).final_state for backend in ("reference", "auto"))
    torch.testing.assert_close(got, want)
