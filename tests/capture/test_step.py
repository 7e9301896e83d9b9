"""What is captured, when, how often, and why not."""

import logging

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import PlanError, TensorArray, raw_rnn
from fusedrnn.capture import cache

T, B, D, H = 5, 3, 4, 6


@pytest.fixture(autouse=True)
def _forget():
    cache.clear()


def counted(cell, x, lengths, state, backend):
    """The result and the number of times that loop_fn was called."""
    calls = 0

    def loop_fn(time, output, state_, _):
        return time >= lengths, x[time], state if output is None else state_, output, None

    original = fusedrnn.contract.asked

    def asked(call, *arguments):
        nonlocal calls
        calls += 1
        return original(call, *arguments)

    fusedrnn.contract.asked = asked
    try:
        return raw_rnn(cell, loop_fn, backend=backend), calls
    finally:
        fusedrnn.contract.asked = original


@pytest.mark.parametrize("backend", ["stepwise", "native"])
def test_loop_fn_is_called_once_more_than_it_is_captured(backend):
    """Time 0 and the capture; later calls, with other tensors of other sizes, only time 0."""
    cell = nn.GRUCell(D, H)
    with torch.no_grad():
        for round_, (steps, rows) in enumerate([(T, B), (T + 20, B + 2), (T, B)]):
            lengths = torch.arange(rows) + steps - rows
            x = torch.randn(steps, rows, D)
            result, calls = counted(cell, x, lengths, torch.zeros(rows, H), backend)
            assert calls == (1 if round_ else 2)
            assert result.lengths.tolist() == lengths.tolist()
            expected, calls = counted(cell, x, lengths, torch.zeros(rows, H), "reference")
            assert calls == steps
            torch.testing.assert_close(result[0].stack(), expected[0].stack())
    assert cache.size() == 1


def test_a_row_of_its_own_is_another_program():
    """torch fixes the size 1: one program for a batch of one, one for all others."""
    cell = nn.GRUCell(D, H)
    for rows in (1, 2, 1, 5):
        counted(cell, torch.randn(T, rows, D), torch.full((rows,), T), torch.zeros(rows, H), "stepwise")
    assert cache.size() == 2


def test_new_weights_are_seen():
    cell, x = nn.GRUCell(D, H), torch.randn(T, B, D)
    lengths, zeros = torch.tensor([5, 3, 0]), torch.zeros(B, H)
    with torch.no_grad():
        before = counted(cell, x, lengths, zeros, "native")[0][1]
        cell.weight_hh.mul_(0.5)
        after = counted(cell, x, lengths, zeros, "native")[0][1]
        expected = counted(cell, x, lengths, zeros, "reference")[0][1]
        torch.testing.assert_close(after, expected)
        assert not torch.equal(before, after)
        cell.weight_ih = nn.Parameter(torch.zeros_like(cell.weight_ih))
        torch.testing.assert_close(counted(cell, x, lengths, zeros, "native")[0][1], counted(cell, x, lengths, zeros, "reference")[0][1])
    assert cache.size() == 1


def looping(step, backend, *, loop_state=None):
    """A loop over x whose loop_fn passes through ``step(time, output, state, loop_state)``, which gives the input."""
    torch.manual_seed(0)
    zeros = torch.zeros(B, H)

    def loop_fn(time, output, state, carried):
        if output is None:
            return torch.zeros(B, dtype=torch.bool), torch.zeros(B, D), zeros, None, loop_state
        made = step(time, output, state, carried)
        inputs, carried = made if isinstance(made, tuple) else (made, carried)
        return time >= T, inputs, state, output, carried

    return raw_rnn(nn.GRUCell(D, H), loop_fn, backend=backend)


LOG = []
CALLS = {"count": 0}


def branches(time, output, state, carried):
    if output.sum() > 0:  # the branch
        return output[:, :D]
    return output[:, :D] * 2


def converts(time, output, state, carried):
    return output[:, :D] * float(output.max())


def indexes_a_list(time, output, state, carried):
    return [output[:, :D], output[:, 1 : D + 1]][time % 2]


def appends(time, output, state, carried):
    LOG.append(output)
    return output[:, :D]


def counts(time, output, state, carried):
    CALLS["count"] = 2 * CALLS["count"] + 1
    return output[:, :D]


def prints(time, output, state, carried):
    print("step")
    return output[:, :D]


def picks_positive(time, output, state, carried):
    return output[:, :D] * output[output > 0].sum()


def nests(time, output, state, carried):
    inner = lambda t, o, s, _: (t >= 2, output[:, :D], state if o is None else s, o, None)  # noqa: E731
    return raw_rnn(nn.GRUCell(D, H), inner)[1][:, :D]


def draws_from_a_generator(time, output, state, carried):
    return output[:, :D] + torch.rand(B, D, generator=torch.default_generator)


def stacks_a_carried_array(time, output, state, carried):
    carried = carried.write(time - 1, output)
    return carried.stack().mean(0)[:, :D], carried


LAST = None


def rebinds(time, output, state, carried):
    global LAST
    LAST = time
    return output[:, :D]


class Counter:
    def __init__(self):
        self.count = 0

    def step(self, output):
        self.count = 1 - self.count
        return output[:, :D]


COUNTER = Counter()


def sets(time, output, state, carried):
    return COUNTER.step(output)


REFUSALS = {
    branches: ("decides in Python on a tensor's value", "use torch.where or torch.cond", "# the branch"),
    converts: ("turns a tensor into Python numbers", "keep it a tensor", "float(output.max())"),
    indexes_a_list: ("uses a tensor as a Python index", "torch.stack(items)[time]", "[time % 2]"),
    appends: ("LOG", "carry it in the state or loop_state", "LOG.append(output)"),
    counts: ("CALLS", "carry it in the state or loop_state", '2 * CALLS["count"] + 1'),
    rebinds: ("global `LAST`", "carry it in the state or loop_state", "LAST = time"),
    sets: ("`COUNTER.count`", "carry it in the state or loop_state", "self.count = 1 - self.count"),
    prints: ("calls print", "leave it out", 'print("step")'),
    nests: ("runs a loop of its own", "number of steps is not known", "raw_rnn(nn.GRUCell(D, H), inner)"),
    draws_from_a_generator: ("draws from a torch.Generator", "leave `generator` out", "torch.rand("),
    stacks_a_carried_array: ("asks a TensorArray that it carries for more than one element", "carry a tensor", "carried.stack()"),
}


def source_line(location):
    file, line = location.rsplit(":", 1)
    assert file == __file__
    with open(file) as text:
        return text.read().splitlines()[int(line) - 1]


@pytest.mark.parametrize("step", REFUSALS, ids=lambda step: step.__name__)
def test_refusals_name_the_reason_the_line_and_the_way_out(step, auto, caplog):
    what, instead, line = REFUSALS[step]
    array = TensorArray(torch.float32, element_shape=(B, H)) if step is stacks_a_carried_array else None
    with pytest.raises(PlanError) as error, torch.no_grad():
        looping(step, "stepwise", loop_state=array)
    assert what in error.value.reason
    assert instead in error.value.reason
    assert line in source_line(error.value.location)
    before = fusedrnn.fallbacks().get(error.value.reason, 0)
    LOG.clear()
    CALLS["count"] = 0
    with caplog.at_level(logging.WARNING, "fusedrnn"), torch.no_grad():
        for _ in range(2):
            looping(step, "auto", loop_state=array)
    assert fusedrnn.fallbacks()[error.value.reason] == before + 2
    assert len([record for record in caplog.records if record.name == "fusedrnn"]) <= 1
    # What tracing changed was undone, and the loop itself ran as it was written.
    assert len(LOG) == (2 * T if step is appends else 0)
    assert CALLS["count"] == (2 ** (2 * T) - 1 if step is counts else 0)


def test_sizes_that_depend_on_values_run_step_by_step(auto):
    with torch.no_grad():
        expected, found = (looping(picks_positive, backend)[1] for backend in ("reference", "auto"))
        torch.testing.assert_close(found, expected)
        with pytest.raises(PlanError, match="a tensor whose size depends on values") as error:
            looping(picks_positive, "native")
    assert "output[output > 0]" in source_line(error.value.location)


def test_a_comparison_of_the_time_with_zero_is_known():
    """``if time == 0`` is how some write what others write as ``if output is None``."""
    x, zeros = torch.randn(T, B, D), torch.zeros(B, H)

    def loop_fn(time, output, state, _):
        if time == 0:
            state, output = zeros, None
        if time > 0:
            output = output * 2
        return time >= T, x[time], state, output, None

    cell = nn.GRUCell(D, H)
    for backend in ("stepwise", "native"):
        with torch.no_grad():
            torch.testing.assert_close(
                raw_rnn(cell, loop_fn, backend=backend)[0].stack(), raw_rnn(cell, loop_fn, backend="reference")[0].stack()
            )


def test_no_grad_within_the_loop_is_kept():
    x, zeros = torch.randn(T, B, D), torch.zeros(B, H)
    weight = torch.randn(H, H, requires_grad=True)

    def loop_fn(time, output, state, _):
        if output is None:
            return time >= T, x[time], zeros, None, None
        with torch.no_grad():
            fixed = output @ weight
        return time >= T, x[time], state, output * 1 + fixed, None

    cell = nn.GRUCell(D, H)
    found = []
    for backend in ("reference", "stepwise", "native"):
        emits = raw_rnn(cell, loop_fn, backend=backend)[0].stack()
        found.append(torch.autograd.grad(emits.square().sum(), [cell.weight_hh, weight], allow_unused=True))
    for other in found[1:]:
        torch.testing.assert_close(other[0], found[0][0])
        assert other[1] is None or not other[1].any()


def test_autocast_is_part_of_the_program():
    x, zeros = torch.randn(T, B, D), torch.zeros(B, H)
    linear = nn.Linear(D + H, H)

    class Cell:
        output_size = state_size = H

        def __call__(self, inputs, state):
            new = linear(torch.cat([inputs, state], 1)).tanh().float()
            return new, new

    def loop_fn(time, output, state, _):
        return time >= T, x[time], zeros if output is None else state, output, None

    cell = Cell()
    with torch.no_grad():
        plain = raw_rnn(cell, loop_fn, backend="stepwise")[0].stack()
        with torch.autocast("cpu", torch.bfloat16):
            cast = raw_rnn(cell, loop_fn, backend="stepwise")[0].stack()
            expected = raw_rnn(cell, loop_fn, backend="reference")[0].stack()
            native = raw_rnn(cell, loop_fn, backend="native")[0].stack()
    assert not torch.equal(plain, cast)
    torch.testing.assert_close(cast, expected)
    torch.testing.assert_close(native, expected, atol=2e-2, rtol=2e-2)
    assert cache.size() == 2


@pytest.mark.parametrize("backend", ["stepwise", "native"])
def test_torch_random_functions_draw_the_same_everywhere(backend):
    x, zeros = torch.randn(T, B, D), torch.zeros(B, H)

    def loop_fn(time, output, state, _):
        if output is None:
            return time >= T, x[time], zeros, None, None
        noisy = nn.functional.dropout(output, 0.3) + torch.randn_like(output) + torch.rand(B, 1) + torch.bernoulli(torch.full((B, H), 0.5))
        noisy = (
            noisy + torch.multinomial(torch.softmax(output, -1), 1) + torch.empty_like(output).exponential_() + torch.randint(0, 5, (B, 1))
        )
        return time >= T, x[time], state, noisy, None

    cell = nn.GRUCell(D, H)
    with torch.no_grad():
        torch.manual_seed(3)
        expected = raw_rnn(cell, loop_fn, backend="reference")[0].stack()
        torch.manual_seed(3)
        torch.testing.assert_close(raw_rnn(cell, loop_fn, backend=backend)[0].stack(), expected, atol=1e-4, rtol=1e-4)
        torch.manual_seed(4)
        assert not torch.equal(raw_rnn(cell, loop_fn, backend=backend)[0].stack(), expected)


@pytest.mark.parametrize("backend", ["stepwise", "native"])
@pytest.mark.parametrize("look_up", [lambda table, at: table[at], nn.functional.embedding, lambda table, at: table.select(0, at)])
def test_a_cell_that_looks_up_by_a_number_in_its_state(look_up, backend):
    table = torch.randn(9, H, requires_grad=True)
    x = torch.randn(T, B, H)

    class Cell:
        output_size, state_size = H, (H, torch.Size(()))

        def __call__(self, inputs, state):
            at = (state[1], table) if look_up is nn.functional.embedding else (table, state[1])
            new = torch.tanh(inputs + look_up(*at) * state[0])
            return new, (new, state[1] + 1)

    def looped(start, backend):
        def loop_fn(time, output, state, _):
            return time >= T, x[time], (torch.ones(B, H), torch.tensor(start)) if output is None else state, output, None

        emits = raw_rnn(Cell(), loop_fn, backend=backend)[0].stack()
        return emits, torch.autograd.grad(emits.sum(), table)[0]

    for got, want in zip(looped(1, backend), looped(1, "reference"), strict=True):
        torch.testing.assert_close(got, want)
    with pytest.raises(IndexError):
        looped(9, backend)  # the read rule is loop_fn's: here an index past the end is one


def test_an_error_of_tracing_has_a_place():
    class Cell:
        output_size = state_size = H

        def __call__(self, inputs, state):
            if isinstance(state.shape[0], torch.SymInt):
                raise RuntimeError("strange")
            return state, state

    def loop_fn(time, output, state, _):
        return time >= T, torch.zeros(B, H), torch.zeros(B, H) if output is None else state, output, None

    with pytest.raises(PlanError, match="cannot be traced: RuntimeError: strange") as refused:
        raw_rnn(Cell(), loop_fn, backend="stepwise")
    assert "raise RuntimeError" in source_line(refused.value.location)


def test_programs_of_one_code_are_bounded():
    """A step that is good for one batch size only is captured for each: the last ones are kept."""

    class Cell:
        output_size = state_size = H

        def __call__(self, inputs, state):
            return inputs * int(inputs.shape[0]), state

    def looped(rows, backend):
        x, zeros = torch.ones(T, rows, H), torch.zeros(rows, H)

        def loop_fn(time, output, state, _):
            return time >= T, x[time], zeros if output is None else state, output, None

        return raw_rnn(Cell(), loop_fn, backend=backend)[0].stack()

    for rows in range(2, 3 * cache._MOST_SIZES):
        torch.testing.assert_close(looped(rows, "stepwise"), torch.full((T, rows, H), float(rows)))
        assert cache.size() == min(rows - 1, cache._MOST_SIZES)
        looped(2, "stepwise")  # used all along, it stays
    captures = []
    original = cache.capture
    cache.capture = lambda *arguments: captures.append(1) or original(*arguments)
    try:
        looped(2, "stepwise")
        assert not captures
        looped(3, "stepwise")
        assert captures
    finally:
        cache.capture = original
