"""What a step reads at its time is asked for in the step before."""

from __future__ import annotations

import re

import pytest
import torch

from fusedrnn.lowering.gpu.ahead import reads_by_time
from fusedrnn.lowering.gpu.schedule import schedule
from fusedrnn.lowering.gpu.source import kernel_source
from fusedrnn.lowering.gpu.tiles import Sharing

from .loops import greedy, reading, step

H = 16


class Adding:
    """A cell of columns that each program owns."""

    output_size = state_size = H

    def __call__(self, inputs, state):
        new = torch.tanh(inputs + state)
        return new, new


def loop_of(loop, programs=2, **options):
    """The lines before the loop, and those in it."""
    text = kernel_source(schedule(step(*loop), Sharing(programs), 16), 8, **options).text
    before, _, rest = text.partition("    while (t < T)")
    return before.splitlines(), [line.strip() for line in rest[: rest.index("    if tl.max(bad)")].splitlines()]


def loads(lines, name):
    """Where a tensor is loaded."""
    return [place for place, line in enumerate(lines) if f"tl.load({name}" in line]


def place_of(lines, start):
    return next(place for place, line in enumerate(lines) if line.startswith(start))


@pytest.mark.parametrize("name", ["h0", "h3"])
def test_between_arriving_and_waiting(name):
    before, inside = loop_of(reading("lstm"))
    assert len(loads(before, name)) == 1
    (place,) = loads(inside, name)
    assert place_of(inside, "arrive(") < place < place_of(inside, "late = late | wait(")
    carried = re.match(r"(\w+)_next = ", inside[place])[1]
    assert inside.index(f"{carried} = {carried}_next") > place
    assert any(line.strip().startswith(f"{carried} = tl.load(") for line in before)
    assert "+ time < T)" in inside[place]  # of the step behind the last nothing is asked for


def test_a_program_that_waits_for_nobody_asks_first():
    _, inside = loop_of(reading("lstm"), programs=1)
    assert max(loads(inside, "h")) < place_of(inside, "# phase 0")


def test_where_there_is_no_barrier_it_asks_first():
    """Nothing but columns that each program owns."""
    x, start = torch.zeros(5, 3, H), torch.zeros(3, H)

    def loop_fn(time, output, state, loop_state):
        return time >= 4, x[time], start if output is None else state, output, None

    _, inside = loop_of((Adding(), loop_fn))
    assert "arrive(" not in "".join(inside)
    (place,) = (place for place, line in enumerate(inside) if "_next = tl.load(" in line)
    assert place < place_of(inside, "# phase 0")


def test_where_registers_do_not_suffice_it_asks_when_it_needs_it():
    before, inside = loop_of(reading("lstm"), ahead=False)
    assert not loads(before, "h0")
    (place,) = loads(inside, "h0")
    assert place_of(inside, "# phase 0") < place < place_of(inside, "arrive(")
    assert not any("_next = tl.load" in line for line in inside)


def computed(place):
    """A loop whose reads stand elsewhere than at the time, or behind the first barrier."""
    x, w, start, order = torch.zeros(5, 3, H), torch.zeros(H, H), torch.zeros(3, H), torch.arange(5)

    class Cell:
        output_size = state_size = H

        def __call__(self, inputs, state):
            new = torch.tanh(inputs @ w + state)
            return new, new

    def loop_fn(time, output, state, loop_state):
        state = start if output is None else state
        return time >= 4, place(x, order, time, state), state, output, None

    return Cell(), loop_fn


def test_a_place_that_is_looked_up_by_the_time():
    before, inside = loop_of(computed(lambda x, order, time, state: x[order[time]] * state))
    carried = [line for line in inside if "_ahead_next = tl.load" in line]
    assert len(carried) == 1
    assert any("_ahead = tl.load" in line for line in before)
    assert "time + 1" in "\n".join(inside[place_of(inside, "arrive(") :])


@pytest.mark.parametrize("batch", [1, 3])
def test_a_vector_of_no_row(batch):
    """As the places of a sequence have one; and one row, whose vectors have no batch to be told by."""
    places, start = torch.zeros(5, H), torch.zeros(batch, H)

    def loop_fn(time, output, state, loop_state):
        return time >= 4, start + places[time], start if output is None else state, output, None

    _, inside = loop_of((Adding(), loop_fn))
    assert len([line for line in inside if "_next = tl.load(" in line]) == 1
    _, inside = loop_of(reading("gru", batch=batch))
    assert len([line for line in inside if "_next = tl.load(h" in line]) == 3


def test_what_a_step_computes_is_no_place_to_read_ahead():
    assert not reads_by_time(step(*greedy("gru")))
    assert reads_by_time(step(*reading("gru")))
