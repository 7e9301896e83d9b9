"""One loop on several executors. In: what a loop emits; out: an assertion that says which emit of which executor differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fusedrnn import raw_rnn

WIDTH, STEPS = 4, 5
MODES = ("rows", "one", "mixed", "stays")
# rows: every row for itself, and rows leave. one: a batch of 1. mixed: rows depend on one another. stays: loop_state keeps all rows.

TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-5, 2e-6), torch.bfloat16: (2e-2, 2e-2), torch.float16: (3e-3, 3e-3)}
Values = dict[str, torch.Tensor]
Case = Callable[[Values], Any]


class Cell:
    """Sums up what it reads."""

    output_size = state_size = WIDTH

    def __call__(self, inputs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new = torch.tanh(inputs + state)
        return new, new


def emitted(
    cases: Sequence[Case],
    data: Values,
    known: Values,
    lengths: Sequence[int],
    mode: str,
    backend: str,
) -> list[list[torch.Tensor]]:
    """What each case emits.

    Args:
        cases: functions of one step's values; each gives a tensor ``[B, ...]`` or a list of them.
        data: ``[T, B, ...]`` each, read at the step's time. There is a float "x" of WIDTH columns.
        known: what is the same at every step.
        mode: one of MODES.
    """
    torch.manual_seed(0)  # what a loop draws depends on it
    ends = torch.tensor(lengths)
    start = torch.zeros(len(lengths), WIDTH, dtype=data["x"].dtype)
    many: list[int] = []

    def loop_fn(time: torch.Tensor, out: Any, state: Any, carried: Any) -> Any:
        values = {name: tensor[time] for name, tensor in data.items()}
        inputs = torch.nan_to_num(values["x"], 0.0, 1.0, -1.0)
        if out is None:
            values |= known | {"h": start + 0.25, "time": time}
        else:
            values |= known | {"h": out, "time": time}
        made = [case(values) for case in cases]
        made = [list(one) if isinstance(one, (tuple, list)) else [one] for one in made]
        if out is None:
            many[:] = [len(one) for one in made]
        flat = tuple(one for group in made for one in group)
        if mode == "mixed":
            inputs = inputs + 0.125 * inputs.mean(0)
        if mode == "stays":
            carried = start if out is None else carried + out
        emit = tuple(one[0] for one in flat) if out is None else flat
        return time >= ends, inputs, start if out is None else state, emit, carried

    emits, _, _ = raw_rnn(Cell(), loop_fn, backend=backend)
    assert emits[0].lengths.tolist() == list(lengths)
    stacked = iter([array.stack() for array in emits])
    return [[next(stacked) for _ in range(count)] for count in many]


def difference(got: torch.Tensor, want: torch.Tensor, tolerance: tuple[float, float] | None = None) -> str | None:
    """What differs, in one line; None where nothing does."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{got.dtype} {list(got.shape)} is not {want.dtype} {list(want.shape)}"
    if got.dtype == torch.bool:
        raw, wanted = got.view(torch.uint8), want.view(torch.uint8)
        return None if torch.equal(raw, wanted) else f"bytes {raw.flatten().tolist()[:24]} are not {wanted.flatten().tolist()[:24]}"
    if not got.is_floating_point():
        if torch.equal(got, want):
            return None
        wrong = (got != want).nonzero()[0].tolist()
        return f"at {wrong}: {got[tuple(wrong)]} is not {want[tuple(wrong)]}"
    rtol, atol = tolerance or TOLERANCE[got.dtype]
    close = torch.isclose(got.double(), want.double(), rtol=rtol, atol=atol, equal_nan=True)
    if bool(close.all()):
        return None
    wrong = (~close).nonzero()[0].tolist()
    return f"at {wrong}: {got[tuple(wrong)].item()!r} is not {want[tuple(wrong)].item()!r} ({int((~close).sum())} of {close.numel()})"


def check(
    cases: dict[str, Case],
    data: Values,
    known: Values | None = None,
    mode: str = "rows",
    *,
    backends: Sequence[str] = ("stepwise", "native"),
    lengths: Sequence[int] = (3, 5, 2),
    tolerance: tuple[float, float] | None = None,
) -> None:
    """Every case on every backend against ``reference``."""
    if mode == "one":
        data, lengths = {name: tensor[:, :1] for name, tensor in data.items()}, lengths[:1]
    arguments = (list(cases.values()), data, known or {}, lengths, mode)
    wanted = emitted(*arguments, "reference")
    wrong = []
    for backend in backends:
        for name, got, want in zip(cases, emitted(*arguments, backend), wanted, strict=True):
            for place, (mine, theirs) in enumerate(zip(got, want, strict=True)):
                told = difference(mine, theirs, tolerance)
                if told:
                    wrong.append(f"{backend}, {mode}: {name}[{place}]: {told}")
    assert not wrong, "\n".join(wrong)
