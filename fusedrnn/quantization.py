"""Weights of one byte, with a scale for each column of a product. In: a module; out: the same with such weights.

A weight is ``q.to(scale.dtype) * scale``, which the module computes whenever it reads the weight: every executor computes the same loop,
and ``state_dict`` holds the bytes. A persistent kernel keeps the bytes on-chip and multiplies the scales behind the product.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

_GREATEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True)
class Error:
    """What a weight lost.

    Attributes:
        dtype: that it is stored in.
        largest: the greatest difference, in parts of the greatest magnitude in its column.
        rms: the root of the mean square of the differences, in parts of that of the weights.
    """

    dtype: torch.dtype
    largest: float
    rms: float


class Dequantize(nn.Module):
    """The weight that bytes and scales stand for.

    Args:
        scale: ``[N, 1]``, for the rows of a weight ``[N, K]``, which are the columns of ``x @ weight.T``.
        error: what the weight lost.
    """

    scale: torch.Tensor

    def __init__(self, scale: torch.Tensor, error: Error) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.error = error
        _made.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _made.add(self)

    def forward(self, bytes: torch.Tensor) -> torch.Tensor:
        return bytes.to(self.scale.dtype) * self.scale


_made: weakref.WeakSet[Dequantize] = weakref.WeakSet()


def quantize(module: nn.Module, names: Iterable[str] | None = None, *, dtype: torch.dtype = torch.int8) -> nn.Module:
    """Store weights of a module as one byte each, in place. It can be run then, not trained.

    Convert the module to the dtype it is to compute in before: converted later, float8 bytes become numbers of that dtype.

    Args:
        module: a cell, a projection, or what holds some.
        names: of the weights ``[N, K]`` to be stored so, as in ``state_dict``; None: all matrices of cells and linear layers.
        dtype: ``torch.int8`` or ``torch.float8_e4m3fn``.

    Returns:
        The module.

    Raises:
        ValueError: dtype is neither; a name is that of no floating-point matrix; a weight is not finite or requires a gradient.
    """
    if dtype not in _GREATEST:
        raise ValueError(f"dtype must be torch.int8 or torch.float8_e4m3fn, got {dtype}")
    chosen = list(_matrices(module)) if names is None else list(names)
    if not chosen:
        raise ValueError(f"{type(module).__name__} has no weight to quantize: name them, as in names=['weight_hh']")
    weights = {name: _weight(module, name) for name in chosen}
    made: dict[int, tuple[torch.Tensor, Dequantize]] = {}  # modules may share a weight, and share what it becomes
    for weight in weights.values():
        if weight.data_ptr() not in made:
            made[weight.data_ptr()] = _stored(weight, dtype)
    for name, weight in weights.items():
        holder, own = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if own in dict(holder.named_parameters(recurse=False)) or own in dict(holder.named_buffers(recurse=False)):
            codes, dequantize = made[weight.data_ptr()]
            delattr(holder, own)
            holder.register_buffer(own, codes)
            parametrize.register_parametrization(holder, own, dequantize, unsafe=True)
    return module


def error_of(scale: torch.Tensor) -> Error | None:
    """What the weight of these scales lost; None where `quantize` has made no such weight."""
    return next((one.error for one in _made if one.scale is scale), None)


def _matrices(module: nn.Module) -> Iterable[str]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        holder = module.get_submodule(name.rpartition(".")[0])
        if parameter.ndim == 2 and not isinstance(holder, nn.Embedding) and name.rpartition(".")[2].startswith("weight"):
            yield name


def _weight(module: nn.Module, name: str) -> torch.Tensor:
    known = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    weight = known.get(name)
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        what = "is not there" if weight is None else f"is {weight.dtype} {list(weight.shape)}"
        raise ValueError(f"names: {name!r} {what}, and not a floating-point matrix; there are {', '.join(sorted(known)) or 'none'}")
    if weight.requires_grad:
        raise ValueError(f"{name!r} requires a gradient, which bytes have none of: call requires_grad_(False) on the module first")
    if not weight.isfinite().all():
        raise ValueError(f"{name!r} holds what is not finite")
    return weight.detach()


def _stored(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, Dequantize]:
    """The bytes of a weight, and what makes it of them."""
    wide = weight.double()
    greatest = wide.abs().amax(1, keepdim=True)
    least = torch.finfo(weight.dtype).tiny  # a scale of zero would leave nothing
    scale = torch.where(greatest > 0, greatest / _GREATEST[dtype], 1.0).clamp(min=least).to(weight.dtype)
    exact = wide / scale.double()
    codes = exact.round().clamp(-127, 127).to(torch.int8) if dtype == torch.int8 else exact.clamp(-448, 448).float().to(dtype)
    lost = codes.double() * scale.double() - wide
    whole = wide.square().mean().sqrt().item()
    largest = torch.where(greatest > 0, lost.abs() / greatest, 0.0).amax().item()
    return codes, Dequantize(scale, Error(dtype, largest, lost.square().mean().sqrt().item() / whole if whole else 0.0))
