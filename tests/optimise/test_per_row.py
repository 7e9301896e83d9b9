"""What a step makes of its time, made for rows that are at different times: each gets what it would get alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fusedrnn
from fusedrnn.errors import PlanError
from fusedrnn.random import uniform
from fusedrnn.serve import Row, Slots

pytestmark = pytest.mark.usefixtures("auto")
SLOTS, WIDTH, STEPS = 7, 4, 6


class Loop:
    """A counter of rows, with something of the time emitted at each step."""

    def __init__(self, of_time: Any, carried: Any = None) -> None:
        self.x, self.y = torch.zeros(9, SLOTS, WIDTH), torch.zeros(SLOTS, 9, WIDTH)
        self.most, self.first = torch.zeros(SLOTS, dtype=torch.int64), torch.zeros(SLOTS, WIDTH)
        self.of_time, self.carried = of_time, carried
        self.rows = {"x": Row(self.x, 1), "y": Row(self.y), "most": Row(self.most), "first": Row(self.first)}

    def values(self, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x, y, first = (torch.randn(*size, generator=generator) for size in ((9, WIDTH), (9, WIDTH), (WIDTH,)))
        return {"x": x, "y": y, "most": torch.tensor(STEPS), "first": first}

    def loop_fn(self) -> Any:
        x, y, most, first, of_time, start = self.x, self.y, self.most, self.first, self.of_time, self.carried

        def loop_fn(time: Any, output: Any, state: Any, carried: Any) -> Any:
            if output is None:
                return most <= 0, first, first, torch.zeros(WIDTH), start
            made, carried = of_time(time, output, x, y, carried)
            return time >= most, output * 0.5, state, made, carried

        return loop_fn


class Adds(torch.nn.Module):
    output_size, state_size = WIDTH, WIDTH

    def forward(self, inputs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return inputs + state, state + 1


torch.manual_seed(0)
TABLE, WIDE, PLACES, WEIGHT = torch.randn(5, WIDTH), torch.randn(WIDTH, 9), torch.tensor([3, 0, 2, 1, 4, 4, 0, 1, 2]), torch.randn(3, WIDTH)

OF_TIME: dict[str, Any] = {
    "a comparison": lambda time, output, x, y: torch.where(time > 2, output, -output),
    "a comparison of two": lambda time, output, x, y: torch.where((time > 1) & (time != 4), output, output * 2),
    "a number in floating point": lambda time, output, x, y: output * (time.to(torch.float32) / 3).sin() + time / 7,
    "a whole number that meets rows of floats": lambda time, output, x, y: output + time,
    "a read along time": lambda time, output, x, y: x[time] + output,
    "a read along time behind the batch": lambda time, output, x, y: y[:, time] * output,
    "a read past the end, and the rule for it": lambda time, output, x, y: x[(time + 5).clamp(max=8)],
    "a read from the end": lambda time, output, x, y: x[-time],
    "a row of a table": lambda time, output, x, y: output + TABLE[time % 5],
    "a column of a table": lambda time, output, x, y: output + WIDE[:, time],
    "a row of a table by a table": lambda time, output, x, y: output + TABLE[PLACES[time]],
    "a vector of comparisons": lambda time, output, x, y: output + (torch.arange(WIDTH) < time),
    "reductions": lambda time, output, x, y: output + (torch.arange(3) * time).sum() + (WIDE[:, time] ** 2).mean() + TABLE[time % 5].amax(),
    "an embedding": lambda time, output, x, y: output * F.embedding(time.to(torch.int64) % 5, TABLE),
    "a product": lambda time, output, x, y: output + F.linear(F.linear(TABLE[time % 5].unsqueeze(0), WEIGHT), WEIGHT.T),
    "views": lambda time, output, x, y: output + WIDE[:, time].reshape(2, 2).permute(1, 0).reshape(4)[None] + WIDE[:, time][1:2],
    "where the batch is second": lambda time, output, x, y: (output.T + (torch.arange(WIDTH) * time)[:, None]).T,
    "a fill like it": lambda time, output, x, y: output + torch.full_like(WIDE[:, time], 2.0) + torch.ones_like(time),
    "repeated for rows": lambda time, output, x, y: output + WIDE[:, time].expand(output.shape) * time.expand(output.shape[0])[:, None],
    "a draw at the row's own time": lambda time, output, x, y: output + uniform((WIDTH,), x[0, :, 0].mul(1000).to(torch.int64)),
}  # fmt: skip


def assert_as_alone(loop: Loop) -> None:
    slots = Slots(Adds(), loop.loop_fn(), loop.rows)
    enter = {0: 0, 2: 1, 3: 4, 5: 2, 6: 5}  # slot: at which step
    got: dict[int, list[torch.Tensor]] = {slot: [] for slot in enter}
    for step in range(STEPS + 6):
        assert slots.admit({slot: loop.values(slot) for slot, at in enter.items() if at == step}) == {}
        launch = slots.launch(1)
        for slot, parts in got.items():
            parts.append(torch.from_numpy(launch.emits[0][: launch.taken[slot], slot].copy()))
    for slot, parts in got.items():
        alone = Loop(loop.of_time, loop.carried)
        for name, value in alone.values(slot).items():
            alone.rows[name].tensor.select(alone.rows[name].dim, slot).copy_(value)
        want = fusedrnn.raw_rnn(Adds(), alone.loop_fn(), backend="reference").emit_ta.stack()[:, slot]
        torch.testing.assert_close(torch.cat(parts), want, rtol=1e-5, atol=1e-5)
        assert want.abs().min() > 0


@pytest.mark.parametrize("what", OF_TIME)
def test_each_row_gets_what_its_own_time_makes(what: str) -> None:
    made = OF_TIME[what]
    assert_as_alone(Loop(lambda time, output, x, y, carried: (made(time, output, x, y).to(torch.float32), carried)))


def test_what_loop_state_has_for_all_rows_becomes_each_rows_own() -> None:
    def counts(time: Any, output: Any, x: Any, y: Any, carried: Any) -> Any:
        count, decay, kept = carried
        return output + count + decay * 2 + kept.sum(), (count + 1, decay * 0.5, kept)

    assert_as_alone(Loop(counts, (torch.tensor(1.0), torch.ones(WIDTH), torch.tensor([0.5, 0.25]))))


@pytest.mark.parametrize(("what", "of_time"), [
    ("sort", lambda time, output, x, y: output + (torch.arange(WIDTH) * (2 - time)).sort().values),
    ("mm", lambda time, output, x, y: output + output[:, :1] @ (WIDE[:, :4] * time)[:1]),
])  # fmt: skip
def test_what_has_no_value_for_each_row_is_refused_with_its_place(what: str, of_time: Any) -> None:
    loop = Loop(lambda time, output, x, y, carried: (of_time(time, output, x, y), carried))
    with pytest.raises(PlanError) as raised:
        Slots(Adds(), loop.loop_fn(), loop.rows)
    assert what in raised.value.reason
    assert __file__ in (raised.value.location or "")
