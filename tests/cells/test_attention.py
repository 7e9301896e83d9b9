"""AttentionWrapper: TensorFlow's values, the masks, rows without memory, and what it refuses."""

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn.capture import cache
from fusedrnn.cells import AttentionWrapper, AttentionWrapperState, BahdanauAttention, GRUCell, LSTMCell, LuongAttention, MultiRNNCell

from .golden import Case, close, gradcheck, random_state, steps

OPTIONS = {
    "bahdanau": ({"units": 6}, {}),
    "bahdanau_normalize": ({"units": 6, "normalize": True}, {"attention_size": 3}),
    "luong": ({}, {"attention_size": 3, "output_attention": False}),
    "luong_scale": ({"scale": True}, {}),
}
MEMORY_SIZE, HIDDEN = 5, 4


@pytest.mark.parametrize("name", OPTIONS)
def test_tensorflow(name):
    case, (mechanism_options, wrapper_options) = Case(name), OPTIONS[name]
    variables = {key: torch.from_numpy(value) for key, value in case.variables().items()}
    kind = BahdanauAttention if name.startswith("bahdanau") else LuongAttention
    mechanism = kind(HIDDEN, MEMORY_SIZE, **mechanism_options, dtype=torch.float64)
    places = {
        "mechanism/kernel": "memory_layer.weight", "wrapper/mechanism/kernel": "query_layer.weight",
        "mechanism/attention_v": "v", "mechanism/attention_g": "g", "mechanism/attention_b": "b",
    }  # fmt: skip
    mechanism.load_state_dict(
        {place: variables[key].T if key.endswith("kernel") else variables[key] for key, place in places.items() if key in variables}
    )
    cell = GRUCell.from_tensorflow(*(variables[key] for key in ("gates/kernel", "gates/bias", "candidate/kernel", "candidate/bias")))
    wrapper = AttentionWrapper(cell, mechanism, **wrapper_options, dtype=torch.float64)
    if "wrapper/attention_layer/kernel" in variables:
        wrapper.attention_layer.load_state_dict({"weight": variables["wrapper/attention_layer/kernel"].T})
    bound = wrapper.bind(case["memory"], case["lengths"])
    case.check(bound, bound.zero_state(), lambda state: list(state))


def wrapper(dtype=torch.float64, kind="bahdanau", **options):
    mechanism = (
        LuongAttention(4, 3, dtype=dtype) if kind == "luong" else BahdanauAttention(4, 3, 2, normalize=kind == "normalize", dtype=dtype)
    )
    width = 2 + options.get("attention_size", 3)
    return AttentionWrapper(LSTMCell(width, 4, dtype=dtype), mechanism, dtype=dtype, **options)


def test_without_lengths_all_positions_count():
    wrapped, memory, x = wrapper(), torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    bound, whole = wrapped.bind(memory), wrapped.bind(memory, [5, 9])
    outputs, state = steps(bound, bound.zero_state(2), x)
    close((outputs, state), steps(whole, whole.zero_state(), x))
    close(state.alignments.sum(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["luong", "bahdanau", "normalize"])
def test_past_its_length_memory_has_no_influence(kind):
    wrapped, memory = wrapper(kind=kind, attention_size=3), torch.randn(3, 5, 3, dtype=torch.float64)
    lengths = torch.tensor([2, 0, -1], dtype=torch.int32)
    spoiled = memory.clone()
    spoiled[0, 2:] = torch.nan
    spoiled[1:] = torch.inf
    x = torch.randn(3, 3, 2, dtype=torch.float64)
    found = []
    for given in (memory, spoiled):
        given = given.requires_grad_()
        bound = wrapped.bind(given, lengths)
        outputs, state = steps(bound, bound.zero_state(), x)
        with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
            gradients = torch.autograd.grad(outputs.square().sum(), [given, *wrapped.parameters()])
        found.append((outputs, state, gradients))
    close(*found)
    outputs, state, gradients = found[1]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not state.alignments[0, 2:].any()
    assert not state.alignments[1:].any()
    assert not gradients[0][1:].any()
    short = wrapped.bind(memory[:1, :2])
    close(steps(short, short.zero_state(), x[:, :1])[0], outputs[:, :1])


def test_rows_without_memory_have_no_context():
    bound = wrapper().bind(torch.randn(2, 5, 3, dtype=torch.float64), [0, 3])
    output, _ = bound(torch.randn(2, 2, dtype=torch.float64), bound.zero_state())
    assert not output[0].any()
    assert output[1].all()
    empty = wrapper().bind(torch.randn(2, 0, 3, dtype=torch.float64), [0, 0])
    assert not empty(torch.randn(2, 2, dtype=torch.float64), empty.zero_state())[0].any()


@pytest.mark.parametrize("kind", ["luong", "bahdanau", "normalize"])
def test_gradcheck(kind):
    bound = wrapper(kind=kind, attention_size=2).bind(torch.randn(3, 3, 3, dtype=torch.float64), [3, 2, 0])
    state = random_state(bound, 3)._replace(alignments=torch.zeros(3, 3, dtype=torch.float64))
    # The keys are computed when binding; their gradients are checked through the memory below.
    assert gradcheck(bound, torch.randn(3, 2, dtype=torch.float64), state)


class Bound(nn.Module):
    """Binding and one step in one module, so that the parameters' way through the keys is seen."""

    def __init__(self, wrapped):
        super().__init__()
        self.wrapped = wrapped

    def forward(self, memory, x):
        bound = self.wrapped.bind(memory, [3, 2, 0])
        return bound(x, bound.zero_state())[0], ()


@pytest.mark.parametrize("kind", ["luong", "bahdanau", "normalize"])
def test_gradcheck_of_memory_and_keys(kind):
    assert gradcheck(Bound(wrapper(kind=kind)), torch.randn(3, 3, 3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64))


def test_in_a_loop_with_the_encoders_state():
    wrapped = wrapper(attention_size=3)
    bound = wrapped.bind(torch.randn(3, 5, 3, dtype=torch.float64), torch.tensor([5, 2, 1]))
    lengths, x = torch.tensor([4, 0, 2]), torch.randn(4, 3, 2, dtype=torch.float64)
    initial = bound.initial_state(random_state(wrapped.cell, 3))

    def loop_fn(time, output, state, _):
        emit = (torch.zeros(3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)) if state is None else (output, state.alignments)
        return time >= lengths, x[time], initial if state is None else state, emit, None

    (outputs, alignments), final, _ = fusedrnn.raw_rnn(bound, loop_fn)
    expected, _ = steps(bound, initial, x)
    alignments = alignments.stack()
    for row, length in enumerate(lengths.tolist()):
        close(outputs.stack()[:length, row], expected[:length, row])
        close(alignments[:length, row].sum(1), torch.ones(length, dtype=torch.float64))
    assert isinstance(final, AttentionWrapperState)
    close(final.cell_state[0][1], initial.cell_state[0][1])


def test_stacks_and_torch_cells_can_be_wrapped():
    cell = MultiRNNCell([nn.GRUCell(5, 6), nn.LSTMCell(6, 4)])
    wrapped = AttentionWrapper(cell, LuongAttention(4, 3), output_attention=False)
    bound = wrapped.bind(torch.randn(2, 5, 3))
    output, state = bound(torch.randn(2, 2), bound.zero_state())
    assert bound.output_size == output.shape[1] == 4
    assert state.cell_state[1][0] is output
    assert {id(p) for p in bound.parameters()} == {id(p) for p in wrapped.parameters()}
    assert list(bound.state_dict()) == [f"wrapper.{name}" for name in wrapped.state_dict()]


def test_cell_input_fn():
    wrapped = AttentionWrapper(GRUCell(3, 4), LuongAttention(4, 3), cell_input_fn=lambda inputs, attention: inputs + attention)
    bound = wrapped.bind(torch.randn(2, 5, 3))
    assert bound(torch.randn(2, 3), bound.zero_state())[0].shape == (2, 3)


def test_unbound():
    wrapped = wrapper()
    x = torch.zeros(2, 2)
    for use in (
        lambda: wrapped(x, None),
        lambda: wrapped.state_size,
        lambda: wrapped.output_size,
        lambda: fusedrnn.raw_rnn(wrapped, print),
    ):
        with pytest.raises(RuntimeError, match=r"no memory yet: pass wrapper.bind\(memory, lengths\) to the loop"):
            use()


def test_bad_options():
    for arguments in ((0, 3, 2), (4, -1, 2), (4, 3, 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            BahdanauAttention(*arguments)
    with pytest.raises(ValueError, match=r"cell\.output_size is 4 and attention_mechanism.query_size 5"):
        AttentionWrapper(GRUCell(3, 4), LuongAttention(5, 3))
    with pytest.raises(TypeError, match="attention_mechanism must be an AttentionMechanism, got Linear"):
        AttentionWrapper(GRUCell(3, 4), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="attention_size must be at least 1"):
        AttentionWrapper(GRUCell(3, 4), LuongAttention(4, 3), attention_size=0)
    with pytest.raises(TypeError, match="cell_input_fn must be callable or None"):
        AttentionWrapper(GRUCell(3, 4), LuongAttention(4, 3), cell_input_fn=3)


@pytest.mark.parametrize(
    ("memory", "lengths", "error", "message"),
    [
        (torch.zeros(2, 5), None, ValueError, r"memory must be \[B, S, memory_size = 3\], got float32\[2, 5\]"),
        (torch.zeros(2, 5, 4), None, ValueError, r"memory must be \[B, S, memory_size = 3\], got float32\[2, 5, 4\]"),
        ([1], None, TypeError, r"memory must be a tensor \[B, S, 3\]"),
        (torch.zeros(2, 5, 3), [1, 2, 3], ValueError, r"lengths must be \[2\], one for each row of memory \[2, 5, 3\], got int64\[3\]"),
        (torch.zeros(2, 5, 3), torch.tensor([1.0, 2.0]), TypeError, r"lengths must be integers \[2\], got float32\[2\]"),
        (torch.zeros(2, 5, 3), torch.tensor([True, False]), TypeError, "lengths must be integers"),
    ],
)
def test_bad_memory(memory, lengths, error, message):
    with pytest.raises(error, match=message):
        wrapper(torch.float32).bind(memory, lengths)


def test_bad_calls():
    bound = wrapper(torch.float32).bind(torch.zeros(2, 5, 3))
    with pytest.raises(TypeError, match="state must be an AttentionWrapperState, got"):
        bound(torch.zeros(2, 2), tuple(bound.zero_state()))
    with pytest.raises(ValueError, match="batch_size is 3 and the memory has 2 rows; bind a memory"):
        bound.zero_state(3)
    with pytest.raises(
        ValueError, match=r"inputs must be a tensor \[2, ...\] to be concatenated with the attention float32\[2, 3\], got float32\[3, 2\]"
    ):
        bound(torch.zeros(3, 2), bound.zero_state())
    with pytest.raises(ValueError, match=r"state.attention must be a tensor \[B, 3\]"):
        bound(torch.zeros(2, 2), bound.zero_state()._replace(attention=torch.zeros(2, 4)))


@pytest.mark.parametrize("kind", ["luong", "bahdanau"])
def test_without_alignments_in_the_state(kind):
    kept, left_out = wrapper(torch.float32, kind), wrapper(torch.float32, kind, keep_alignments=False)
    left_out.load_state_dict(kept.state_dict())
    x = torch.randn(4, 3, 2)
    cache.clear()
    for positions in (5, 7, 4):
        memory, lengths = torch.randn(3, positions, 3), torch.tensor([positions, 2, 1])
        bound, lean = kept.bind(memory, lengths), left_out.bind(memory, lengths)
        assert lean.state_size == bound.state_size._replace(alignments=())
        expected, state = fusedrnn.dynamic_rnn(bound, x, time_major=True)
        outputs, lean_state = fusedrnn.dynamic_rnn(lean, x, time_major=True, backend="stepwise")
        torch.testing.assert_close(outputs, expected)
        torch.testing.assert_close(lean_state[:2], state[:2])
        assert lean_state.alignments == ()
        assert cache.size() == 1  # one program for memories of every length
