"""dynamic_rnn and bidirectional_dynamic_rnn: a cell over whole sequences, as one `raw_rnn` with a sequence-length read."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from . import trees
from .cells.protocol import as_cell, parameters, zero_state
from .feedback.sequences import checked_lengths, sequence, time_and_batch
from .loop import raw_rnn
from .trees import Tree


def dynamic_rnn(
    cell: Any,
    inputs: Tree,
    sequence_length: torch.Tensor | None = None,
    initial_state: Tree = None,
    dtype: torch.dtype | None = None,
    parallel_iterations: int | None = None,
    swap_memory: bool = False,
    time_major: bool = False,
    scope: str | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tree, Tree]:
    """Run a cell over sequences of different lengths.

    Args:
        cell: as for `raw_rnn`.
        inputs: a tensor ``[B, T, ...]`` (``[T, B, ...]`` with ``time_major``) of rank 3 or more, or a tree of them.
        sequence_length: ``[B]`` integers, on the inputs' device; never copied to the host. More than T counts as T, less than 0 as
            0. None: every row has T.
        initial_state: leaves ``[B, ...]``; None: the cell's zero state.
        dtype: of the zero state. None takes the cell's own, of a cell without parameters that of the inputs.
        parallel_iterations, swap_memory, scope, backend: as for `raw_rnn`.
        time_major: whether inputs and outputs have time first.

    Returns:
        ``(outputs, state)``: the cell's outputs ``[B, T, ...]`` (``[T, B, ...]``), zeros past a row's length, and the state after each
        row's last step (its initial state for length 0).

    Raises:
        TypeError: an input is no tensor, or ``sequence_length`` holds no integers.
        ValueError: an input of rank below 3, leaves that disagree about T or B, ``sequence_length`` no vector ``[B]``, or an
            ``initial_state`` of another batch size.
    """
    called = as_cell(cell)
    inputs = _time_major(inputs, time_major)
    steps, batch = time_and_batch(inputs, "inputs")
    lengths = None if sequence_length is None else checked_lengths(sequence_length, batch, steps, "sequence_length")
    first = trees.leaves(inputs)[0]
    if initial_state is None:
        initial_state = _zero_state(cell, batch, dtype, first)
    _check_rows(initial_state, batch)
    loop_fn = sequence(inputs, lengths if isinstance(lengths, torch.Tensor) else None, initial_state)
    emits, state, _ = raw_rnn(called, loop_fn, parallel_iterations, swap_memory, scope, backend=backend)
    outputs = trees.map_leaves(lambda emit: padded(emit.stack(), steps), emits)
    return (outputs if time_major else trees.map_leaves(_swapped, outputs)), state


def bidirectional_dynamic_rnn(
    cell_fw: Any,
    cell_bw: Any,
    inputs: Tree,
    sequence_length: torch.Tensor | None = None,
    initial_state_fw: Tree = None,
    initial_state_bw: Tree = None,
    dtype: torch.dtype | None = None,
    parallel_iterations: int | None = None,
    swap_memory: bool = False,
    time_major: bool = False,
    scope: str | None = None,
    *,
    backend: str = "auto",
) -> tuple[tuple[Tree, Tree], tuple[Tree, Tree]]:
    """Run one cell forwards and one backwards over each row's own length.

    Arguments and errors are those of `dynamic_rnn`, with a cell and an initial state for each direction.

    Returns:
        ``((outputs_fw, outputs_bw), (state_fw, state_bw))``; ``outputs_bw`` stand at the places of their inputs, so that
        ``torch.cat((outputs_fw, outputs_bw), -1)`` joins them.
    """
    as_cell(cell_fw, "cell_fw")
    as_cell(cell_bw, "cell_bw")
    inputs = _time_major(inputs, time_major)
    steps, batch = time_and_batch(inputs, "inputs")
    lengths = checked_lengths(sequence_length, batch, steps, "sequence_length")
    options: Any = {
        "sequence_length": sequence_length, "dtype": dtype, "parallel_iterations": parallel_iterations, "swap_memory": swap_memory,
        "time_major": True, "scope": scope, "backend": backend,
    }  # fmt: skip
    out_fw, state_fw = dynamic_rnn(cell_fw, inputs, initial_state=initial_state_fw, **options)
    out_bw, state_bw = dynamic_rnn(
        cell_bw, trees.map_leaves(lambda leaf: reversed_rows(leaf, lengths), inputs), initial_state=initial_state_bw, **options
    )
    outputs = (out_fw, trees.map_leaves(lambda leaf: reversed_rows(leaf, lengths), out_bw))
    return (outputs if time_major else trees.map_leaves(_swapped, outputs)), (state_fw, state_bw)


def _time_major(inputs: Tree, time_major: bool) -> Tree:
    if isinstance(inputs, PackedSequence):
        raise TypeError("inputs is a PackedSequence: pass the padded tensor, and the lengths as sequence_length")
    leaves, structure = trees.flatten(inputs)
    for leaf, path in zip(leaves, trees.paths(structure), strict=True):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(f"inputs{path} must be a tensor, got {trees.describe(leaf)}")
        if leaf.ndim < 3:
            layout = "[T, B, ...]" if time_major else "[B, T, ...]"
            raise ValueError(f"inputs{path} must be {layout} of rank 3 or more, got shape {list(leaf.shape)}; unsqueeze(-1) adds a feature")
    return inputs if time_major else trees.unflatten(structure, [_swapped(leaf) for leaf in leaves])


def _swapped(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.transpose(0, 1)


def _zero_state(cell: Any, batch: int, dtype: torch.dtype | None, inputs: torch.Tensor) -> Tree:
    if dtype is None and next(iter(parameters(cell)), None) is None and inputs.is_floating_point():
        dtype = inputs.dtype
    return zero_state(cell, batch, dtype, inputs.device)


def _check_rows(state: Tree, batch: int) -> None:
    leaves, structure = trees.flatten(state)
    for leaf, path in zip(leaves, trees.paths(structure), strict=True):
        if isinstance(leaf, torch.Tensor) and leaf.ndim and len(leaf) != batch:
            raise ValueError(f"initial_state{path} has batch size {len(leaf)} (shape {list(leaf.shape)}), the inputs have {batch}")


def padded(outputs: torch.Tensor, steps: int) -> torch.Tensor:
    """Zeros up to T, where every row had finished earlier."""
    missing = steps - len(outputs)
    return outputs if not missing else torch.cat([outputs, outputs.new_zeros((missing, *outputs.shape[1:]))])


def reversed_rows(leaf: torch.Tensor, lengths: torch.Tensor | int) -> torch.Tensor:
    """``[T, B, ...]`` with the first ``lengths[b]`` elements of row b in reverse order, the rest as they are."""
    steps, batch = leaf.shape[:2]
    time = torch.arange(steps, device=leaf.device).unsqueeze(1)
    ends = torch.as_tensor(lengths, device=leaf.device).expand(batch)
    return leaf[torch.where(time < ends, ends - 1 - time, time), torch.arange(batch, device=leaf.device)]
