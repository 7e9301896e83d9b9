"""Random programs: raw_rnn on a batch against each row run by itself in a plain Python loop, without masks, that stops when the row does.

That loop is the meaning of "finished": what a row does after its end, and what the other rows do, must leave no trace in its
emits, its state and its gradients.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedrnn import TensorArray, raw_rnn, trees

pytestmark = pytest.mark.usefixtures("float64")

STATES = ["plain", "pair", "dict", "nested", "rank3", "scalar leaf"]
EMITS = ["cell output", "projected", "tuple", "dict of dtypes", "nothing", "scalar"]
FEEDS = ["read", "array", "feedback", "both", "tree"]
ENDS = ["lengths", "value", "lengths or value", "not sticky", "steps"]
LOOP_STATES = ["none", "counter", "row sums", "last", "array"]


@dataclass(frozen=True)
class Program:
    """A random cell and loop_fn; ``rows`` picks the rows of the batch that it runs on."""

    state: str
    emit: str
    feed: str
    end: str
    loop_state: str
    lengths: tuple[int, ...]
    steps: int
    seed: int

    width = 3

    def tensors(self):
        draw = torch.Generator().manual_seed(self.seed)
        return {
            "x": torch.randn(self.steps, len(self.lengths), self.width, generator=draw),
            "w": torch.randn(self.width, self.width, generator=draw) * 0.7,
            "u": torch.randn(self.width, self.width, generator=draw) * 0.7,
            "p": torch.randn(self.width, 2, generator=draw),
            "h": torch.randn(len(self.lengths), self.width, generator=draw),
        }

    def initial_state(self, h):
        return {
            "plain": h, "pair": (h, h * 2), "dict": {"b": h, "a": h[:, :1]}, "nested": (h, {"n": [h[:, 0]]}),
            "rank3": (h, h.unsqueeze(1) * h.unsqueeze(2)), "scalar leaf": (h, torch.zeros(())),
        }[self.state]  # fmt: skip

    def build(self, values, rows):
        x, w, u, p = (values[k] for k in "xwup")
        x, h0 = x[:, rows], values["h"][rows]
        ends = torch.tensor(self.lengths)[rows]
        array = TensorArray(x.dtype).unstack(x)

        def cell(inputs, state):
            inputs = inputs["a"] + inputs["b"][0] if self.feed == "tree" else inputs
            leaves, structure = trees.flatten(state)
            main = next(leaf for leaf in leaves if leaf.ndim == 2 and leaf.shape[1] == self.width)
            others = sum((leaf.reshape(len(main), -1).sum(1, keepdim=True) for leaf in leaves if leaf.ndim and leaf is not main), 0.0)
            new = torch.tanh(inputs @ w + main @ u + 0.1 * others)
            moved = [leaf + 1 if leaf.ndim == 0 else new if leaf is main else 0.5 * leaf + new.mean() * 0 + 0.25 for leaf in leaves]
            return new * 2, trees.unflatten(structure, moved)

        cell.output_size = cell.state_size = self.width

        def read(time):
            return array.read(time) if self.feed == "array" else x[time]

        def loop_fn(time, out, state, ls):
            first = out is None
            if self.feed == "feedback":
                inputs = h0 if first else out * 0.5
            elif self.feed == "both":
                inputs = read(time) + (0 if first else out)
            elif self.feed == "tree":
                inputs = {"a": read(time), "b": [read(time) * 2]}
            else:
                inputs = read(time)
            over = time >= ends
            large = torch.zeros_like(over) if first else out[:, 0] > 0.8
            bound = time >= self.steps
            finished = {
                "lengths": over, "value": large | bound, "lengths or value": over | large,
                "not sticky": torch.where(bound, True, (time == ends) | large), "steps": bound,
            }[self.end]  # fmt: skip
            return finished, inputs, self.initial_state(h0) if first else state, self.emitted(time, out, p), self.carried(time, out, ls, h0)

        return cell, loop_fn

    def emitted(self, time, out, p):
        first = out is None
        zeros = torch.zeros(self.width)
        return {
            "cell output": lambda: out,
            "projected": lambda: zeros[:2] if first else out @ p,
            "tuple": lambda: (zeros, zeros[:2]) if first else (out, out @ p),
            "dict of dtypes": lambda: (
                {"n": torch.zeros((), dtype=torch.int64), "big": torch.zeros(self.width, dtype=torch.bool), "f": zeros.float()}
                if first
                else {"f": out.float(), "n": out.argmax(-1), "big": out > 0}
            ),
            "nothing": lambda: (),
            "scalar": lambda: zeros[0] if first else out.sum(-1) * time,
        }[self.emit]()

    def carried(self, time, out, ls, h0):
        if self.loop_state == "none":
            return None
        if out is None:
            return {"counter": 0, "row sums": h0.sum(1), "last": (h0, time), "array": TensorArray(h0.dtype)}[self.loop_state]
        return {
            "counter": lambda: ls + 1,
            "row sums": lambda: ls + out.sum(1),
            "last": lambda: None if int(time) % 2 else (out, time),
            "array": lambda: ls.write(time - 1, out),
        }[self.loop_state]()

    def poisoned(self, values):
        """The same with NaN wherever no row may look: past each row's length."""
        x = values["x"].clone()
        for row, length in enumerate(self.lengths):
            x[length:, row] = torch.nan
        return {**values, "x": x}


def row_by_row(program, values):
    """The plain loop, one row at a time: the row's emits and its final state."""
    # Past the end stands the last element once more.
    values = {**values, "x": torch.cat([values["x"], values["x"][-1:]])}
    for row in range(len(program.lengths)):
        cell, loop_fn = program.build(values, slice(row, row + 1))
        time = torch.zeros((), dtype=torch.int32)
        finished, inputs, state, _, carried = loop_fn(time, None, None, None)
        emits = []
        while not finished:
            out, state = cell(inputs, state)
            time = time + 1
            finished, inputs, state, emit, new = loop_fn(time, out, state, carried)
            carried = carried if new is None else new
            emits.append(emit)
        yield emits, state


@st.composite
def programs(draw):
    steps = draw(st.integers(1, 5))
    return Program(
        *(draw(st.sampled_from(kinds)) for kinds in (STATES, EMITS, FEEDS, ENDS, LOOP_STATES)),
        lengths=tuple(draw(st.lists(st.integers(0, steps), min_size=1, max_size=4))),
        steps=steps,
        seed=draw(st.integers(0, 2**20)),
    )


def loss_of(leaves):
    """A number that depends on every float among the leaves, each with its own weight."""
    total = torch.zeros(())
    for place, leaf in enumerate(leaves):
        if leaf.is_floating_point():
            total = total + (leaf.to(total) * torch.linspace(0.5 + place, 1.5, leaf.numel()).reshape(leaf.shape)).sum()
    return total


def check(program, backend, poison=False):
    values = {name: value.requires_grad_() for name, value in program.tensors().items()}
    expected = list(row_by_row(program, values))
    lengths = [len(emits) for emits, _ in expected]
    given_values = {name: value.detach().requires_grad_() for name, value in (program.poisoned(values) if poison else values).items()}
    cell, loop_fn = program.build(given_values, slice(None))
    emit_ta, state, carried = raw_rnn(cell, loop_fn, backend=backend)

    steps = max(lengths)
    arrays, structure = trees.flatten(emit_ta)
    outputs = [emit.stack() for emit in arrays]
    wanted = []
    for place, output in enumerate(outputs):
        assert len(output) == steps
        rows = []
        for emits, _ in expected:
            own = [trees.match(structure, emit, "emit")[place] for emit in emits]
            rows.append(torch.cat(own + [output.new_zeros((steps - len(own), *output.shape[2:]))]))
        wanted.append(torch.stack(rows, 1))
    for emit in arrays:
        assert emit.lengths.tolist() == lengths
        assert not emit.truncated.any()

    states, wanted_states = [], []
    for place, leaf in enumerate(trees.leaves(state)):
        if leaf.ndim == 0:
            assert leaf == steps  # a rank-0 leaf is never frozen
        else:
            states.append(leaf)
            wanted_states.append(torch.cat([trees.leaves(own)[place] for _, own in expected]))
    for got, want in zip(outputs + states, wanted + wanted_states, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)

    if program.loop_state == "counter":
        assert carried == steps
    if program.loop_state == "array":
        assert carried.size() == steps

    got = torch.autograd.grad(loss_of(outputs + states), list(given_values.values()), allow_unused=True)
    want = torch.autograd.grad(loss_of(wanted + wanted_states), list(values.values()), allow_unused=True)
    for name, mine, theirs in zip(values, got, want, strict=True):
        zeros = torch.zeros_like(values[name])
        torch.testing.assert_close(zeros if mine is None else mine, zeros if theirs is None else theirs, rtol=1e-8, atol=1e-11)


@given(programs())
def test_a_batch_is_its_rows(program):
    check(program, "reference")


@given(programs())
def test_nan_in_finished_rows_leaves_no_trace(program):
    if program.end in ("lengths", "lengths or value") and program.feed != "feedback":
        check(program, "reference", poison=True)


@pytest.mark.slow
@settings(max_examples=3000)
@given(programs(), st.booleans())
def test_many_batches_are_their_rows(program, poison):
    check(program, "reference", poison and program.end == "lengths")
