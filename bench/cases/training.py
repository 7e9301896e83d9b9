"""Forward and backward over sequences: an LSTM against torch.nn.LSTM, a layer-norm LSTM against the Python loop over the same cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import fusedrnn
from fusedrnn.feedback import sequence

from ..case import Case, Peer, Run, Shape
from ..loops import Reads, stepped


class Training:
    """Gradients of the inputs and of every weight, of a weighted sum of the outputs ``[T, B, H]``."""

    def __init__(self, shape: Shape) -> None:
        self.reads = Reads.made(shape["cell"], shape["H"], shape["B"], shape["T"], torch.float32)
        self.reads.x.requires_grad_()
        self.upstream = torch.randn_like(self.reads.x, requires_grad=False)
        self.count = shape["T"]

    def gradients(self, outputs: torch.Tensor, weights: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        return torch.autograd.grad((outputs * self.upstream).sum(), [self.reads.x, *weights])

    def fused(self) -> Run:
        cell, loop_fn = self.reads.cell, sequence(self.reads.x, None, self.reads.state)
        return _run(lambda: self.gradients(fusedrnn.raw_rnn(cell, loop_fn, backend="native").emit_ta.stack(), list(cell.parameters())))

    def layer(self) -> Run:
        """nn.LSTM, whose gradients come in the cell's order."""
        module = nn.LSTM(self.reads.cell.input_size, self.reads.cell.hidden_size)
        module.load_state_dict({f"{name}_l0": value for name, value in self.reads.cell.state_dict().items()})
        return _run(lambda: self.gradients(module(self.reads.x)[0], list(module.parameters())))

    def eager(self) -> Run:
        return self._looped(stepped(self.reads.cell))

    def compiled_step(self) -> Run:
        return self._looped(torch.compile(stepped(self.reads.cell), dynamic=False))

    def _looped(self, step: Any) -> Run:
        def run() -> Sequence[torch.Tensor]:
            state, outputs = self.reads.state, []
            for inputs in self.reads.x.unbind():
                output, state = step(inputs, state)
                outputs.append(output)
            return self.gradients(torch.stack(outputs), list(self.reads.cell.parameters()))

        return _run(run)


def _run(call: Any) -> Run:
    def with_gradients() -> Any:
        with torch.enable_grad():
            return call()

    return Run(with_gradients)


def _differ(work: Training, ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> str | None:
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        worst = float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
        if not worst <= 1e-4:
            return f"gradient {place} differs by {worst:.2g} of its greatest"
    return None


def _is_lstm(shape: Shape) -> bool:
    return bool(shape["cell"] == "lstm")


_ALL = {"cell": ["lstm", "layer norm lstm"], "H": [512], "B": [32], "T": [128]}

CASE = Case(
    name="training",
    about="forward and backward over sequences, float32",
    unit="us/step",
    axes=(_ALL,),
    quick=(_ALL | {"H": [256], "B": [8], "T": [64]},),
    make=Training,
    peers={
        "nn.LSTM": Peer(Training.layer, _is_lstm),
        "the cell in a loop": Peer(Training.eager, lambda shape: not _is_lstm(shape)),
        "torch.compile of the step": Peer(Training.compiled_step, lambda shape: not _is_lstm(shape)),
    },
    differ=_differ,
)
