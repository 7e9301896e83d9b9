"""The reference executor: the Python loop that defines what every other executor must compute. In: a `Call`; out: a `Result`."""

from __future__ import annotations

import copy
import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # torch's only way to ask for dtypes without computing

from .. import branches, contract, frames, trees
from ..cells.protocol import parameters
from ..contract import Call, Start
from ..result import Result
from ..tensor_array import EmitArray, TensorArray
from ..trees import Tree


def run(call: Call) -> Result:
    """Run the loop step by step. The finished flags come to the host once a step."""
    with frames.running() as frame, branches.taken(), _swapped(call):
        begun = contract.start(call, frame)
        finished, inputs, state, loop_state = begun.finished, begun.inputs, begun.state, begun.loop_state
        emits: list[list[torch.Tensor]] = []
        history: list[torch.Tensor] = []  # the finished flags before each step
        while (done := int(finished.count_nonzero())) < begun.batch and len(emits) != call.max_steps:
            time = len(emits) + 1
            frame.begin_step(time)
            seen = state
            if done:
                inputs, seen = _quieted(inputs, finished), _seen_by_cell(state, finished)
            versions = _versions(state)
            result = call.cell(begun.inputs_port.tree(inputs), begun.state_port.tree(seen))
            output, cell_state = contract.cell_results(result, time)
            if done and torch.is_grad_enabled():
                output, cell_state = _guarded(output, finished), _guarded(cell_state, finished)
            carried = None if begun.loop_state_port is None else begun.loop_state_port.tree(loop_state or [])
            step = contract.step(call, begun, frame, time, finished, output, cell_state, carried)
            if done and versions != _versions(state):
                raise RuntimeError(
                    f"the cell or loop_fn changed the state in place in the step to time {time}; "
                    "finished rows need the old one: copy it first"
                )
            history.append(finished)
            if done:
                emits.append([value.masked_fill(_rows(finished, value), 0) for value in step.emit])
                state = [_frozen(old, new, finished) for old, new in zip(state, step.state, strict=True)]
            else:
                emits.append(step.emit)
                state = step.state
            finished, inputs = step.finished, step.inputs
            loop_state = loop_state if step.loop_state is None else step.loop_state
        carried = None if begun.loop_state_port is None else begun.loop_state_port.tree(loop_state or [])
        return _result(call, begun, emits, history, finished, begun.state_port.tree(state), carried)


def _rows(flags: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """``[B]`` flags shaped to broadcast over a leaf ``[B, ...]``."""
    return flags.view(-1, *[1] * (leaf.ndim - 1))


def _frozen(old: Any, new: Any, finished: torch.Tensor) -> Any:
    """The next state leaf: the old one for finished rows. A TensorArray and a rank-0 leaf belong to no row and are never frozen."""
    if isinstance(new, TensorArray) or new.ndim == 0:
        return new
    return torch.where(_rows(finished, new), old, new)


def _quieted(leaves: list[Any], finished: torch.Tensor) -> list[Any]:
    """The leaves with NaN and Inf of finished rows as zeros, so that the cell's backward makes no ``0 * inf`` of them."""

    def quiet(leaf: Any) -> Any:
        if isinstance(leaf, TensorArray) or leaf.ndim == 0 or not (leaf.is_floating_point() or leaf.is_complex()):
            return leaf
        if _sum_is_finite(leaf):
            return leaf  # one cheap pass in the common case; a sum that overflows only costs the mask
        return leaf.masked_fill(_rows(finished, leaf) & ~torch.isfinite(leaf), 0)

    return [quiet(leaf) for leaf in leaves]


def _sum_is_finite(leaf: torch.Tensor) -> bool:
    if leaf.device.type != "cpu" or leaf.is_complex():
        return False  # looking would wait for the device
    try:
        return math.isfinite(leaf.detach().sum().item())
    except RuntimeError:  # under vmap nothing can be looked at
        return False


def _seen_by_cell(state: list[Any], finished: torch.Tensor) -> list[Any]:
    """The state leaves that the cell gets once rows are finished."""
    # Inference tensors have no version that would tell of a change in place: the cell gets its own.
    own = [leaf.clone() if isinstance(leaf, torch.Tensor) and leaf.is_inference() else leaf for leaf in state]
    return _quieted(own, finished)


def _versions(state: list[Any]) -> list[int]:
    """How often each tensor that freezes was changed in place."""
    return [leaf._version for leaf in state if isinstance(leaf, torch.Tensor) and leaf.ndim and not leaf.is_inference()]


def _guarded(tree: Tree, finished: torch.Tensor) -> Tree:
    """The tree with gradients that are not finite dropped for finished rows: loop_fn may divide by what such a row holds."""

    def dropped(grad: torch.Tensor | None) -> torch.Tensor | None:
        # A second backward may come without a gradient.
        return None if grad is None else grad.masked_fill(_rows(finished, grad) & ~torch.isfinite(grad), 0)

    def guard(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.requires_grad or leaf.shape[:1] != finished.shape:
            return leaf
        alias = leaf.view_as(leaf)  # a hook on the leaf itself would also meet gradients that do not come from loop_fn
        alias.register_hook(dropped)  # type: ignore[no-untyped-call]
        return alias

    return trees.map_leaves(guard, tree)


def _result(
    call: Call,
    begun: Start,
    emits: list[list[torch.Tensor]],
    history: list[torch.Tensor],
    finished: torch.Tensor,
    state: Tree,
    carried: Tree,
) -> Result:
    """The emits as a tree of arrays, with the states; what has to be put together for it waits until it is asked for."""
    port = begun.emit_port or _port_of_fake_run(call, begun)
    batch, device = begun.batch, begun.device  # not begun itself: an emit that is kept must not keep the initial state

    @cache
    def lengths() -> torch.Tensor:
        if not history:
            return torch.zeros(batch, dtype=torch.int32, device=device)
        return torch.stack(history).logical_not().sum(0, dtype=torch.int32)

    def truncated() -> torch.Tensor:
        return ~finished

    def array(place: int, leaf: contract.Leaf) -> EmitArray:
        whole = None if emits else _no_steps(call, begun, leaf)
        return EmitArray(
            lambda: [step[place] for step in emits] if whole is None else whole,
            lengths, truncated, dtype=leaf.dtype, element_shape=leaf.shape, device=device,
        )  # fmt: skip

    arrays = [array(place, leaf) for place, leaf in enumerate(port.leaves)]
    return Result(port.tree(arrays), state, carried, lengths, truncated)


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


def _swapped(call: Call) -> AbstractContextManager[Any]:
    """With swap_memory, what autograd keeps for the backward goes to (pinned) host memory."""
    if not call.swap_memory:
        return nullcontext()
    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())
