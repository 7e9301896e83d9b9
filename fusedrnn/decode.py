"""dynamic_decode: a decoder in, its outputs, final state and lengths out, as one `raw_rnn`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from . import trees
from .contract import finished_flags
from .loop import raw_rnn
from .trees import Tree

_MEMBERS = ("initialize", "step", "output_size", "output_dtype")


class _PassOn:
    """The cell of a decode loop: the decoder itself steps in loop_fn, where it knows the time and may read past the end."""

    output_size = ()
    state_size = ()

    def __call__(self, inputs: Tree, state: Tree) -> tuple[Tree, Tree]:
        return inputs, state


def dynamic_decode(
    decoder: Any,
    output_time_major: bool = False,
    impute_finished: bool = False,
    maximum_iterations: int | None = None,
    parallel_iterations: int | None = None,
    swap_memory: bool = False,
    scope: str | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tree, Tree, torch.Tensor]:
    """Step a decoder until all rows are finished.

    Args:
        decoder: an object with

            - ``initialize() -> (finished, inputs, state)``: bool ``[B]`` and trees of leaves ``[B, ...]``;
            - ``step(time, inputs, state) -> (outputs, state, inputs, finished)``, ``time`` the 0-d int32 number of the step, from 0;
            - ``output_size``, ``output_dtype``: trees like the outputs, of int or ``torch.Size`` without the batch, and of dtypes;
            - optional ``tracks_own_finished`` (True: ``finished`` is taken as it is, so that a row may become unfinished again) and
              ``finalize(outputs, state, lengths) -> (outputs, state)``, which gets time-major outputs ``[T, B, ...]``.
        output_time_major: outputs ``[T, B, ...]`` instead of ``[B, T, ...]``.
        impute_finished: zero the outputs and freeze the state of finished rows. Without it they go on as the decoder makes them.
        maximum_iterations: the most steps; None sets no bound.
        parallel_iterations, swap_memory, scope, backend: as for `raw_rnn`.

    Returns:
        ``(outputs, state, lengths)``; ``lengths`` ``[B]`` int32: the steps of each row, that in which it finished included.

    Raises:
        TypeError: the decoder lacks a member, or ``maximum_iterations`` is no integer.
        ValueError: ``maximum_iterations`` is negative; ``impute_finished`` with a decoder that tracks its own finished rows; as `raw_rnn`.
    """
    missing = [name for name in _MEMBERS if not hasattr(decoder, name)]
    if missing:
        raise TypeError(f"decoder must have {', '.join(_MEMBERS)}; {type(decoder).__name__} lacks {', '.join(missing)}")
    own_finished = bool(getattr(decoder, "tracks_own_finished", False))
    if own_finished and impute_finished:
        raise ValueError("impute_finished freezes finished rows for good, but this decoder tracks its own: leave impute_finished False")
    if isinstance(maximum_iterations, torch.Tensor) and maximum_iterations.ndim == 0 and not maximum_iterations.is_floating_point():
        maximum_iterations = int(maximum_iterations)
    if maximum_iterations is not None and (isinstance(maximum_iterations, bool) or not isinstance(maximum_iterations, int)):
        raise TypeError(f"maximum_iterations must be an int or None, got {maximum_iterations!r}")
    if maximum_iterations is not None and maximum_iterations < 0:
        raise ValueError(f"maximum_iterations must not be negative, got {maximum_iterations}")
    example = _example(decoder)

    def bounded(finished: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return finished if maximum_iterations is None else finished | (time >= maximum_iterations).to(finished.device)

    def reported(finished: torch.Tensor) -> torch.Tensor:
        # Without imputing, no row may freeze before the last: the loop hears only that all are finished.
        return finished if impute_finished else finished.all()

    def loop_fn(time: torch.Tensor, inputs: Any, state: Any, progress: Any) -> tuple[Any, Any, Any, Any, Any]:
        if inputs is None:
            finished, inputs, state = decoder.initialize()
            first = trees.leaves(inputs)[0]
            if not isinstance(first, torch.Tensor) or not first.ndim:
                raise ValueError(f"decoder.initialize must give inputs [B, ...], got {trees.describe(inputs)}")
            finished = bounded(finished_flags(finished, first.shape[0], first.device, 0), time)
            return reported(finished), inputs, state, example, (finished, torch.zeros_like(finished, dtype=torch.int32))
        before, lengths = progress
        stepped = decoder.step(time - 1, inputs, state)
        if not isinstance(stepped, tuple) or len(stepped) != 4:
            raise ValueError(f"decoder.step must return (outputs, state, inputs, finished), got {trees.describe(stepped)}")
        outputs, state, inputs, finished = stepped
        finished = finished_flags(finished, before.shape[0], before.device, time)
        finished = bounded(finished if own_finished else finished | before, time)
        return reported(finished), inputs, state, outputs, (finished, torch.where(before, lengths, time.to(lengths)))

    emits, state, (_, lengths) = raw_rnn(_PassOn(), loop_fn, parallel_iterations, swap_memory, scope, backend=backend)
    outputs = trees.map_leaves(lambda emit: emit.stack(), emits)
    if hasattr(decoder, "finalize"):
        with suppress(NotImplementedError):  # TensorFlow's base class raises it where there is nothing to finalize
            outputs, state = decoder.finalize(outputs, state, lengths)
    return (outputs if output_time_major else trees.map_leaves(lambda leaf: leaf.transpose(0, 1), outputs)), state, lengths


def _example(decoder: Any) -> Tree:
    """One row's output without data: shapes from ``output_size``, dtypes from ``output_dtype`` (one dtype stands for all leaves)."""
    dtypes = decoder.output_dtype
    if isinstance(dtypes, torch.dtype):
        return trees.map_leaves(lambda size: _zeros(size, decoder.output_dtype), decoder.output_size)
    return trees.map_leaves(_zeros, decoder.output_size, dtypes)


def _zeros(size: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(size if isinstance(size, torch.Size) else (size,), dtype=dtype)
