"""What only a further step reads does not ask whether the loop has ended; all else does."""

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn.optimise.going_on import going_on
from fusedrnn.optimise.graph import outputs

from ..lowering.gpu.loops import program_of
from .graphs import kinds

B, T, D, H = 4, 5, 3, 6
lengths = torch.tensor([5, 2, 0, 1])


def loop(next_input, *, state=lambda state, finished: state, carried=None):
    torch.manual_seed(3)
    cell, x, start = nn.RNNCell(D, H).requires_grad_(False), torch.randn(T, B, D), torch.zeros(B, H)

    def loop_fn(time, output, last, loop_state):
        finished = time >= lengths
        if output is None:
            return finished, next_input(finished, x, time), start, None, torch.zeros(()) if carried else None
        return finished, next_input(finished, x, time), state(last, finished), output, carried and carried(loop_state, finished)

    return cell, loop_fn


def zeros(x):
    return torch.zeros_like(x[0])


GUARDED = {
    "cond": lambda finished, x, time: torch.cond(finished.all(), lambda: zeros(x), lambda: x[time]),
    "cond_any": lambda finished, x, time: torch.cond((~finished).any(), lambda: x[time], lambda: zeros(x)),
    "all_dim": lambda finished, x, time: torch.where(finished.all(0), zeros(x), x[time]),
    "all_keepdim": lambda finished, x, time: torch.where(finished.all(0, keepdim=True)[:, None], zeros(x), x[time]),
    "logical_not": lambda finished, x, time: torch.where(torch.any(torch.logical_not(finished)), x[time], zeros(x)),
    "flags_of_the_loop": lambda finished, x, time: torch.cond((finished | (time > 7)).all(), lambda: zeros(x), lambda: x[time]),
}
BACKENDS = ("stepwise", "native", "persistent")


def same(pair, backends=BACKENDS):
    want = fusedrnn.raw_rnn(*pair, backend="reference")
    for backend in backends:
        got = fusedrnn.raw_rnn(*pair, backend=backend)
        torch.testing.assert_close(got.emit_ta.stack(), want.emit_ta.stack())
        torch.testing.assert_close(got.final_state, want.final_state)
        torch.testing.assert_close(got.final_loop_state, want.final_loop_state)


@pytest.mark.parametrize("name", [name for name in GUARDED if name != "flags_of_the_loop"])
def test_a_guarded_read_is_a_read(name):
    program = program_of(*loop(GUARDED[name]))
    changed = going_on(program)
    at = [target.kind for target in program.targets].index("inputs")
    assert str(outputs(changed.module.graph)[at].target) == "fusedrnn.read.default"


@pytest.mark.parametrize("name", GUARDED)
def test_the_values_stay(name):
    same(loop(GUARDED[name]), BACKENDS if name != "flags_of_the_loop" else BACKENDS[:2])


def read(finished, x, time):
    return x[time]


def test_what_the_loop_returns_still_asks():
    """In the last step all rows are finished."""
    state = loop(GUARDED["cond"], state=lambda state, finished: torch.where(finished.all(), 1.0, state))
    carried = loop(read, carried=lambda total, finished: total + finished.all())
    for pair in (state, carried):
        program = program_of(*pair)
        assert "all" in kinds(going_on(program).module.graph)
        same(pair, BACKENDS[:2])
    at = [target.kind for target in program.targets].index("inputs")
    assert str(outputs(going_on(program_of(*state)).module.graph)[at].target) == "fusedrnn.read.default"


def test_other_flags_are_not_the_loops():
    """That some rows are at their end does not end the loop."""
    program = program_of(*loop(lambda finished, x, time: torch.where((finished & (time > 0)).all(), zeros(x), x[time])))
    assert going_on(program) is program
