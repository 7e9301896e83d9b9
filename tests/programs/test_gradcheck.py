"""Every cell under every feedback, in float64, against differences: the gradients of `reference` that every executor is compared with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import feedback, trees
from fusedrnn.cells import as_cell, zero_state

B, T, D, H, V, S = 3, 4, 5, 6, 7, 4
LENGTHS = torch.tensor([4, 0, 2])


def attending(mechanism):
    """A cell bound to a memory, with the memory."""
    wrapper = fusedrnn.AttentionWrapper(nn.GRUCell(D + H, H), mechanism, attention_size=H).double()
    memory = torch.randn(B, S, 3, dtype=torch.float64).requires_grad_()
    return wrapper, memory, lambda memory: wrapper.bind(memory, torch.tensor([4, 1, 2]))


CELLS = {
    "nn.RNNCell": lambda: nn.RNNCell(D, H),
    "nn.GRUCell": lambda: nn.GRUCell(D, H),
    "nn.LSTMCell": lambda: nn.LSTMCell(D, H),
    "BasicRNNCell": lambda: fusedrnn.BasicRNNCell(D, H),
    "GRUCell": lambda: fusedrnn.GRUCell(D, H),
    "GRUCell reset before": lambda: fusedrnn.GRUCell(D, H, reset_after=False),
    "LSTMCell": lambda: fusedrnn.LSTMCell(D, H),
    "LSTMCell peepholes": lambda: fusedrnn.LSTMCell(D, H, use_peepholes=True, cell_clip=5.0),
    "LSTMCell projection": lambda: fusedrnn.LSTMCell(D, 4, num_proj=H),
    "LSTMCell layer norm": lambda: fusedrnn.LSTMCell(D, H, layer_norm=True),
    "MultiRNNCell": lambda: fusedrnn.MultiRNNCell([nn.GRUCell(D, H), fusedrnn.ResidualWrapper(nn.LSTMCell(H, H))]),
    "DropoutWrapper": lambda: fusedrnn.DropoutWrapper(nn.GRUCell(D, H), output_dropout=0.4, state_dropout=0.3, seed=3),
    "ZoneoutWrapper": lambda: fusedrnn.ZoneoutWrapper(nn.LSTMCell(D, H), (0.3, 0.4), seed=3),
}
ATTENDING = {
    "BahdanauAttention": lambda: fusedrnn.BahdanauAttention(H, 3, units=4),
    "LuongAttention": lambda: fusedrnn.LuongAttention(H, 3),
}
FEEDBACK = {
    "sequence": lambda x, table, project, state: feedback.sequence(x, LENGTHS, state),
    "greedy": lambda x, table, project, state: feedback.greedy(table, project, 0, None, state, 3, emit="logits"),
    "sample": lambda x, table, project, state: feedback.sample(table, project, 0, None, state, 3, top_k=5, seed=4, emit="logits"),
    "teacher forcing": lambda x, table, project, state: feedback.teacher_forcing(table, project, TARGETS, LENGTHS, 0, state),
    "scheduled sampling": lambda x, table, project, state: feedback.scheduled_sampling(
        table, project, TARGETS, LENGTHS, 0, state, probability=0.5, seed=4
    ),
    "forced prefix": lambda x, table, project, state: feedback.forced_prefix(
        feedback.greedy(table, project, 0, None, state, 3, emit="logits"), TARGETS[:2], torch.tensor([2, 0, 1])
    ),
    "own output": lambda x, table, project, state: own_output(x, state),
}  # fmt: skip
TARGETS = torch.tensor([[1, 2, 3], [4, 5, 6], [0, 1, 2], [3, 4, 5]])


def own_output(x, state):
    """Each output, cut to the size of an input, is the next input."""

    def loop_fn(time, output, old, loop_state):
        first = output is None
        total = torch.zeros(B, dtype=x.dtype) if first else loop_state + output.sum(1)
        return time >= LENGTHS, x[0] if first else output[:, :D], state if first else old, output, total

    return loop_fn


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("cell", [*CELLS, *ATTENDING])
def test_gradients(cell, name):
    torch.manual_seed(0)
    table, project = nn.Embedding(V, D).double(), nn.Linear(H, V).double()
    x = torch.randn(T, B, D, dtype=torch.float64).requires_grad_()
    if cell in ATTENDING:
        module, memory, bind = attending(ATTENDING[cell]())
        given, start = [x, memory], lambda: bind(memory).zero_state()
    else:
        module = CELLS[cell]().double()
        first = trees.map_leaves(lambda leaf: torch.randn_like(leaf).requires_grad_(), zero_state(as_cell(module), B, torch.float64))
        given, start = [x, *trees.leaves(first)], lambda: first
    parameters = [*module.parameters(), *([] if name in ("sequence", "own output") else [*table.parameters(), *project.parameters()])]

    def loop(*given_too):  # gradcheck changes what is given in place
        bound = bind(memory) if cell in ATTENDING else module
        result = fusedrnn.raw_rnn(bound, FEEDBACK[name](x, table, project, start()), backend="reference")
        left = [emit.stack() for emit in trees.leaves(result.emit_ta)] + trees.leaves((result.final_state, result.final_loop_state))
        return tuple(leaf for leaf in left if isinstance(leaf, torch.Tensor) and leaf.requires_grad)

    assert torch.autograd.gradcheck(loop, [*given, *parameters], fast_mode=True)
