"""Changes in place while a step is captured: those of what the step has made, and those that are refused."""

import pytest
import torch

import fusedrnn
from fusedrnn import PlanError, raw_rnn
from fusedrnn.capture import cache

T, B, D = 5, 3, 4
LENGTHS = torch.tensor([5, 2, 0])


class Foreign:
    """A cell made of a function."""

    output_size = state_size = D

    def __init__(self, function):
        self.function = function

    def __call__(self, inputs, state):
        return self.function(inputs, state)


@pytest.fixture(autouse=True)
def _forget():
    cache.clear()


def step(inputs, state):
    new = torch.tanh(inputs + state)
    return new, new


def looped(cell, read, carried=None, put=None):
    """A loop_fn that reads with ``read(time)`` and carries ``carried``, changed by ``put(carried, time, output)``."""

    def loop_fn(time, output, state, kept):
        if output is None:
            return time >= LENGTHS, read(time), torch.zeros(B, D), None, carried
        return time >= LENGTHS, read(time), state, output, None if put is None else put(kept, time, output)

    return Foreign(cell), loop_fn


def refusal(cell, loop_fn):
    with pytest.raises(PlanError) as refused:
        raw_rnn(cell, loop_fn, backend="stepwise")
    assert refused.value.location.startswith(__file__)
    return refused.value.reason


# What the step has made.


@pytest.mark.parametrize("backend", ["stepwise", "native"])
@pytest.mark.parametrize(
    "change",
    [
        lambda a, x: a.clamp_(min=-0.5),
        lambda a, x: a[:, 1:].zero_(),
        lambda a, x: a[:, :2].copy_(x[:, 2:]),
        lambda a, x: a[:, 1].mul_(x[:, 0]),
        lambda a, x: a.index_fill_(1, torch.tensor([0, 2]), 0.5),
        lambda a, x: a.cumsum_(1),
        lambda a, x: a.lerp_(x, 0.3),
        lambda a, x: a.__setitem__(a > 0, 0.25),
        lambda a, x: a.__setitem__((slice(None), torch.tensor([0, 2])), x[:, :2]),
        lambda a, x: a.masked_fill_(x > 0, 0.5),
    ],
)
def test_values_and_gradients(float64, change, backend):
    x, w = torch.randn(T, B, D), torch.randn(D, D, requires_grad=True)

    def cell(inputs, state):
        new = (inputs @ w + state).clone()
        change(new, torch.sin(inputs @ w))
        return new, torch.tanh(new)

    found = {}
    for name in ("reference", backend):
        emits = raw_rnn(*looped(cell, lambda time: x[time]), backend=name)[0].stack()
        found[name] = emits.detach(), torch.autograd.grad(emits.sin().sum(), w)[0]
    for got, want in zip(found[backend], found["reference"], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


PUTS = {
    "first": ((T + 1, B, D), lambda a, time, new: a.__setitem__(time, new)),
    "second": ((B, T + 1, D), lambda a, time, new: a.__setitem__((slice(None), time), new)),
    "last": ((B, D, T + 1), lambda a, time, new: a.__setitem__((..., time), new)),
    "from the end": ((T + 1, B, D), lambda a, time, new: a.__setitem__(-time, new)),
    "behind an int": ((2, T + 1, B, D), lambda a, time, new: a.__setitem__((1, time), new)),
    "a part": ((T + 1, B, D), lambda a, time, new: a.__setitem__((time, slice(None), slice(1, 3)), new[:, :2])),
    "a number": ((T + 1, B, D), lambda a, time, new: a.__setitem__(time, 1.5)),
    "rows": ((B, T + 1, D), lambda a, time, new: a.__setitem__((torch.arange(B), time), new)),
}


def added(a, time, new):
    a[time] += new


PUTS["added"] = ((T + 1, B, D), added)


@pytest.mark.parametrize("backend", ["stepwise", "native"])
@pytest.mark.parametrize("name", PUTS)
def test_a_write_at_the_time(name, backend):
    shape, put = PUTS[name]
    x = torch.randn(T, B, D)

    def written(kept, time, output):
        kept = kept.clone()
        put(kept, time, output)
        return kept

    cell, loop_fn = looped(step, lambda time: x[time], torch.zeros(shape), written)
    got, want = (raw_rnn(cell, loop_fn, backend=which)[2] for which in (backend, "reference"))
    torch.testing.assert_close(got, want)
    assert bool(want.any())


# What was there before the step.


def test_an_element_that_was_looked_up():
    """It is a view for whoever wrote the code: what it is an element of changes with it."""
    x = torch.randn(T, B, D)

    def read(time):
        element = x[time]
        element[:, 0] = 0.5
        return element

    assert "changes in place what it looked up" in refusal(*looped(step, read))


def test_a_view_of_an_element_of_what_the_step_has_made():
    x = torch.randn(T, B, D)

    def put(kept, time, output):
        kept = kept.clone()
        kept[time][0].copy_(output[0])
        return kept

    assert "changes in place what it looked up" in refusal(*looped(step, lambda time: x[time], torch.zeros(T + 1, B, D), put))


def test_a_copy_of_an_element():
    x = torch.randn(T, B, D)

    def read(time):
        element = x[time].clone()
        element[:, 0] = 0.5
        return element

    got, want = (raw_rnn(*looped(step, read), backend=which)[0].stack() for which in ("stepwise", "reference"))
    torch.testing.assert_close(got, want)


def test_a_closed_over_tensor():
    x, total = torch.randn(T, B, D), torch.zeros(B, D)

    def cell(inputs, state):
        total.add_(inputs)
        return step(inputs, state)

    assert "changes in place a tensor that it closes over" in refusal(*looped(cell, lambda time: x[time]))
    assert not total.any()


def test_loop_state():
    x = torch.randn(T, B, D)

    def put(kept, time, output):
        kept += output
        return kept

    assert "changes in place loop_state" in refusal(*looped(step, lambda time: x[time], torch.zeros(B, D), put))


@pytest.mark.parametrize("own", [False, True])
def test_the_inputs_of_the_cell(own):
    """They may be an element of a tensor that loop_fn reads."""
    x = torch.randn(T, B, D)

    def cell(inputs, state):
        inputs += 1
        return step(inputs, state)

    cell, loop_fn = looped(cell, lambda time: x[time] * 1 if own else x[time])
    if own:
        got, want = (raw_rnn(cell, loop_fn, backend=which)[0].stack() for which in ("stepwise", "reference"))
        torch.testing.assert_close(got, want)
    else:
        assert "changes in place its inputs" in refusal(cell, loop_fn)


def test_running_statistics():
    x, norm = torch.randn(T, B, D), torch.nn.BatchNorm1d(D)

    def cell(inputs, state):
        return step(norm(inputs), state)

    assert "changes in place a tensor that it closes over" in refusal(*looped(cell, lambda time: x[time]))
    assert "changes in place" in str(fusedrnn.explain(*looped(cell, lambda time: x[time])).as_dict()["refused"])


# What a graph does not hold.


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class DoubledWithContext(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


@pytest.mark.parametrize("function", [Doubled, DoubledWithContext])
def test_a_backward_of_ones_own(function):
    x = torch.randn(T, B, D)

    def cell(inputs, state):
        return step(function.apply(inputs), state)

    assert "autograd.Function of its own" in refusal(*looped(cell, lambda time: x[time]))


def test_gradients_inside():
    x = torch.randn(T, B, D)

    def by_autograd(inputs, state):
        with torch.enable_grad():
            at = state.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(((at - inputs) ** 2).sum(), at)
        return gradient, state - 0.1 * gradient

    def by_func(inputs, state):
        gradient = torch.func.grad(lambda at: ((at - inputs) ** 2).sum())(state)
        return gradient, state - 0.1 * gradient

    assert "asks autograd for gradients" in refusal(*looped(by_autograd, lambda time: x[time]))
    want = raw_rnn(*looped(by_autograd, lambda time: x[time]), backend="reference")[0].stack()
    torch.testing.assert_close(raw_rnn(*looped(by_func, lambda time: x[time]), backend="stepwise")[0].stack(), want)


def test_a_slice_at_the_time():
    x = torch.randn(T + 1, B, D)
    reason = refusal(*looped(step, lambda time: x[time : time + 1][0]))
    assert reason == "loop_fn cuts a slice that begins or ends at a tensor: read its elements one by one, or gather them"
