"""raw_rnn: a cell and a loop_fn in, what the loop emitted and its final states out. It checks and hands over to an executor."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from . import executors
from .contract import Call, LoopFn
from .result import Result


def raw_rnn(
    cell: Any,
    loop_fn: LoopFn,
    parallel_iterations: int | None = None,
    swap_memory: bool = False,
    scope: str | None = None,
    *,
    backend: str = "auto",
    max_steps: int | None = None,
) -> Result:
    """Run a recurrence: a cell, and a loop_fn that decides when to stop, what to read next and what to emit.

    ``loop_fn(time, cell_output, cell_state, loop_state)`` returns ``(finished, next_input, next_cell_state, emit_output,
    next_loop_state)``. It is called with time 0 and three None before the first step, then after each step with the time of the
    next one: T steps make T + 1 calls. ``B`` below is the batch size, the first dimension of ``next_input``.

    - ``time``: a 0-d int32 tensor.
    - ``finished``: bool ``[B]``, or one bool for all rows. A row stays finished; the loop ends when all are.
    - ``next_input``: a tensor ``[B, ...]`` or a tree of them: what the cell gets next.
    - ``next_cell_state``: at time 0 the initial state. Leaves ``[B, ...]`` freeze with their row; rank-0 leaves and TensorArrays
      do not.
    - ``emit_output``: at time 0 an example of ONE ROW's emit, without the batch dimension, which fixes structure, dtype and shape;
      its values are ignored. None stands for ``cell.output_size``. Later the step's emit, ``[B, ...]`` a leaf. Finished rows emit
      zeros; the step in which a row finishes is still emitted.
    - ``next_loop_state``: any tree, never frozen; None keeps the last one.

    Structures, dtypes and shapes stay what they are at time 0. A look-up ``x[time]`` or ``TensorArray.read(time)`` past the end gives
    the last element and is an error only if a row is still unfinished after that call. NaN and Inf that a finished row holds are
    zeroed on their way into the cell and reach no emit, state or gradient of another row.

    Args:
        cell: an `RNNCell`, a ``torch.nn.LSTMCell``, ``GRUCell`` or ``RNNCell``, or any callable object with ``output_size`` and
            ``state_size``; called as ``cell(input, state) -> (output, new_state)``.
        loop_fn: as above.
        parallel_iterations: how many steps' worth of work that does not depend on the state may be done at once: time against
            space. None and 0 let the executor choose. `reference` does every step's work in that step.
        swap_memory: keep what the backward needs in host memory (pinned where there is a GPU).
        scope: the name of a profiler range around the loop.
        backend: "auto", "persistent", "stepwise", "native" or "reference". The environment variable FUSEDRNN_BACKEND replaces "auto".
        max_steps: the most steps to run; rows it cuts off are True in ``truncated``. None sets no bound.

    Returns:
        ``(emit_ta, final_state, final_loop_state)``. ``emit_ta`` has the emit's structure with a TensorArray a leaf: ``stack()``
        gives ``[T_run, B, ...]``. It and the result itself carry ``lengths`` (``[B]`` int32: steps until the row finished) and
        ``truncated`` (``[B]`` bool: cut off by ``max_steps``).

    Raises:
        TypeError: ``cell`` is no cell, ``loop_fn`` cannot be called, ``finished`` is not bool, a leaf changed its dtype or a node its type.
        ValueError: a structure, shape or batch size does not fit; the message names the value, the leaf's path and both sides.
        IndexError: a row that was not finished read past the end of an input.
        PlanError: the named backend cannot run this.
    """
    call = Call.checked(cell, loop_fn, parallel_iterations, swap_memory, max_steps)
    if scope is not None and not isinstance(scope, str):
        raise TypeError(f"scope must be a str or None, got {type(scope).__name__}")
    with torch.profiler.record_function(scope) if scope is not None and torch._C._autograd._profiler_enabled() else nullcontext():
        if torch.compiler.is_dynamo_compiling():  # it would break the graph in every step, and gain nothing
            execute: Any = torch.compiler.disable(executors.execute)  # type: ignore[no-untyped-call]
        else:
            execute = executors.execute
        result: Result = execute(backend, call)
        return result
