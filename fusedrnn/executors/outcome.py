"""What a loop returns, from what its steps left. In: emits and final leaves; out: a `Result` that puts things together when asked."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from .. import contract
from ..cells.protocol import parameters
from ..contract import Call, Port, Start
from ..result import Result
from ..tensor_array import EmitArray

if TYPE_CHECKING:
    from .native_call import End


def outcome(
    call: Call,
    begun: Start,
    emit_port: Port | None,
    emits: list[list[torch.Tensor]] | Callable[[int], torch.Tensor],
    lengths: Callable[[], torch.Tensor] | None,
    finished: torch.Tensor | Callable[[], torch.Tensor],
    state: list[Any],
    loop_state: list[Any] | None,
    executor: str,
) -> Result:
    """The loop's result.

    Args:
        emit_port: None where no step has told it.
        emits: the leaves of each step's emit, or what gives all steps ``[T_run, B, ...]`` of a leaf, by its place.
        lengths: gives ``[B]`` int32, the steps of each row; None for a loop that took no step.
        finished: ``[B]`` bool at the end, or what gives it.
        state, loop_state: the final leaves.
        executor: its name.
    """
    port = emit_port or _port_of_fake_run(call, begun)
    batch, device = begun.batch, begun.device  # not begun itself: an emit that is kept must not keep the initial state

    def no_lengths() -> torch.Tensor:
        return torch.zeros(batch, dtype=torch.int32, device=device)

    def truncated() -> torch.Tensor:
        return ~(finished() if callable(finished) else finished)

    def fetch(place: int, leaf: contract.Leaf) -> Callable[[], list[torch.Tensor] | torch.Tensor]:
        if lengths is None:
            whole = _no_steps(call, begun, leaf)
            return lambda: whole
        if callable(emits):
            return lambda: emits(place)
        return lambda: [step[place] for step in emits]

    said = lengths or no_lengths
    arrays = [
        EmitArray(fetch(place, leaf), said, truncated, dtype=leaf.dtype, element_shape=leaf.shape, device=device)
        for place, leaf in enumerate(port.leaves)
    ]
    carried = None if begun.loop_state_port is None else begun.loop_state_port.tree(loop_state or [])
    return Result(port.tree(arrays), begun.state_port.tree(state), carried, said, truncated, executor)


def of_end(call: Call, begun: Start, emit_port: Port, ended: End, executor: str) -> Result:
    """The result of a loop that has ended."""
    loop_state = None if begun.loop_state is None else ended.tree("loop_state")
    return outcome(
        call, begun, emit_port, ended.emit, ended.get_lengths, ended.get_finished, ended.tree("state"), loop_state, executor
    )  # fmt: skip


def _no_steps(call: Call, begun: Start, leaf: contract.Leaf) -> torch.Tensor:
    """The emits of a loop that took no step: ``[0, B, ...]``, which a backward can start from and finds zero gradients."""
    empty = torch.zeros((0, *(leaf.shape or ())), dtype=leaf.dtype, device=begun.device)
    if not torch.is_grad_enabled() or not (empty.is_floating_point() or empty.is_complex()):
        return empty
    for source in (*begun.inputs, *begun.state, *(begun.loop_state or ()), *parameters(call.cell)):
        if isinstance(source, torch.Tensor) and source.requires_grad:
            empty = empty + source.reshape(-1)[:0].sum().to(empty)
    return empty


def _port_of_fake_run(call: Call, begun: Start) -> contract.Port:
    """The emit port of a loop that took no step and was given no emit at time 0: the cell runs on tensors without data.

    A cell that looks at its data cannot run so: its emits get the dtype of the first state leaf, TensorFlow's rule.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # torch's only way to ask for dtypes without computing; slow to import

    try:  # a copy, parameters aside: what the cell keeps of tensors without data must not stay
        cell = copy.deepcopy(call.cell, {id(parameter): parameter for parameter in parameters(call.cell)})
    except Exception:  # not everything can be copied
        cell = call.cell
    with warnings.catch_warnings(), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        # Making a fake of a closed-over tensor looks at its .grad, which warns where that tensor is no leaf.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
        inputs, state = (
            port.tree([fake.from_tensor(leaf.detach()) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves])
            for port, leaves in ((begun.inputs_port, begun.inputs), (begun.state_port, begun.state))
        )
        try:
            output, _ = contract.cell_results(cell(inputs, state), 0)
        except Exception:  # a cell that looks at its data; what is wrong with it shows in a loop that runs it
            output = begun.state[0].dtype
        return contract.emit_port_of_output(call.cell, output, begun.batch)
