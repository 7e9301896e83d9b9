"""Rules of the contract with nothing to record: who is called when, and where fusedrnn does better than TensorFlow on purpose."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import TensorArray

from .cells import Cell, real, sequence, tanh_cell, zeros
from .golden import RECORDINGS, WRITTEN, _recordings, given
from .inputs import PROGRAMS, B, D, H, T


def test_every_recording_is_repeated():
    """All programs are recorded and written in PyTorch, and nothing else is recorded."""
    from . import test_attention, test_cells, test_emits, test_feedback, test_loop_state, test_numbers, test_reads, test_states  # noqa: F401

    assert {path.split("/")[0] for path in _recordings()} == set(PROGRAMS) == WRITTEN
    assert RECORDINGS.stat().st_size < 2**20


@pytest.mark.parametrize("lengths", [[3, 0, 1, 2], [5, 5, 5, 5], [1, 1, 1, 1], [0, 0, 0, 0]])
def test_calls(lengths):
    """T steps are T cell calls and T + 1 loop_fn calls, all of them positional. Only the definition counts: others may trace."""
    times, cells = [], []
    steps = max(lengths)

    def cell_step(x, h, /):
        if not isinstance(x, torch._subclasses.FakeTensor):
            cells.append(h)
        return h + 1, h + 1

    def loop_fn(time, output, state, loop_state, /):
        assert (time.dtype, time.shape, time.device.type) == (torch.int32, (), "cpu")
        assert (output is None) == (state is None) == (time == 0)
        assert loop_state is None
        times.append(int(time))
        return time >= torch.tensor(lengths), zeros(B, D), zeros(B, H) if output is None else state, output, None

    emit, state, _ = fusedrnn.raw_rnn(Cell(cell_step), loop_fn, backend="reference")
    assert times == list(range(steps + 1))
    assert len(cells) == steps
    assert emit.stack().shape == (steps, B, H)
    assert state[:, 0].tolist() == lengths


def test_what_a_finished_row_is_given():
    """Its frozen state and live input reach the cell, and loop_fn sees what the cell makes of them."""
    given_to_cell, seen = [], []

    def cell_step(x, h):
        given_to_cell.append((x[:, 0].tolist(), h[:, 0].tolist()))
        return 100 * h + x[:, :1], h + 1

    def loop_fn(time, output, state, loop_state):
        seen.append(None if output is None else (output[:, 0].tolist(), state[:, 0].tolist()))
        return time >= torch.tensor([3, 1]), zeros(2, D) + time + 10, zeros(2, H) if output is None else state, output, None

    emit, _, _ = fusedrnn.raw_rnn(Cell(cell_step), loop_fn, backend="reference")
    assert given_to_cell == [([10, 10], [0, 0]), ([11, 11], [1, 1]), ([12, 12], [2, 1])]
    assert seen == [None, ([10, 10], [1, 1]), ([111, 111], [2, 2]), ([212, 112], [3, 2])]
    assert emit.stack()[:, :, 0].tolist() == [[10, 10], [111, 0], [212, 0]]


def looping(raw_rnn, lengths=(5, 3, 0, 1), *, cell=None, emit=(None, None), loop_state=(None, None), **options):
    """A loop over zeros; ``emit`` and ``loop_state`` are (at time 0, a function of (output, loop_state) later)."""
    ends, nothing, start = torch.tensor(lengths), zeros(B, D), zeros(B, H)

    def loop_fn(time, output, state, carried):
        finished = time >= ends
        if output is None:
            return finished, nothing, start, emit[0], loop_state[0]
        emitted = output if emit[1] is None else emit[1](output)
        return finished, nothing, state, emitted, None if loop_state[1] is None else loop_state[1](carried)

    def step(x, h):
        h = h + 1 + x[:, :1]
        return h, h

    return raw_rnn(cell or Cell(step), loop_fn, **options)


@pytest.mark.parametrize("lengths", [(5, 3, 0, 1), (0, 0, 0, 0)])
def test_no_loop_state_stays_none(raw_rnn, lengths):
    """TensorFlow hands loop_fn an int32 0 for it."""

    def check(carried):
        assert carried is None

    assert looping(raw_rnn, lengths, loop_state=(None, check))[2] is None


def test_loop_state_numbers_become_tensors(raw_rnn):
    _, _, (count, flag, share) = looping(
        raw_rnn, loop_state=((0, False, 0.5), lambda carried: (carried[0] + 1, ~carried[1], carried[2] / 2))
    )
    assert (count.item(), flag.item(), share.item()) == (5, True, 0.5**6)


def test_an_empty_loop_state(raw_rnn):
    assert looping(raw_rnn, loop_state=((), lambda carried: carried))[2] == ()


def test_loop_state_of_a_loop_without_steps(raw_rnn):
    start = {"a": zeros(2) + 3, "array": TensorArray(real()).unstack(zeros(3, 2))}
    _, state, carried = looping(raw_rnn, (0, 0, 0, 0), loop_state=(start, lambda carried: carried))
    assert carried["a"].tolist() == [3, 3]
    assert carried["array"].size() == 3
    assert state.tolist() == zeros(B, H).tolist()


@pytest.mark.parametrize("lengths", [(5, 3, 0, 1), (0, 0, 0, 0)])
def test_emit_none_takes_the_dtype_of_the_output(raw_rnn, lengths):
    """TensorFlow takes that of the first state leaf, here float64, and fails."""
    cell = Cell(lambda x, h: ({"whole": h.int(), "half": h.float()}, h + 1), {"half": H, "whole": torch.Size([H])})
    emit = looping(raw_rnn, lengths, cell=cell)[0]
    assert (emit["half"].dtype, emit["whole"].dtype) == (torch.float32, torch.int32)
    assert (emit["half"].stack().dtype, emit["whole"].stack().dtype) == (torch.float32, torch.int32)
    assert emit["half"].stack().shape == emit["whole"].stack().shape == (max(lengths), B, H)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.complex128])
@pytest.mark.parametrize("lengths", [(2, 1, 0, 1), (0, 0, 0, 0)])
def test_emit_of_any_dtype(raw_rnn, backend, dtype, lengths):
    if backend in ("native", "persistent") and dtype.is_complex and any(lengths):
        with pytest.raises(fusedrnn.PlanError, match="complex128"):
            looping(raw_rnn, lengths, emit=(torch.ones(2, dtype=dtype), lambda output: output[:, :2].to(dtype)))
        return
    emit = looping(raw_rnn, lengths, emit=(torch.ones(2, dtype=dtype), lambda output: output[:, :2].to(dtype)))[0].stack()
    assert (emit.dtype, emit.shape) == (dtype, (max(lengths), B, 2))
    assert [row.any().item() for row in emit[-1:].flatten(0, 1)] == [length == 2 for length in lengths][: B * len(emit[-1:])]


def test_the_first_emit_lends_no_values(raw_rnn):
    example = torch.full((H,), torch.nan, dtype=real())
    assert looping(raw_rnn, emit=(example, lambda output: output))[0].stack()[:, :, 0].tolist() == [
        [1, 1, 0, 1], [2, 2, 0, 0], [3, 3, 0, 0], [4, 0, 0, 0], [5, 0, 0, 0],
    ]  # fmt: skip


def test_emit_numbers_at_time_0(raw_rnn):
    emit = looping(raw_rnn, emit=({"token": 0, "end": False}, lambda output: {"token": output[:, 0].long(), "end": output[:, 0] > 2}))[0]
    assert (emit["token"].stack().dtype, emit["end"].stack().dtype) == (torch.int64, torch.bool)


def test_dict_key_order_is_immaterial(raw_rnn):
    emit = looping(raw_rnn, emit=({"a": zeros(1), "b": zeros()}, lambda output: {"b": output[:, 0], "a": output[:, :1]}))[0]
    assert (emit["a"].stack().shape, emit["b"].stack().shape) == ((5, B, 1), (5, B))
    emit = looping(raw_rnn, emit=({"a": zeros(1), "b": zeros()}, lambda output: OrderedDict(b=output[:, 0], a=output[:, :1])))[0]
    assert (emit["a"].stack().shape, emit["b"].stack().shape) == ((5, B, 1), (5, B))


def test_namedtuples_match_by_name_and_fields(raw_rnn):
    first, second = namedtuple("Out", "a b"), namedtuple("Out", "a b")
    emit = looping(raw_rnn, emit=(first(zeros(), zeros()), lambda output: second(output[:, 0], output[:, 1])))[0]
    assert type(emit) is first


def test_size_is_a_leaf(raw_rnn):
    """torch.Size is a tuple to Python; here it is the shape of one leaf."""
    cell = Cell(lambda x, h: (h[:, None, :2].expand(-1, 3, 2), h), torch.Size([3, 2]), torch.Size([H]))
    assert looping(raw_rnn, cell=cell)[0].stack().shape == (5, B, 3, 2)


@pytest.mark.parametrize("finished", [True, torch.tensor(True)])
def test_finished_at_once(raw_rnn, finished):
    def loop_fn(time, output, state, loop_state):
        return finished, zeros(B, D), zeros(B, H), None, None

    emit, state, _ = raw_rnn(Cell(lambda x, h: (h, h)), loop_fn)
    assert emit.stack().shape == (0, B, H)
    assert state.shape == (B, H)


def test_a_loop_in_the_cell_of_a_loop_without_steps(raw_rnn):
    """The dtypes of its emits come from a run on tensors without data, which the inner loop must survive."""

    def step(x, h):
        inner = lambda time, output, state, _: (time >= torch.tensor([2, 1, 0, 2]), x, h if output is None else state, output, None)  # noqa: E731
        h = raw_rnn(Cell(lambda x, h: (h + x[:, :1], h + x[:, :1])), inner)[1]
        return h, h

    assert looping(raw_rnn, (0, 0, 0, 0), cell=Cell(step))[0].stack().shape == (0, B, H)


def test_arguments_by_position(raw_rnn):
    p = given("duck_typed")
    expected = raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time]))[0].stack()
    for arguments in [(None, False, None), (0,), (32, False), (1, True, "loop"), (T, True)]:
        assert torch.equal(raw_rnn(tanh_cell(p), sequence(p, lambda time: p.x[time]), *arguments)[0].stack(), expected)


@pytest.mark.parametrize("steps", [0, 1, 3, 5, 9])
def test_max_steps(raw_rnn, steps):
    """Rows that it cuts off are reported."""
    lengths = torch.tensor([5, 3, 0, 1])
    emit, state, _ = looping(raw_rnn, max_steps=steps)
    assert emit.size() == len(emit) == min(steps, 5)
    assert emit.stack().shape == (min(steps, 5), B, H)
    assert emit.lengths.dtype == torch.int32
    assert emit.lengths.tolist() == lengths.clamp(max=steps).tolist()
    assert emit.truncated.tolist() == (lengths > steps).tolist()
    assert state[:, 0].tolist() == lengths.clamp(max=steps).tolist()


def test_a_loop_that_never_ends(raw_rnn):
    nothing = zeros(B, D)
    emit, _, _ = raw_rnn(
        Cell(lambda x, h: (h + 1, h + 1)),
        lambda time, output, state, _: (False, nothing, zeros(B, H) if output is None else state, output, None),
        max_steps=7,
    )
    assert emit.stack()[:, 0, 0].tolist() == list(range(1, 8))
    assert emit.truncated.all()


def test_every_emit_leaf_knows_the_lengths(raw_rnn):
    emit = looping(raw_rnn, emit=({"a": zeros(), "b": zeros(H)}, lambda output: {"a": output[:, 0], "b": output}))[0]
    for leaf in emit.values():
        assert leaf.lengths.tolist() == [5, 3, 0, 1]
        assert not leaf.truncated.any()


def test_reads_past_the_end_are_the_last_element(raw_rnn):
    """What the natural port reads at time T: a loop_state may look at it."""
    x = torch.arange(3.0, dtype=real())[:, None].expand(3, B)

    def loop_fn(time, output, state, seen):
        return time >= 3, x[time][:, None].expand(-1, D), zeros(B, H) if output is None else state, output, x[time]

    assert raw_rnn(Cell(lambda x, h: (h, h)), loop_fn)[2].tolist() == [2] * B


def test_a_finished_rows_infinite_input_is_quiet(raw_rnn):
    """A non-finite input of a finished row reaches the cell as zero, so that what loop_fn sees of it is finite too."""

    lengths, bad = torch.tensor([4, 1, 0, 2]), torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [1.0]], dtype=real())

    def loop_fn(time, output, state, total):
        done = (time >= lengths)[:, None]
        first = output is None
        total = zeros(B) if first else total + output[:, 0]
        next_input = torch.where(done, bad, 1.0)
        return done[:, 0], next_input, zeros(B, H) if first else state, output, total

    emit, state, total = raw_rnn(Cell(lambda x, h: (h + x, h + x)), loop_fn)
    assert emit.stack()[:, :, 0].tolist() == [[1, 1, 0, 1], [2, 0, 0, 2], [3, 0, 0, 0], [4, 0, 0, 0]]
    assert state[:, 0].tolist() == [4, 1, 0, 2]
    assert total.isfinite().all()


@pytest.mark.parametrize("change", [lambda o, s: o.mul_(0.5), lambda o, s: s.mul_(0.5), lambda o, s: o[:, :1].add_(1)])
def test_a_tensor_that_is_output_and_state(raw_rnn, change):
    """Who changes the one in place changes the other."""
    x, start, lengths = torch.rand(5, B, D).to(zeros().dtype), zeros(B, H), torch.tensor([5, 3, 0, 1])
    cell = nn.RNNCell(D, H).requires_grad_(False).to(start.dtype)

    def loop_fn(time, output, state, loop_state):
        if output is None:
            return time >= lengths, x[time], start, None, None
        change(output, state)
        return time >= lengths, x[time], state, output, None

    state, emits = start, []
    for inputs in x:
        state = cell(inputs, state)
        change(state, state)
        emits.append(state)
    live = torch.arange(5)[:, None, None] < lengths[:, None]
    torch.testing.assert_close(raw_rnn(cell, loop_fn)[0].stack(), torch.stack(emits) * live)
