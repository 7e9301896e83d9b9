"""Python state that only counts does not keep a loop from being captured; state that could matter does."""

from dataclasses import astuple, dataclass
from unittest.mock import Mock

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import PlanError, raw_rnn
from fusedrnn.capture import cache

T, B, D, H = 6, 2, 3, 4
CALLS = {"count": 0}


class Counting:
    """Counts its calls."""

    def __init__(self, loop_fn):
        self.calls, self.loop_fn = 0, loop_fn

    def __call__(self, *arguments):
        self.calls += 1
        return self.loop_fn(*arguments)


@pytest.fixture
def program():
    cell, x, h = nn.GRUCell(D, H), torch.randn(T, B, D), torch.zeros(B, H)
    return cell, lambda time, output, state, _: (time >= T, x[time], h if output is None else state, output, None)


def nonlocal_count(loop_fn):
    calls = 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        return loop_fn(*arguments)

    return counted, lambda: calls


def list_item(loop_fn):
    calls = [0]

    def counted(*arguments):
        calls[0] += 1
        return loop_fn(*arguments)

    return counted, lambda: calls[0]


def list_append(loop_fn):
    calls = []

    def counted(*arguments):
        calls.append(None)
        return loop_fn(*arguments)

    return counted, lambda: len(calls)


def global_dict(loop_fn):
    CALLS["count"] = 0

    def counted(*arguments):
        CALLS["count"] += 1
        return loop_fn(*arguments)

    return counted, lambda: CALLS["count"]


def attribute(loop_fn):
    counted = Counting(loop_fn)
    return counted, lambda: counted.calls


def sum_of_ones(loop_fn):
    calls = 0

    def counted(*arguments):
        nonlocal calls
        calls = calls + 1
        return loop_fn(*arguments)

    return counted, lambda: calls


def function_attribute(loop_fn):
    def counted(*arguments):
        counted.calls += 1
        return loop_fn(*arguments)

    counted.calls = 0
    return counted, lambda: counted.calls


@dataclass
class Tally:
    calls: int = 0


def dataclass_attribute(loop_fn):
    tally = Tally()

    def counted(*arguments):
        tally.calls += 1
        return loop_fn(*arguments)

    return counted, lambda: tally.calls


def mock(loop_fn):
    counted = Mock(side_effect=loop_fn)
    return counted, lambda: counted.call_count


COUNTS = [nonlocal_count, list_item, list_append, global_dict, attribute, sum_of_ones, function_attribute, dataclass_attribute]


@pytest.mark.parametrize("count", [*COUNTS, mock])
@pytest.mark.parametrize("backend", ["stepwise", "native"])
def test_counts_are_captured(program, count, backend):
    cell, loop_fn = program
    counted, calls = count(loop_fn)
    with torch.no_grad():
        result = raw_rnn(cell, counted, backend=backend)
        assert result.executor == backend
        assert 1 <= calls() <= 3  # it has six steps
        torch.testing.assert_close(result[0].stack(), raw_rnn(cell, loop_fn, backend="reference")[0].stack())


class Reflecting(nn.Module):
    """A cell that looks at attributes which it does not name, and has variables that are called as a counter may be."""

    output_size = state_size = H

    def __init__(self):
        super().__init__()
        self.linear, self.activation, self.calls = nn.Linear(D + H, H), "tanh", 2.0

    def forward(self, inputs, state):
        calls = self.calls
        state = getattr(torch, self.activation)(self.linear(torch.cat([inputs, state], 1))) * calls
        for _, child in self.named_children():
            state = state * child.weight.sum()
        return state, state


@pytest.mark.parametrize("count", COUNTS)
def test_code_that_cannot_reach_a_count_does_not_matter(program, count):
    _, loop_fn = program
    cell = Reflecting()
    counted, calls = count(loop_fn)
    with torch.no_grad():
        result = raw_rnn(cell, counted, backend="stepwise")
        assert calls() <= 3
        torch.testing.assert_close(result[0].stack(), raw_rnn(cell, loop_fn, backend="reference")[0].stack())


@pytest.mark.parametrize("count", COUNTS)
def test_what_has_been_counted_makes_no_new_program(program, count):
    cell, loop_fn = program
    counted, calls = count(loop_fn)
    cache.clear()
    with torch.no_grad():
        for runs in range(1, 5):
            raw_rnn(cell, counted, backend="stepwise")
            assert cache.size() == 1
            assert calls() <= 2 + runs  # time 0 of each, and the capture


def appends_outputs(loop_fn):
    seen = []

    def kept(time, output, *more):
        seen.append(output)
        return loop_fn(time, output, *more)

    return kept


def reads_its_count(loop_fn):
    calls = 0

    def scaled(*arguments):
        nonlocal calls
        calls += 1
        finished, inputs, *rest = loop_fn(*arguments)
        return finished, inputs * min(calls, 3), *rest

    return scaled


def reads_it_elsewhere(loop_fn):
    counted, _ = list_item(loop_fn)
    calls = counted.__closure__[0].cell_contents

    def scaled(*arguments):
        finished, inputs, *rest = counted(*arguments)
        return finished, inputs * min(calls[0], 3), *rest

    return scaled


def sums_up(loop_fn):
    total = [0]

    def summed(time, *more):
        total[0] += time
        return loop_fn(time, *more)

    return summed


def hands_its_counter_on(loop_fn):
    tally = Tally()

    def scaled(*arguments):
        tally.calls += 1
        finished, inputs, *rest = loop_fn(*arguments)
        return finished, inputs * min(astuple(tally)[0], 3), *rest

    return scaled


class ReadsByReflection(Counting):
    def __call__(self, *arguments):
        self.calls += 1
        finished, inputs, *rest = self.loop_fn(*arguments)
        return finished, inputs * min(vars(self)["calls"], 3), *rest


def made_by_exec(loop_fn):
    names = {"loop_fn": loop_fn}
    exec("calls = [0]\ndef counted(*arguments):\n    calls[0] += 1\n    return loop_fn(*arguments)", names)
    return names["counted"]


CHANGES = [
    appends_outputs, reads_its_count, reads_it_elsewhere, sums_up, hands_its_counter_on, ReadsByReflection, made_by_exec,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_could_matter_is_refused(program, change, monkeypatch):
    cell, loop_fn = program
    with torch.no_grad():
        with pytest.raises(PlanError, match="loop_fn changes"):
            raw_rnn(cell, change(loop_fn), backend="native")
        monkeypatch.delenv("FUSEDRNN_BACKEND")
        assert raw_rnn(cell, change(loop_fn)).executor == "reference"


def test_a_compiled_loop_counts_too(program):
    cell, loop_fn = program
    counted, calls = nonlocal_count(loop_fn)
    loop = fusedrnn.compile(cell, counted, backend="native")
    with torch.no_grad():
        for _ in range(3):
            assert loop().executor == "native"
    assert calls() <= 3 * 3
