"""The read rule: past the end gives the last element, and is an error for unfinished rows only."""

import weakref

import pytest
import torch

from fusedrnn import TensorArray, raw_rnn

T, B, D = 4, 3, 2


class Echo:
    output_size = D
    state_size = 1

    def __call__(self, x, s):
        return x, s


def run(read, lengths=(4, 2, 0), **options):
    ends = torch.tensor(lengths)

    def loop_fn(time, out, state, _):
        return time >= ends, read(time), torch.zeros(B, 1) if state is None else state, out, None

    return raw_rnn(Echo(), loop_fn, **options)[0]


X = torch.arange(1.0, 1 + T * B * D).reshape(T, B, D)
BATCH_FIRST = X.transpose(0, 1).contiguous()
ROWS = torch.arange(B)

READS = {
    "x[time]": lambda t: X[t],
    "x[numpy int]": lambda t: X[t.numpy()[()]],
    "x[time, rows]": lambda t: X[t, ROWS],
    "x[:, time]": lambda t: BATCH_FIRST[:, t],
    "x[..., time, :]": lambda t: BATCH_FIRST[..., t, :],
    "x[None, time]": lambda t: X[None, t][0],
    "x[vector, rows]": lambda t: X[t.expand(B).long(), ROWS],
    "x[vector, :][diagonal]": lambda t: BATCH_FIRST[ROWS, t.expand(B).long()],
    "x[int(time)]": lambda t: X[int(t)],
    "x[:, time.item()]": lambda t: BATCH_FIRST[:, t.item()],
    "narrow": lambda t: X.narrow(0, t, 1)[0],
    "torch.narrow": lambda t: torch.narrow(BATCH_FIRST, 1, int(t), 1)[:, 0],
    "embedding": lambda t: torch.nn.functional.embedding(t, X.reshape(T, -1)).reshape(B, D),
    "nn.Embedding": lambda t: torch.nn.Embedding.from_pretrained(X.reshape(T, -1))(t.reshape(1))[0].reshape(B, D),
    "index_select by a scalar": lambda t: X.index_select(0, t)[0],
    "select": lambda t: X.select(0, t),
    "torch.select": lambda t: torch.select(BATCH_FIRST, 1, t),
    "index_select": lambda t: X.index_select(0, t.reshape(1).long())[0],
    "torch.index_select": lambda t: torch.index_select(BATCH_FIRST, 1, t.reshape(1))[:, 0],
    "gather": lambda t: X.gather(0, t.long().expand(1, B, D))[0],
    "torch.gather": lambda t: torch.gather(BATCH_FIRST, 1, t.long().expand(B, 1, D))[:, 0],
    "take_along_dim": lambda t: torch.take_along_dim(X, t.long().expand(1, B, D), 0)[0],
    "TensorArray.read": lambda t: TensorArray(torch.float32).unstack(X).read(t),
}


@pytest.mark.parametrize("name", READS)
def test_the_read_after_the_last_step_gives_the_last_element(name):
    read = READS[name]
    seen = []
    emits = run(lambda t: seen.append(read(t)) or seen[-1])
    live = torch.arange(T)[:, None, None] < torch.tensor([4, 2, 0])[None, :, None]
    assert torch.equal(emits.stack(), X * live)
    assert torch.equal(seen[T], X[T - 1])


@pytest.mark.parametrize("name", READS)
def test_an_unfinished_row_may_not_read_past_the_end(name):
    with pytest.raises(IndexError, match=r"loop_fn at time 4 read index 4 of dimension \d of an input of shape .* not finished: \[1\]"):
        run(READS[name], lengths=(4, 5, 0))


def test_reads_of_an_empty_input_are_zeros_with_gradients():
    for dtype in (torch.float32, torch.int64, torch.bool):
        empty = torch.zeros(0, B, D, dtype=dtype, requires_grad=dtype == torch.float32)
        seen = []

        def loop_fn(time, out, state, _, empty=empty, seen=seen):
            seen.append(empty[time])
            return True, torch.ones(B, D), torch.zeros(B, 1), out, None

        raw_rnn(Echo(), loop_fn)
        assert torch.equal(seen[0], torch.zeros(B, D, dtype=dtype))
        if dtype == torch.float32:
            seen[0].sum().backward()
            assert empty.grad.shape == (0, B, D)


def test_each_row_answers_for_its_own_pointer():
    """Rows read at their own places; a finished row's pointer may run past the end."""

    def pointers(lengths, stride):
        ends, steps = torch.tensor(lengths), torch.tensor(stride)

        def loop_fn(time, out, state, at):
            at = torch.zeros(B, dtype=torch.int64) if at is None else at + steps
            return time >= ends, X[at, ROWS], torch.zeros(B, 1), out, at

        return raw_rnn(Echo(), loop_fn)[0]

    emits = pointers([4, 2, 1], [1, 2, 3]).stack()
    assert torch.equal(emits[:, 0], X[:, 0])
    assert torch.equal(emits[:2, 1], X[[0, 2], 1])
    with pytest.raises(IndexError, match=r"at time 2 read index 6 .* not finished: \[2\]"):
        pointers([4, 2, 3], [1, 2, 3])


def test_negative_indices_count_from_the_end_as_in_torch():
    emits = run(lambda t: X[t - 1])
    assert torch.equal(emits.stack()[:, 0], torch.stack([X[-1, 0], X[0, 0], X[1, 0], X[2, 0]]))
    with pytest.raises(IndexError):
        run(lambda t: X[t - 9])


def test_masks_slices_and_constants_are_left_alone():
    mask = torch.tensor([True, False, True, False])
    assert torch.equal(run(lambda t: X[mask][0] + X[1:3][0] + X[-1] + X[[1]][0], lengths=(1, 1, 1)).stack()[0], X[0] + X[1] + X[-1] + X[1])


def test_the_error_lists_few_rows_of_many():
    x = torch.zeros(2, 40, 2)
    cell = torch.nn.RNNCell(2, 1)
    with pytest.raises(IndexError, match=r"\[0, 1, 2, 3, 4, 5, 6, 7\] and more"):
        raw_rnn(cell, lambda t, out, s, ls: (t >= 9, x[t], torch.zeros(40, 1) if s is None else s, out, None))


@pytest.mark.parametrize("form", ["x[time]", "x[:, time]", "select"])
def test_the_backward_of_reads_is_linear_in_their_number(form):
    """Only the first read costs a zero tensor of the input's size; the rest share one stack."""
    x = X.clone().requires_grad_()
    seen, swapped = [], x.transpose(0, 1)
    read = {"x[time]": lambda t: x[t], "x[:, time]": lambda t: swapped[:, t], "select": lambda t: x.select(0, t)}[form]
    emits = run(lambda t: seen.append(read(t)) or seen[-1])
    assert [type(value.grad_fn).__name__ for value in seen] == ["SelectBackward0"] + ["UnbindBackward0"] * T
    emits.stack().square().sum().backward()
    live = torch.arange(T)[:, None, None] < torch.tensor([4, 2, 0])[None, :, None]
    assert torch.equal(x.grad, 2 * X * live)


def test_what_one_step_makes_and_reads_is_not_kept():
    alive = []

    def read(t):
        y = torch.randn(2, B, D, requires_grad=True) * 1
        alive.append(weakref.ref(y))
        return y[0].detach() + y[1].detach()

    run(read, lengths=(30, 30, 30))
    assert sum(ref() is not None for ref in alive) <= 3


def test_a_token_beyond_the_embedding_is_named():
    table = torch.nn.Embedding(9, D)
    with pytest.raises(IndexError, match=r"at time 0 looks up index 12 \(the least is 1\) in an embedding of 9 rows"):
        run(lambda t: table(torch.tensor([1, 12, 3])))


def test_an_input_that_changes_is_read_anew():
    base = X.clone().requires_grad_()
    x = base * 1
    seen = []

    def read(t):
        with torch.no_grad():
            x.add_(1)
        value = x[t]
        assert type(value.grad_fn).__name__ == "SelectBackward0"
        seen.append(value.clone())
        return seen[-1]

    run(read)
    assert torch.equal(torch.stack(seen), torch.stack([X[min(t, T - 1)] + t + 1 for t in range(T + 1)]))
