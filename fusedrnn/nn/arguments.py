"""What the modules refuse. In: arguments of a constructor or of a call; out: nothing, or torch.nn's kind of error.

Where torch.nn has an error for it, the message begins with torch.nn's words, for code that looks for them.
"""

from __future__ import annotations

import numbers
from typing import Any

import torch

from ..executors.backends import BACKENDS
from ..feedback.sequences import checked_lengths
from ..trees import describe


def options(
    *,
    input_size: Any,
    hidden_size: Any,
    num_layers: Any,
    bias: Any,
    batch_first: Any,
    dropout: Any,
    bidirectional: Any,
    proj_size: Any,
    layer_norm: Any,
    backend: Any,
) -> None:
    """Check what a module is made of.

    Raises:
        TypeError, ValueError: as the modules say.
    """
    if not isinstance(dropout, (numbers.Real, str)):
        raise TypeError(f"dropout should be a number in range [0, 1], got {dropout!r}")
    if isinstance(dropout, (bool, str)) or not 0 <= float(dropout) <= 1:
        raise ValueError(
            f"dropout should be a number in range [0, 1] representing the probability of an element being zeroed, not kept; got {dropout!r}"
        )
    for name, value in (("bias", bias), ("batch_first", batch_first), ("layer_norm", layer_norm)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__} ({value!r}); pass True or False")
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers), ("proj_size", proj_size)):
        if not isinstance(value, int):
            raise TypeError(f"{name} should be of type int, got: {type(value).__name__} ({value!r})")
        if value <= 0 and name != "proj_size":
            raise ValueError(f"{name} must be greater than zero, got {value}")
    if not isinstance(bidirectional, int):
        raise TypeError(f"bidirectional should be of type bool, got: {type(bidirectional).__name__} ({bidirectional!r})")
    if proj_size < 0:
        raise ValueError(f"proj_size should be a positive integer or zero to disable projections, got {proj_size}")
    if proj_size >= hidden_size:
        raise ValueError(
            f"proj_size has to be smaller than hidden_size, got proj_size = {proj_size} and hidden_size = {hidden_size}; 0 does not project"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def no_projection(proj_size: Any) -> None:
    """Check that a GRU or RNN is asked for no projection."""
    if proj_size is not None:
        raise ValueError(f"proj_size argument is only supported for LSTM, not RNN or GRU, got {proj_size!r}: leave it out")


def nonlinearity(name: Any) -> None:
    """Check the nonlinearity of an RNN."""
    if name not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity {name!r}. Select from 'tanh' or 'relu'.")


def rank(module: str, x: Any) -> None:
    """Check that x is a sequence of rows, or of one row alone."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{module}: input must be a tensor or a PackedSequence, got {describe(x)}")
    if x.ndim not in (2, 3):
        raise ValueError(
            f"{module}: Expected input to be 2D or 3D, got {x.ndim}D instead, of shape {list(x.shape)}: [T, B, input_size], "
            "[B, T, input_size] with batch_first, or [T, input_size] for one row alone"
        )


def data(packed: torch.Tensor) -> None:
    """Check the data of a PackedSequence."""
    if packed.ndim != 2:
        raise RuntimeError(f"input must have 2 dimensions, got {packed.ndim}: a PackedSequence's data is [sum of lengths, input_size]")


def state_parts(module: str, hx: Any, parts: int) -> list[torch.Tensor]:
    """The tensors of an initial state: h, or h and c."""
    if parts == 1:
        if not isinstance(hx, torch.Tensor):
            raise TypeError(f"{module}: hx must be the tensor h_0, got {describe(hx)}")
        return [hx]
    if not isinstance(hx, (tuple, list)) or not all(isinstance(part, torch.Tensor) for part in hx):
        raise TypeError(f"{module}: hx must be the two tensors (h_0, c_0), got {describe(hx)}")
    if len(hx) != parts:
        raise RuntimeError(f"{module}: lstm expects two hidden states, hx = (h_0, c_0), got {len(hx)}: {describe(hx)}")
    return list(hx)


def state_rank(parts: list[torch.Tensor], batched: bool) -> None:
    """Check that a state has rows where the input has them."""
    rank = 3 if batched else 2
    if any(part.ndim != rank for part in parts):
        names, got = "hx", f"{parts[0].ndim}-D tensor"
        if len(parts) > 1:
            names, got = "hx and cx", f"({parts[0].ndim}-D, {parts[1].ndim}-D) tensors"
        raise RuntimeError(
            f"For {'' if batched else 'un'}batched {rank}-D input, {names} should also be {rank}-D but got {got}: "
            f"[D * num_layers, {'B, ' if batched else ''}H], where D is 2 if the module is bidirectional, else 1"
        )


def sequence(x: torch.Tensor, weight: torch.Tensor, input_size: int, steps: int) -> None:
    """Check the input ``[..., D]`` against the first weight."""
    if x.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). Convert input: input.to({weight.dtype}), or "
            f"convert model: model.to({x.dtype})"
        )
    if x.shape[-1] != input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {input_size}, got {x.shape[-1]} (shape {list(x.shape)}): "
            "pass such an input or make the module with that input_size"
        )
    if x.device != weight.device:
        raise RuntimeError(
            f"Input and parameter tensors are not at the same device, found input tensor at {x.device} and parameter tensor at "
            f"{weight.device}: move one of them with .to(...)"
        )
    if steps == 0:
        raise RuntimeError(f"Expected sequence length to be larger than 0 in RNN, got T = 0 (input of shape {list(x.shape)})")


def state(parts: list[torch.Tensor], wanted: list[tuple[int, int, int]], x: torch.Tensor) -> None:
    """Check an initial state against the sizes that the module and the input ask for."""
    for place, (part, shape) in enumerate(zip(parts, wanted, strict=True)):
        name = "hidden" if len(parts) == 1 else f"hidden[{place}]"
        if part.shape != shape:
            raise RuntimeError(
                f"Expected {name} size {shape}, got {list(part.shape)}: [D * num_layers, B, H], with B as in the input; leave hx out for "
                "zeros"
            )
        if part.device != x.device:
            raise RuntimeError(
                f"Input and hidden tensors are not at the same device, found input tensor at {x.device} and hidden tensor at "
                f"{part.device}: move one of them with .to(...)"
            )
        if part.dtype != x.dtype and not torch._C._is_any_autocast_enabled():
            raise RuntimeError(f"Expected {name} dtype {x.dtype} as the input's, got {part.dtype}: convert it with .to({x.dtype})")


def lengths(given: Any, batch: int, steps: int, batched: bool, device: torch.device) -> torch.Tensor:
    """Lengths ``[B]`` within 0 and T, on the input's device.

    Raises:
        TypeError: they are no integers.
        ValueError: they are no vector ``[B]`` (no scalar for an input of one row alone), or on another device that is not the CPU.
    """
    found = torch.as_tensor(given)
    if not batched:
        if found.ndim:
            raise ValueError(f"lengths must be a 0-d tensor for an unbatched input, got shape {list(found.shape)}; lengths[0] makes one")
        found = found.unsqueeze(0)
    checked = checked_lengths(_placed("lengths", found, device), batch, steps, "lengths")
    assert isinstance(checked, torch.Tensor)
    return checked


def reset(given: Any, batch: int, steps: int, batched: bool, batch_first: bool, device: torch.device) -> torch.Tensor:
    """Resets, bool ``[T, B]``, on the input's device.

    Raises:
        TypeError: no tensor of bool.
        ValueError: another shape, or on another device that is not the CPU.
    """
    if not isinstance(given, torch.Tensor) or given.dtype != torch.bool:
        raise TypeError(f"reset must be a tensor of bool, got {describe(given)}; flags.bool() makes one of numbers")
    shape: tuple[int, ...]
    shape, layout = ((batch, steps), "[B, T]") if batch_first else ((steps, batch), "[T, B]")
    if not batched:
        shape, layout = (steps,), "[T]"
    if given.shape != shape:
        raise ValueError(f"reset must be {layout} = {list(shape)} as the input is, got shape {list(given.shape)}")
    placed = _placed("reset", given, device)
    if not batched:
        return placed.unsqueeze(1)
    return placed.transpose(0, 1) if batch_first else placed


def _placed(name: str, given: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device of the input; what is on a device is never copied to the host."""
    if given.device == device:
        return given
    if given.device.type != "cpu":
        raise ValueError(f"{name} must be on the input's device or on the CPU: the input is on {device}, {name} on {given.device}")
    return given.to(device, non_blocking=True)
