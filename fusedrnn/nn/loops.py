"""One loop over sequences: a layer, both its directions, or a stack. In: time-major tensors and weights; out: outputs, last states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import trees
from ..cells.zoneout import ZoneoutWrapper
from ..errors import PlanError
from ..feedback.sequences import sequence
from ..loop import raw_rnn
from ..rnn import padded, reversed_rows
from ..trees import Tree
from .steps import step


@dataclass(frozen=True)
class Kind:
    """What a loop runs, tensors aside.

    Attributes:
        mode: LSTM, GRU, RNN_TANH or RNN_RELU.
        hidden_size: H.
        names: of a step's weights, without the layer's suffix.
        steps: S, how many steps the loop has: one for each layer of a stack, or one for each direction of a layer.
        bidirectional: whether they are two directions.
        zoneout: the rate for each tensor of a step's state.
        training: whether zoneout draws.
        backend: as for `raw_rnn`.
    """

    mode: str
    hidden_size: int
    names: tuple[str, ...]
    steps: int
    bidirectional: bool
    zoneout: tuple[float, ...]
    training: bool
    backend: str


def run(
    kind: Kind,
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    reset: torch.Tensor | None,
    state: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    seed: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Run it.

    Args:
        kind: what.
        x: ``[T, B, D]``.
        lengths: ``[B]`` within 0 and T, or None for T.
        reset: bool ``[T, B]``, or None.
        state: ``[S, B, *]``, each tensor of a step's state.
        weights: those of the first step, those of the second, and so on, in the order of the names.
        seed: ``[B]`` int64 for zoneout's draws, or None where it draws nothing.

    Returns:
        The outputs ``[T, B, *]``, zeros past a row's length, and then the last state like ``state``.
    """
    n = len(kind.names)
    cells: list[Any] = [
        step(kind.mode, kind.hidden_size, dict(zip(kind.names, weights[place : place + n], strict=True)))
        for place in range(0, kind.steps * n, n)
    ]
    if any(kind.zoneout):
        rate = kind.zoneout if kind.mode == "LSTM" else kind.zoneout[0]
        cells = [ZoneoutWrapper(cell, rate, seed=seed).train(kind.training) for cell in cells]
    states: list[Any] = list(zip(*state, strict=True)) if len(state) > 1 else list(state[0])
    followed = is_followed()
    live = None
    if followed and lengths is not None:
        live = (torch.arange(len(x), device=x.device).unsqueeze(1) < lengths).unsqueeze(2)
        x = x.masked_fill(~live, 0)  # what stands past an end may be NaN, and must not reach a gradient

    cell: Any
    inputs: Tree
    initial: Tree
    if kind.bidirectional:
        ways = [_Reset(way) if reset is not None else way for way in cells]
        cell, inputs = _Both(*ways), _both_inputs(x, lengths, reset)
        initial = tuple(states)
    else:
        cell, initial = (_Stack(cells), tuple(states)) if kind.steps > 1 else (cells[0], states[0])
        inputs = x
        if reset is not None:
            cell, inputs = _Reset(cell), (x, reset.unsqueeze(2))
    if live is not None:
        cell, inputs = _Live(cell), (inputs, live)
    backend = _backend(kind.backend, followed)
    if torch.compiler.is_compiling():
        made, last = _unrolled(cell, inputs, initial, len(x))
    else:
        emits, last, _ = raw_rnn(cell, sequence(inputs, None if live is not None else lengths, initial), backend=backend)
        made = [emit.stack() for emit in (emits if kind.bidirectional else (emits,))]
    outputs = padded(made[0], len(x))
    if kind.bidirectional:
        backwards = padded(made[1], len(x))
        outputs = torch.cat((outputs, backwards.flip(0) if lengths is None else reversed_rows(backwards, lengths)), -1)
    every = last if kind.steps > 1 else (last,)
    parts = zip(*every, strict=True) if len(state) > 1 else (every,)
    results = [outputs, *[torch.stack(part) for part in parts]]
    if len(made[0]) == 0:  # no row took a step: the gradients are zeros, as torch.nn's, and not None
        nothing = sum(source[:0].sum() for source in (x, *weights))
        results = [result + nothing for result in results]
    return results


def _both_inputs(x: torch.Tensor, lengths: torch.Tensor | None, reset: torch.Tensor | None) -> Tree:
    """What two directions read: the backward one from each row's last element to its first."""
    backwards = x.flip(0) if lengths is None else reversed_rows(x, lengths)
    if reset is None:
        return x, backwards
    # A reset stands between an element and the one before it. On the way back that is after this element and before the other, and what
    # stands at the first element (or behind the last) is between no two.
    between = torch.cat((reset[1:], torch.zeros_like(reset[:1])))
    between = between.flip(0) if lengths is None else reversed_rows(between, lengths)
    between = torch.cat((torch.zeros_like(reset[:1]), between[1:]))
    return (x, reset.unsqueeze(2)), (backwards, between.unsqueeze(2))


def _unrolled(cell: Any, inputs: Tree, state: Tree, steps: int) -> tuple[list[torch.Tensor], Tree]:
    """The steps one after the other, for a tracer that follows them."""
    outputs: list[list[torch.Tensor]] = []
    for time in range(steps):
        output, state = cell(trees.map_leaves(lambda leaf, time=time: leaf[time], inputs), state)
        outputs.append(trees.leaves(output))
    return [torch.stack(parts) for parts in zip(*outputs, strict=True)], state


def is_followed() -> bool:
    """Whether a torch.func transform or forward-mode differentiation wants to see every operator."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


# As torch.compiler.assume_constant_result: dynamo asks it while it traces. The decorator itself imports dynamo, which takes two seconds.
is_followed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _backend(named: str, followed: bool) -> str:
    if not followed or named == "reference":
        return named
    if named != "auto":
        raise PlanError(
            f"backend={named!r} cannot take part in torch.func transforms (vmap, grad, jvp, ...) and in forward-mode differentiation: "
            "use backend='auto' or 'reference'"
        )
    return "reference"


class _Stack:
    """Steps one above the other."""

    def __init__(self, cells: list[Any]) -> None:
        self.cells = cells
        self.output_size = cells[-1].output_size
        self.state_size = tuple(cell.state_size for cell in cells)

    def __call__(self, inputs: torch.Tensor, state: tuple[Tree, ...]) -> tuple[torch.Tensor, tuple[Tree, ...]]:
        states = []
        for cell, below in zip(self.cells, state, strict=True):
            inputs, new = cell(inputs, below)
            states.append(new)
        return inputs, tuple(states)


class _Both:
    """The two directions of a layer side by side, each with inputs of its own."""

    def __init__(self, forwards: Any, backwards: Any) -> None:
        self.forwards, self.backwards = forwards, backwards
        self.output_size = (forwards.output_size, backwards.output_size)
        self.state_size = (forwards.state_size, backwards.state_size)

    def __call__(self, inputs: tuple[Tree, Tree], state: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        (one, other), (seen, ahead) = inputs, state
        output, seen = self.forwards(one, seen)
        backwards, ahead = self.backwards(other, ahead)
        return (output, backwards), (seen, ahead)


class _Reset:
    """A step whose rows begin anew where a flag ``[B, 1]`` beside the inputs says so."""

    def __init__(self, cell: Any) -> None:
        self.cell, self.output_size, self.state_size = cell, cell.output_size, cell.state_size

    def __call__(self, inputs: tuple[torch.Tensor, torch.Tensor], state: Tree) -> tuple[Tree, Tree]:
        x, begins = inputs
        result: tuple[Tree, Tree] = self.cell(x, trees.map_leaves(lambda leaf: leaf.masked_fill(begins, 0), state))
        return result


class _Live:
    """A step for rows that a flag ``[B, 1]`` beside the inputs freezes: finished rows, where vmap hides from the loop which they are."""

    def __init__(self, cell: Any) -> None:
        self.cell, self.output_size, self.state_size = cell, cell.output_size, cell.state_size

    def __call__(self, inputs: tuple[Tree, torch.Tensor], state: Tree) -> tuple[Tree, Tree]:
        x, live = inputs
        output, new = self.cell(x, state)
        kept = trees.map_leaves(lambda before, after: torch.where(live, after, before), state, new)
        return trees.map_leaves(lambda leaf: leaf.masked_fill(~live, 0), output), kept
