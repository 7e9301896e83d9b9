"""Programs for tests of derivatives. In: a cell and a loop_fn; out: their captured program and its parts."""

from __future__ import annotations

import torch

import fusedrnn
from fusedrnn import branches, contract, frames
from fusedrnn.capture import cache
from fusedrnn.capture.program import Source
from fusedrnn.contract import Call
from fusedrnn.derivative.forward import forward

B, T, D, H = 4, 6, 3, 5


def program_of(cell, loop_fn):
    """The captured program and what it closes over."""
    call = Call.checked(cell, loop_fn)
    with frames.running() as frame, branches.taken():
        return cache.captured(call, frame, contract.start(call, frame))


def reading(cell, state, lengths=(6, 2, 0, 3)):
    """A loop that reads a sequence; the sequence needs a gradient."""
    x, ends = torch.randn(T, len(lengths), D, requires_grad=True), torch.tensor(lengths)
    return cell, lambda time, output, old, _: (time >= ends, x[time], state if output is None else old, output, None)


def lstm():
    return reading(fusedrnn.LSTMCell(D, H), (torch.zeros(B, H), torch.zeros(B, H)))


def attention():
    wrapper = fusedrnn.AttentionWrapper(
        torch.nn.GRUCell(D + H, H), fusedrnn.BahdanauAttention(H, 7, units=8), attention_size=H, keep_alignments=False
    )  # fmt: skip
    bound = wrapper.bind(torch.randn(B, 9, 7, requires_grad=True), torch.tensor([9, 4, 1, 5]))
    return reading(bound, bound.zero_state())


def forward_of(cell, loop_fn, **options):
    """The loop that keeps what the gradients of all float tensors need, and those."""
    program, tensors = program_of(cell, loop_fn)
    needed = frozenset(Source("tensor", place) for place in program.tensors if tensors[place].is_floating_point())
    return forward(program, needed, **options), needed
