"""NaN and Inf in finished rows: no trace in emits, states or gradients, by every way in."""

import pytest
import torch

from fusedrnn import raw_rnn

pytestmark = pytest.mark.usefixtures("float64")
T, B, H = 4, 3, 2
ENDS = torch.tensor([4, 2, 0])


def gradients(loop_fn, cell, leaves):
    emits, state, _ = raw_rnn(cell, loop_fn)
    (emits.stack().sum() + state.sum()).backward()
    assert torch.isfinite(emits.stack()).all()
    return [leaf.grad for leaf in leaves]


def test_next_input():
    cell, x = torch.nn.RNNCell(H, H), torch.randn(T, B, H)
    x[2:, 1] = torch.inf
    x[:, 2] = torch.nan

    def loop_fn(time, out, state, _):
        return time >= ENDS, x[time], torch.zeros(B, H) if state is None else state, out, None

    assert all(torch.isfinite(grad).all() for grad in gradients(loop_fn, cell, cell.parameters()))


def test_the_frozen_state():
    cell, x, h = torch.nn.RNNCell(H, H), torch.randn(T, B, H), torch.zeros(B, H)
    h[2] = torch.nan

    def loop_fn(time, out, state, _):
        return time >= ENDS, x[time], h if state is None else state, out, None

    emits, state, _ = raw_rnn(cell, loop_fn)
    emits.stack().sum().backward()
    assert torch.isfinite(emits.stack()).all()
    assert torch.isnan(state[2]).all()
    assert all(torch.isfinite(p.grad).all() for p in cell.parameters())


@pytest.mark.parametrize("blow", [torch.log, torch.reciprocal, torch.sqrt])
def test_what_loop_fn_makes_of_a_finished_row(blow):
    """Zero output: log, 1/x and sqrt have an infinite slope there, and a zero gradient times that is NaN."""
    w = torch.ones(H, requires_grad=True)

    class Cell:
        output_size = state_size = H

        def __call__(self, x, s):
            return x * w, s + x * w

    x = (torch.arange(T)[:, None] < ENDS).double().unsqueeze(-1).expand(T, B, H)  # ones, and zeros for finished rows

    def loop_fn(time, out, state, _):
        fed = x[time] if out is None else x[time] + 0.1 * blow(out)
        return time >= ENDS, fed, torch.zeros(B, H) if state is None else state, out if out is None else blow(out), None

    (grad,) = gradients(loop_fn, Cell(), [w])
    assert torch.isfinite(grad).all()


def test_loop_fn_may_not_write_into_what_frozen_rows_keep():
    class Memory:
        output_size, state_size = H, (T, H)

        def __call__(self, x, memory):
            return x, memory

    def loop_fn(time, out, memory, _):
        if out is None:
            return time >= ENDS, torch.ones(B, H), torch.zeros(B, T), torch.zeros(H), None
        memory[:, time - 1] = out[:, 0]
        return time >= ENDS, torch.ones(B, H), memory, out, None

    with pytest.raises(RuntimeError, match="cell or loop_fn changed the state in place"):
        raw_rnn(Memory(), loop_fn)
    with torch.inference_mode():
        assert raw_rnn(Memory(), loop_fn)[1].sum(1).tolist() == [4, 2, 0]


def test_loop_fn_may_keep_its_flags_and_change_them():
    done = torch.tensor([False, False, True])

    def loop_fn(time, out, state, _):
        if out is not None:
            done.logical_or_(time >= ENDS)
        return done, torch.ones(B, H), torch.zeros(B, H) if state is None else state, out, None

    emits, _, _ = raw_rnn(torch.nn.RNNCell(H, H), loop_fn)
    assert emits.lengths.tolist() == [4, 2, 0]


@pytest.mark.parametrize("grad", [False, True])
def test_values_do_not_depend_on_grad_mode(grad):
    """A frozen -inf: the cell is given a zero for it, with and without a backward to come."""

    class Largest:
        output_size = state_size = H

        def __call__(self, x, h):
            return h.clamp(min=0), h

    def loop_fn(time, out, state, seen):
        start = torch.full((B, H), -torch.inf, requires_grad=grad)
        seen = torch.zeros(B) if out is None else seen + state.detach().isinf().sum(1)
        return time >= ENDS, torch.ones(B, H), start if out is None else state, out, seen

    with torch.set_grad_enabled(grad):
        _, state, seen = raw_rnn(Largest(), loop_fn)
    assert torch.isinf(state).all()
    assert seen.tolist() == [8, 4, 0]


def test_vmap_over_parameters_with_finished_rows():
    x, weights = torch.randn(T, B, H), torch.randn(2, H, H)

    def total(weight):
        class Cell:
            output_size = state_size = H

            def __call__(self, x, h):
                h = torch.tanh(x @ weight + h)
                return h, h

        loop = lambda time, out, state, _: (time >= ENDS, x[time], torch.zeros(B, H) if state is None else state, out, None)  # noqa: E731
        return raw_rnn(Cell(), loop)[0].stack().sum()

    both = torch.func.vmap(total)(weights)
    torch.testing.assert_close(both[1], total(weights[1]))


def test_infinite_gradients_of_live_rows_are_not_hidden():
    w = torch.zeros(H, requires_grad=True)

    class Cell:
        output_size = state_size = H

        def __call__(self, x, s):
            return x * w, s

    def loop_fn(time, out, state, _):
        return time >= torch.tensor([2, 1]), torch.ones(2, H), torch.zeros(2, H), out if out is None else out.sqrt(), None

    emits, _, _ = raw_rnn(Cell(), loop_fn)
    emits.stack().sum().backward()
    assert torch.isinf(w.grad).all()


def test_a_cell_that_works_in_place_does_not_reach_frozen_rows():
    class Cell:
        output_size = state_size = H

        def __call__(self, x, s):
            s.add_(1)
            return s.clone(), s

    x = torch.ones(T, B, H)

    def loop_fn(time, out, state, _):
        return time >= ENDS, x[time], torch.zeros(B, H) if state is None else state, out, None

    with pytest.raises(RuntimeError, match="cell or loop_fn changed the state in place in the step to time 1"):
        raw_rnn(Cell(), loop_fn)
    with torch.inference_mode():
        emits, state, _ = raw_rnn(Cell(), loop_fn)
    assert state[:, 0].tolist() == [4, 2, 0]
    assert emits.stack()[:, :, 0].tolist() == [[1, 1, 0], [2, 2, 0], [3, 0, 0], [4, 0, 0]]
