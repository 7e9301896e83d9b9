"""A captured step as a value: its graph, what goes into it and what comes out of it, and for which sizes it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sympy
import torch

from ..contract import Leaf, Port


class Source(NamedTuple):
    """Where one input of the graph comes from.

    Attributes:
        kind: "time" (0-d int32, of the loop_fn call), "finished" (``[B]`` bool, before the step), "inputs", "state", "loop_state" (a leaf
            of that tree), "state array", "loop_state array" (the elements of a TensorArray leaf, stacked), "seed" (0-d int64, of the
            loop), "tensor" (closed over) or "slot" (closed over, with a batch dimension, and not to be looked at before the loop).
            `fusedrnn.optimise.hoist` adds "initial inputs", "token" and "initial token",
            `fusedrnn.optimise.wavefront` "last", "over", "ended" and "delayed".
        place: of the leaf in its tree, or of the tensor among the closed-over ones.
    """

    kind: str
    place: int = 0


INVARIANT = ("tensor", "seed", "initial inputs", "initial token", "last")  # kinds of sources that are the same at every step


class Target(NamedTuple):
    """What one output of the graph is.

    Attributes:
        kind: "finished" (``[B]``, after the step), "inputs", "state", "emit", "loop_state" (a leaf, frozen and masked already),
            "past" (``[B]`` bool: rows that looked past an end and are not finished), or "index" and "value" of a write into a TensorArray.
        place: of the leaf in its tree; of a write, its number.
    """

    kind: str
    place: int = 0


class Write(NamedTuple):
    """A write that every step makes into a carried TensorArray: the tree it is in ("state" or "loop_state") and its leaf there."""

    kind: str
    place: int


@dataclass(frozen=True)
class Program:
    """One step of a loop, captured.

    Attributes:
        module: the graph, functional, of aten operators and those of `fusedrnn.capture.ops`. Sizes stand in ``node.meta["val"]``;
            ``node.meta["stack_trace"]`` is the user's ``file:line``.
        sources: one for each placeholder, in order.
        targets: one for each output, in order.
        writes: the writes into TensorArrays, in the order of the step.
        inputs_port, state_port, loop_state_port, emit_port: the trees; their batch size is that of the call that was captured.
        keeps_loop_state: loop_fn returns None for it after time 0: the previous value stays.
        draws: random draws are made with the loop's seed.
        fits: whether the program holds for a batch size and the closed-over tensors.
        batch: the batch size in the graph's sizes: a symbol, or the number that it was fixed to.
        has_strangers: it holds values of tensors that a walk does not find: it is good for this call only.
        fixed_at: ``file:line`` of the user's code that holds for one batch size only; None where none does.
        symbols: where to find the other symbols of the graph's sizes: the place of a closed-over tensor and its dimension.
        apart: each row is made on its own to the bit: no work of rows is moved out of the loop, where torch's products would do it.
        before: of a program whose inputs are looked up already (`fusedrnn.optimise.hoist`): what it was, and what that moved.
    """

    module: torch.fx.GraphModule
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    writes: tuple[Write, ...]
    inputs_port: Port
    state_port: Port
    loop_state_port: Port | None
    emit_port: Port
    keeps_loop_state: bool
    fits: Callable[[int, Sequence[torch.Tensor]], bool]
    batch: sympy.Expr
    symbols: dict[str, tuple[int, int]]
    has_strangers: bool
    fixed_at: str | None = None
    apart: bool = False
    before: tuple[Program, Any] | None = None
    plans: dict[str, Any] = field(default_factory=dict)  # what executors have made of it, by their names

    @property
    def draws(self) -> bool:
        return any(source.kind == "seed" for source in self.sources)

    @property
    def tensors(self) -> list[int]:
        """Which of the closed-over tensors the graph reads, in the order of its placeholders."""
        return [source.place for source in self.sources if source.kind in ("tensor", "slot")]

    def emits(self, batch: int) -> Port:
        """The emit's port for a batch size."""
        port = self.emit_port
        leaves = [Leaf((batch, *(leaf.shape or ())[1:]), leaf.dtype) for leaf in port.leaves]
        return Port(port.name, port.structure, leaves)
