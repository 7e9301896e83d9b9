"""The contract between a loop and its loop_fn. In: a `Call`; out: a `Start`, whose ports check every later step.

Every executor starts here, so all of them refuse the same programs with the same words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from . import reads, trees
from .cells.protocol import as_cell, size_shape
from .frames import Frame
from .tensor_array import TensorArray
from .trees import Tree

LoopFn = Callable[[torch.Tensor, Any, Any, Any], tuple[Any, Any, Any, Any, Any]]


@dataclass(frozen=True)
class Call:
    """The arguments of one `raw_rnn` call, checked."""

    cell: Any
    loop_fn: LoopFn
    parallel_iterations: int | None = None
    swap_memory: bool = False
    max_steps: int | None = None

    @classmethod
    def checked(
        cls, cell: Any, loop_fn: LoopFn, parallel_iterations: int | None = None, swap_memory: bool = False, max_steps: int | None = None
    ) -> Call:  # fmt: skip
        """Of the arguments as a user gave them.

        Raises:
            TypeError, ValueError: as `raw_rnn`.
        """
        called = as_cell(cell)
        if not callable(loop_fn):
            raise TypeError(f"loop_fn must be callable, got {type(loop_fn).__name__}")
        ahead = _count("parallel_iterations", parallel_iterations, TypeError) or None  # TensorFlow raises TypeError
        return cls(called, loop_fn, ahead, bool(swap_memory), _count("max_steps", max_steps, ValueError))


def _count(name: str, value: int | None, negative: type[Exception]) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int or None, got {value!r}")
    if value < 0:
        raise negative(f"{name} must not be negative, got {value}")
    return value


class Leaf(NamedTuple):
    """What stays constant of one leaf. A TensorArray has no shape: it may grow."""

    shape: tuple[int, ...] | None
    dtype: torch.dtype | None

    def __str__(self) -> str:
        return "a TensorArray" if self.shape is None else f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


class Port:
    """One of the trees that cross the loop at every step: its structure, dtypes and shapes, which stay constant.

    Args:
        name: of the value in loop_fn's result, for errors.
        structure: of the tree.
        leaves: one a leaf.
        hint: a sentence that errors about a shape end with.
    """

    def __init__(self, name: str, structure: trees.Structure, leaves: list[Leaf], hint: Callable[[Any], str] | None = None) -> None:
        self.name = name
        self.structure = structure
        self.leaves = leaves
        self.hint = hint
        self._single = structure.is_leaf()
        self._flat_tuple = structure.type is tuple and structure.num_nodes == structure.num_leaves + 1

    @classmethod
    def of(cls, name: str, tree: Tree) -> tuple[Port, list[Any]]:
        """The port that a tree at time 0 opens, and its leaves. Python numbers become tensors as ``torch.as_tensor`` makes them."""
        found, structure = trees.flatten(tree)
        values = [_leaf(f"{name}{path} at time 0", value) for value, path in zip(found, trees.paths(structure), strict=True)]
        return cls(name, structure, [_constant(value) for value in values]), values

    def check(self, tree: Tree, time: int) -> list[Any]:
        """The leaves of the tree that loop_fn returned at ``time``.

        Raises:
            TypeError: another node type or dtype.
            ValueError: another structure or shape, or a leaf that is no tensor.
        """
        found = [tree] if self._single else trees.match(self.structure, tree, lambda: f"{self.name} at time {time}")
        for place, (value, leaf) in enumerate(zip(found, self.leaves, strict=True)):
            if type(value) is torch.Tensor and value.dtype == leaf.dtype and value.shape == leaf.shape:
                continue
            found[place] = self._checked(value, leaf, f"{self.name}{trees.paths(self.structure)[place]}", time)
        return found

    def _checked(self, value: Any, leaf: Leaf, path: str, time: int) -> Any:
        value = _leaf(f"{path} at time {time}", value, str(leaf) if leaf.shape is None else f"a tensor {leaf}")
        now = _constant(value)
        if now == leaf or (leaf.shape is None and now.shape is None and None in (leaf.dtype, now.dtype)):
            return value
        if now.dtype != leaf.dtype and leaf.shape is not None and now.shape is not None:
            raise TypeError(f"{path} must keep its dtype: expected {leaf}, got {now} at time {time}. Convert it in loop_fn.")
        hint = self.hint(now.shape) if self.hint else ""
        raise ValueError(f"{path} must keep its shape: expected {leaf}, got {now} at time {time}.{hint}")

    def tree(self, leaves: list[Any]) -> Tree:
        if self._single:
            return leaves[0]
        return tuple(leaves) if self._flat_tuple else trees.unflatten(self.structure, leaves)  # pytree's takes microseconds


def _leaf(path: str, value: Any, expected: str = "a tensor") -> Any:
    if isinstance(value, (torch.Tensor, TensorArray)):
        return value
    if isinstance(value, (bool, int, float, complex)):
        return torch.as_tensor(value)
    raise ValueError(f"{path} must be {expected}, got {trees.describe(value)}")


def _constant(value: Any) -> Leaf:
    return Leaf(None, value.dtype) if isinstance(value, TensorArray) else Leaf(tuple(value.shape), value.dtype)


@dataclass
class Start:
    """What loop_fn's call at time 0 settles.

    Attributes:
        batch: number of rows.
        device: of the rows.
        finished: ``[B]`` bool.
        inputs, state, loop_state: the leaves at time 0; loop_state is None where loop_fn gave None.
        inputs_port, state_port, loop_state_port: what those must stay like.
        emit_port: what each step's emit must be, per step ``[B, ...]``; None until the cell's first output says it.
    """

    batch: int
    device: torch.device
    finished: torch.Tensor
    inputs: list[torch.Tensor]
    inputs_port: Port
    state: list[Any]
    state_port: Port
    loop_state: list[Any] | None
    loop_state_port: Port | None
    emit_port: Port | None


class Step(NamedTuple):
    """One checked result of loop_fn at time 1 or later; leaves in the order of their ports."""

    finished: torch.Tensor
    inputs: list[torch.Tensor]
    state: list[Any]
    emit: list[torch.Tensor]
    loop_state: list[Any] | None


def start(call: Call, frame: Frame) -> Start:
    """Call loop_fn at time 0 and settle what its result fixes.

    Raises:
        TypeError, ValueError: as `fusedrnn.raw_rnn` says, naming the value, the leaf's path and both sides.
        IndexError: rows that are not finished read past the end of an input.
    """
    frame.begin_step(0)
    with reads.Reads(frame):
        result = asked(call, clock(0), None, None, None)
    finished, next_input, state, emit, loop_state = unpacked(result, 0)

    inputs_port, inputs = Port.of("next_input", next_input)
    shapes = [leaf.shape for leaf in inputs_port.leaves if leaf.shape]
    if not shapes or len(shapes) < len(inputs):
        raise ValueError(f"next_input at time 0 must be a tensor [B, ...] or a tree of them, got {trees.describe(next_input)}")
    batch = shapes[0][0]
    _batch_first(inputs_port, batch, scalars=False)

    if state is None:
        raise ValueError("next_cell_state is None at time 0; return the initial state there, such as cell.zero_state(batch_size)")
    state_port, state_leaves = Port.of("next_cell_state", state)
    _batch_first(state_port, batch, scalars=True)

    device = inputs[0].device
    flags = finished_flags(finished, batch, device, 0).clone()  # loop_fn may keep its tensor and change it
    reads.check(frame, flags)
    loop_state_port, loop_leaves = (None, None) if loop_state is None else Port.of("loop_state", loop_state)
    return Start(
        batch, device, flags, inputs, inputs_port, state_leaves, state_port, loop_leaves, loop_state_port,
        None if emit is None else _emit_port(emit, batch),
    )  # fmt: skip


def step(call: Call, begun: Start, frame: Frame, time: int, finished: torch.Tensor, output: Tree, state: Tree, loop_state: Tree) -> Step:
    """Call loop_fn at a time from 1 on and check its result. ``finished`` is what was known before the call."""
    with reads.Reads(frame):
        result = asked(call, clock(time), output, state, loop_state)
    checked = settled(call, begun, time, finished, output, result)
    reads.check(frame, checked.finished)
    return checked


def settled(call: Call, begun: Start, time: int, finished: torch.Tensor, output: Tree, result: Any) -> Step:
    """What loop_fn returned at a time from 1 on, checked, for the cell's ``output``. ``finished`` is what was known before the call."""
    next_finished, next_input, next_state, emit, next_loop_state = unpacked(result, time)
    flags = finished | finished_flags(next_finished, begun.batch, begun.device, time)
    if emit is None:
        raise ValueError(f"emit_output at time {time} must be a tensor or a tree of them, got None; only time 0 may give None")
    if begun.emit_port is None:
        begun.emit_port = emit_port_of_output(call.cell, output, begun.batch)
    if next_loop_state is None:
        loop_leaves = None
    elif begun.loop_state_port is None:
        raise ValueError(
            f"loop_state was None at time 0 and is {trees.describe(next_loop_state)} at time {time}; give it its initial value at time 0"
        )
    else:
        loop_leaves = begun.loop_state_port.check(next_loop_state, time)
    return Step(
        flags,
        begun.inputs_port.check(next_input, time),
        begun.state_port.check(next_state, time),
        begun.emit_port.check(emit, time),
        loop_leaves,
    )


def cell_results(result: Any, time: int) -> tuple[Tree, Tree]:
    """The two results of the cell's call in the step that ends at ``time``."""
    if isinstance(result, (tuple, list)) and len(result) == 2:
        return result[0], result[1]
    raise TypeError(f"cell must return the pair (output, new_state), got {trees.describe(result)} in the step before time {time}")


def asked(call: Call, *arguments: Any) -> Any:
    """What loop_fn returns."""
    try:
        return call.loop_fn(*arguments)
    except Exception as error:
        if type(error).__module__ == "torch._dynamo.exc":
            error.add_note(
                "If loop_fn calls torch.cond by a name imported from torch, write torch.cond(...): fusedrnn cannot see the other."
            )
        raise


def emit_port_of_output(cell: Any, output: Tree, batch: int) -> Port:
    """The port of a loop whose emit was None at time 0: the structure and shapes of ``cell.output_size``, the dtypes of the output.

    ``output`` may also be one dtype, which then stands for all leaves.
    """
    sizes, structure = trees.flatten(cell.output_size)
    if isinstance(output, torch.dtype):
        dtypes = [output] * len(sizes)
    else:
        outputs = trees.match(structure, output, "the cell's output (cell.output_size gives its structure)")
        dtypes = [_leaf("the cell's output", value).dtype for value in outputs]
    leaves = [Leaf((batch, *size_shape(size, "cell.output_size")), dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
    return Port(
        "emit_output", structure, leaves,
        lambda _: (
            " The emit was None at time 0, which stands for cell.output_size: return an example of one row's emit there instead, "
            "or correct cell.output_size."
        ),
    )  # fmt: skip


def _emit_port(emit: Tree, batch: int) -> Port:
    examples, examples_leaves = Port.of("emit_output", emit)
    if any(isinstance(value, TensorArray) for value in examples_leaves):
        raise ValueError("emit_output at time 0 must hold tensors, not a TensorArray; carry that in loop_state")
    per_example = {leaf.shape for leaf in examples.leaves}

    def hint(shape: Any) -> str:
        if shape in per_example:
            return (
                " The emit at time 0 must be that of one row, without the batch dimension "
                f"(shape {list(shape[1:])} where a step emits {list(shape)})."
            )
        return " The emit at time 0, without a batch dimension, fixes the shape of one row."

    leaves = [Leaf((batch, *(leaf.shape or ())), leaf.dtype) for leaf in examples.leaves]
    return Port("emit_output", examples.structure, leaves, hint)


def clock(time: int) -> torch.Tensor:
    """A time as loop_fn gets it."""
    return torch.tensor(time, dtype=torch.int32, device="cpu")


def unpacked(result: Any, time: int) -> tuple[Any, Any, Any, Any, Any]:
    """The five values that loop_fn returned."""
    if isinstance(result, (tuple, list)) and len(result) == 5:
        return tuple(result)
    names = "(finished, next_input, next_cell_state, emit_output, next_loop_state)"
    if not isinstance(result, (tuple, list)):
        raise TypeError(f"loop_fn must return five values {names}, got {trees.describe(result)} at time {time}")
    raise ValueError(f"loop_fn must return five values {names}, got {len(result)} at time {time}")


def finished_flags(value: Any, batch: int, device: torch.device, time: int | torch.Tensor) -> torch.Tensor:
    """``finished`` as bool ``[batch]`` on the device: one bool stands for all rows.

    Raises:
        TypeError: it is no bool, or no tensor.
        ValueError: it has another shape, or is on another device, or None.
    """
    if isinstance(value, bool):
        value = torch.tensor(value, device=device)
    if not isinstance(value, torch.Tensor):
        kind = ValueError if value is None else TypeError
        raise kind(f"finished must be a bool tensor [B] or one bool, got {trees.describe(value)} at time {time}")
    if value.dtype != torch.bool:
        raise TypeError(f"finished must be of dtype bool, such as time >= lengths, got {trees.describe(value)} at time {time}")
    if value.ndim == 0:
        return value.to(device).expand(batch)
    if value.shape != (batch,):
        raise ValueError(f"finished must have shape [{batch}] (the batch of next_input) or [], got {list(value.shape)} at time {time}")
    if value.device != device:
        raise ValueError(f"finished is on {value.device} and next_input on {device} at time {time}; move one of them")
    return value


def _batch_first(port: Port, batch: int, *, scalars: bool) -> None:
    for path, leaf in zip(trees.paths(port.structure), port.leaves, strict=True):
        if leaf.shape is None or (scalars and leaf.shape == ()):
            continue
        if leaf.shape[0] != batch:
            raise ValueError(
                f"{port.name}{path} at time 0 has batch size {leaf.shape[0]} (shape {list(leaf.shape)}), "
                f"the first leaf of next_input has {batch}"
            )
