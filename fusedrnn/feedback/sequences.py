"""loop_fns that read a sequence, and the one that stops another after a number of steps."""

from __future__ import annotations

from typing import Any

import torch

from .. import trees
from ..contract import LoopFn
from ..trees import Tree


def sequence(inputs: Tree, lengths: torch.Tensor | None, initial_state: Tree) -> LoopFn:
    """Read one element of a sequence a step and emit the cell's output.

    Args:
        inputs: a tensor ``[T, B, ...]`` or a tree of them, time-major.
        lengths: ``[B]`` integers on the inputs' device: how many steps each row takes. More than T counts as T, less than 0 as 0.
            None: all rows take T.
        initial_state: the cell's state at the start, leaves ``[B, ...]``.

    Raises:
        TypeError: a leaf of ``inputs`` is no tensor, or ``lengths`` holds no integers.
        ValueError: the leaves disagree about T or B, or ``lengths`` is not ``[B]``.
    """
    steps, batch = time_and_batch(inputs, "inputs")
    ends = checked_lengths(lengths, batch, steps, "lengths")
    leaves, structure = trees.flatten(inputs)

    given = ends if isinstance(ends, torch.Tensor) else None

    def loop_fn(time: torch.Tensor, output: Any, state: Any, _: Any) -> tuple[Any, Any, Any, Any, Any]:
        state = initial_state if output is None else state
        # The number of steps is asked of the tensor here: a program that was captured for it fits any other.
        return (
            time >= (leaves[0].shape[0] if given is None else given),
            trees.unflatten(structure, [leaf[time] for leaf in leaves]),
            state,
            output,
            None,
        )

    return loop_fn


def fixed_steps(loop_fn: LoopFn, steps: int) -> LoopFn:
    """The same loop_fn, with every row finished after ``steps`` steps at the latest.

    Raises:
        ValueError: ``steps`` is negative.
    """
    if not callable(loop_fn):
        raise TypeError(f"loop_fn must be callable, got {type(loop_fn).__name__}")
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an int, got {steps!r}")
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")

    def stopped(time: torch.Tensor, output: Any, state: Any, loop_state: Any) -> tuple[Any, Any, Any, Any, Any]:
        finished, *rest = loop_fn(time, output, state, loop_state)
        return (finished | (time >= steps).to(torch.as_tensor(finished).device), *rest)

    return stopped


def time_and_batch(inputs: Tree, name: str) -> tuple[int, int]:
    """T and B of a tree of tensors ``[T, B, ...]``; the errors are those of `sequence`."""
    leaves, structure = trees.flatten(inputs)
    first: tuple[int, ...] | None = None
    for leaf, path in zip(leaves, trees.paths(structure), strict=True):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(f"{name}{path} must be a tensor [T, B, ...], got {trees.describe(leaf)}")
        if leaf.ndim < 2:
            raise ValueError(f"{name}{path} must be [T, B, ...], got shape {list(leaf.shape)}")
        first = first or tuple(leaf.shape[:2])
        if tuple(leaf.shape[:2]) != first:
            raise ValueError(f"{name}{path} has [T, B] = {list(leaf.shape[:2])}, the first leaf has {list(first)}")
    if first is None:
        raise ValueError(f"{name} must hold at least one tensor [T, B, ...], got {trees.describe(inputs)}")
    return first[0], first[1]


def checked_lengths(lengths: Any, batch: int, steps: int, name: str) -> torch.Tensor | int:
    """Lengths within 0 and ``steps``, as ``[B]``; ``steps`` itself where there are none. The tensor stays on its device."""
    if lengths is None:
        return steps
    lengths = torch.as_tensor(lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(f"{name} must be a vector [B] with B = {batch} rows, got shape {list(lengths.shape)}")
    bounded: torch.Tensor = lengths.clamp(0, steps)
    return bounded
