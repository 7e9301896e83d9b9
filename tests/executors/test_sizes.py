"""Sizes of rows that differ from call to call: what is made of them, on every executor against `reference`."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fusedrnn.kernels import gpu

from .compare import WIDTH, Case, Values, check

LENGTHS = (3, 5, 2)


def scores(v: Values) -> torch.Tensor:
    """``[B, S]``: of each row's places, as many as the call has."""
    return (v["h"][:, None] * v["memory"]).sum(2)


def written(v: Values) -> torch.Tensor:
    new = scores(v).clone()
    new[:, new.shape[1] // 2 :] = 0.25
    new[:, new.shape[1] - 2] = 0.5
    return new


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.median(1, keepdim=True).values


def blurred(x: torch.Tensor) -> torch.Tensor:
    return F.conv1d(x[:, None], torch.ones(1, 1, 3, dtype=x.dtype), padding=1)[:, 0]


def outer(v: Values) -> torch.Tensor:
    return scores(v)[:, :, None] * v["keys"][:, None]


PLACES: dict[str, Case] = {
    "sort": lambda v: scores(v).sort(1).values,
    "sort of what is known": lambda v: v["keys"].sort(1, descending=True).values + scores(v),
    "argsort": lambda v: scores(v).argsort(1),
    "topk": lambda v: list(scores(v).topk(3, 1)),
    "topk of half": lambda v: scores(v).topk(scores(v).shape[1] // 2, 1).values,
    "median": lambda v: scores(v).median(1).values,
    "medians": lambda v: torch.einsum("bs,bsd->bd", torch.tanh(centred(centred(scores(v)))), v["memory"]),
    "kthvalue": lambda v: scores(v).kthvalue(scores(v).shape[1] // 2, 1).values,
    "argmax": lambda v: scores(v).argmax(1),
    "argmax of integers": lambda v: (scores(v) * 8).long().argmax(1),
    "argmin of integers": lambda v: (v["keys"] * v["time"] * 8).long().argmin(1) + (scores(v)[:, 0] > 0),
    "max of integers": lambda v: list((scores(v) * 8).long().max(1)),
    "slice from": lambda v: scores(v)[:, scores(v).shape[1] // 2 :],
    "slice to": lambda v: scores(v)[:, : math.ceil(scores(v).shape[1] / 2)],
    "slice from the end": lambda v: scores(v)[:, -(scores(v).shape[1] // 2) :],
    "slice of what is known": lambda v: v["keys"][:, v["keys"].shape[1] // 2 :] * scores(v)[:, :1],
    "slice of a timed value": lambda v: (v["keys"] * v["time"])[:, v["keys"].shape[1] // 2 :] * scores(v)[:, :1],
    "every other": lambda v: scores(v)[:, 1::2],
    "selection": lambda v: scores(v)[:, scores(v).shape[1] - 2],
    "selection of a timed value": lambda v: (v["keys"] * v["time"])[:, v["keys"].shape[1] - 2] * scores(v)[:, 0],
    "narrow": lambda v: scores(v).narrow(1, scores(v).shape[1] - 3, 2),
    "written": written,
    "padding": lambda v: F.pad(scores(v), (scores(v).shape[1] - 3, -1)),
    "convolution": lambda v: blurred(scores(v)),
    "convolution of a timed value": lambda v: blurred(v["keys"] * v["time"]) + scores(v),
    "roll": lambda v: scores(v).roll(scores(v).shape[1] // 2, 1),
    "chunks": lambda v: list(scores(v).chunk(2, 1)),
    "parts": lambda v: list(scores(v).split(2, 1)[:2]),
    "halves": lambda v: list(scores(v).split(scores(v).shape[1] // 2, 1)[:2]),
    "flat": lambda v: outer(v).flatten(1).unflatten(1, (scores(v).shape[1], scores(v).shape[1])).sum(1),
    "triangle": lambda v: outer(v).tril().sum(2),
}
NUMBERS: dict[str, Case] = {
    "square root": lambda v: scores(v) / scores(v).shape[1] ** 0.5,
    "math.sqrt": lambda v: scores(v) / math.sqrt(scores(v).shape[1]),
    "math.log": lambda v: scores(v) * math.log(scores(v).shape[1]),
    "reciprocal": lambda v: scores(v) * (1 / scores(v).shape[1]),
    "quotient": lambda v: scores(v) * (scores(v).shape[1] // 2) + scores(v).shape[1] % 3,
    "int": lambda v: scores(v) * int(scores(v).shape[1] ** 0.5),
    "minimum": lambda v: scores(v)[:, : min(scores(v).shape[1], 7)],
    "temperature": lambda v: torch.softmax(scores(v) / scores(v).shape[1] ** 0.5, 1),
    "clamp": lambda v: scores(v).clamp(max=scores(v).shape[1] / 6),
    "power": lambda v: (scores(v).square() + 1) ** (1 / scores(v).shape[1]),
    "fill": lambda v: scores(v).masked_fill(scores(v) > 0, scores(v).shape[1] ** 0.5),
    "comparison": lambda v: scores(v) > scores(v).shape[1] / 5,
    "alpha": lambda v: torch.add(scores(v), scores(v), alpha=scores(v).shape[1] / 2),
}


def data(sizes: int, dtype: torch.dtype) -> tuple[Values, Values]:
    draw = torch.Generator().manual_seed(sizes)
    known = {"memory": torch.randn(3, sizes, WIDTH, generator=draw), "keys": torch.randn(3, sizes, generator=draw)}
    return {"x": torch.randn(5, 3, WIDTH, generator=draw).to(dtype)}, {name: value.to(dtype) for name, value in known.items()}


@pytest.mark.parametrize("cases", [PLACES, NUMBERS], ids=["places", "numbers"])
def test_one_program_for_all_sizes(cases):
    for size in (5, 8):
        check(cases, *data(size, torch.float64), lengths=LENGTHS)


@pytest.mark.skipif(not gpu.EMULATED, reason="Triton does not interpret in this process")
@pytest.mark.parametrize(
    ("cases", "sizes"), [pytest.param(PLACES, (5,), marks=pytest.mark.slow, id="places"), pytest.param(NUMBERS, (5, 8), id="numbers")]
)
def test_a_kernel_for_each_size(cases, sizes):
    for size in sizes:
        check(cases, *data(size, torch.float32), backends=["persistent"], lengths=LENGTHS)
