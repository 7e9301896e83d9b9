"""torch's random functions inside a loop, as counter-based draws: ``torch.rand`` and its kin give every executor the same numbers.

A tensor's first dimension counts as its rows: row b draws with row b's seed, at the row's step and at the call site, so that the draws of
a row depend neither on the batch nor on the executor. ``torch.manual_seed`` decides the seed of the loop. A call with a
``generator`` of its own is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from . import random
from .bodies import opened
from .frames import Frame


class Draws(TorchFunctionMode):
    """While active, torch's random functions draw from the running loop's counter."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.frame = frame

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        rule = RULES.get(func)
        if rule is None or kwargs.get("generator") is not None:
            body = opened(func)
            if body is None:
                return func(*args, **kwargs)
            with self:
                return body(*args, **kwargs)
        return rule(self.frame, *args, **kwargs)


def _uniform(frame: Frame, shape: Sequence[int], dtype: torch.dtype | None, device: Any) -> torch.Tensor:
    """Draws in (0, 1) of that shape, from the loop's seed."""
    rows, per_row = (shape[0], tuple(shape[1:])) if len(shape) else (1, ())
    seeds = random.row_seeds(frame.seed, rows, device)
    return random.uniform(per_row, seeds, dtype=dtype).reshape(tuple(shape))


def _normal(frame: Frame, shape: Sequence[int], dtype: torch.dtype | None, device: Any) -> torch.Tensor:
    """Standard normal draws, by the inverse of their distribution function."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    draws = torch.erfinv(2 * _uniform(frame, shape, wide, device) - 1) * math.sqrt(2.0)
    return draws.to(dtype or torch.get_default_dtype())


def _shape(size: tuple[Any, ...]) -> Sequence[int]:
    return tuple(size[0]) if len(size) == 1 and isinstance(size[0], (tuple, list, torch.Size)) else size


def _finish(value: torch.Tensor, requires_grad: bool = False, out: torch.Tensor | None = None) -> torch.Tensor:
    value = value if out is None else out.copy_(value)
    return value.requires_grad_() if requires_grad else value


def _rand(frame: Frame, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, out: Any = None, **_: Any) -> Any:
    size = size or (_.pop("size"),)
    return _finish(_uniform(frame, _shape(size), dtype, device), requires_grad, out)


def _randn(frame: Frame, *size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, out: Any = None, **_: Any) -> Any:
    size = size or (_.pop("size"),)
    return _finish(_normal(frame, _shape(size), dtype, device), requires_grad, out)


def _rand_like(frame: Frame, input: torch.Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Any:
    return _finish(_uniform(frame, input.shape, dtype or input.dtype, device or input.device), requires_grad)


def _randn_like(frame: Frame, input: torch.Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any) -> Any:
    return _finish(_normal(frame, input.shape, dtype or input.dtype, device or input.device), requires_grad)


def _integers(frame: Frame, low: int, high: int, shape: Sequence[int], dtype: Any, device: Any) -> torch.Tensor:
    draws = _uniform(frame, shape, torch.float64, device) * (high - low)
    return (draws.floor().clamp(max=high - low - 1) + low).to(dtype or torch.int64)


def _randint(frame: Frame, *args: Any, dtype: Any = None, device: Any = None, **named: Any) -> Any:
    values = [*args, *[named.pop(name) for name in ("low", "high", "size") if name in named]]
    low, high, size = values if len(values) == 3 else (0, *values)
    return _integers(frame, low, high, tuple(size), dtype, device)


def _randint_like(frame: Frame, input: torch.Tensor, *args: Any, dtype: Any = None, device: Any = None, **named: Any) -> Any:
    values = [*args, *[named.pop(name) for name in ("low", "high") if name in named]]
    low, high = values if len(values) == 2 else (0, *values)
    return _integers(frame, low, high, input.shape, dtype or input.dtype, device or input.device)


def _bernoulli(frame: Frame, input: torch.Tensor, p: Any = None, **_: Any) -> torch.Tensor:
    chance = input if p is None else p
    return (_uniform(frame, input.shape, torch.float32, input.device) < chance).to(input.dtype)


def _multinomial(frame: Frame, input: torch.Tensor, num_samples: int, replacement: bool = False, **_: Any) -> torch.Tensor:
    """By Gumbel-max; without replacement the largest ones (Kool et al. 2019, "Stochastic beams and where to find them")."""
    rows = input if input.ndim == 2 else input.unsqueeze(0)
    if replacement:
        u = _uniform(frame, (rows.shape[0], num_samples, rows.shape[1]), torch.float32, input.device)
        drawn = (rows.unsqueeze(1).log() - torch.log(-torch.log(u))).argmax(-1)
    else:
        u = _uniform(frame, rows.shape, torch.float32, input.device)
        scores = rows.log() - torch.log(-torch.log(u))
        drawn = scores.argmax(-1, keepdim=True) if num_samples == 1 else scores.topk(num_samples, -1).indices
    return drawn if input.ndim == 2 else drawn.squeeze(0)


def _normal_function(frame: Frame, mean: Any, std: Any = 1.0, size: Any = None, *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
    if size is None:
        example = mean + torch.zeros_like(std) if isinstance(std, torch.Tensor) else mean
        size, dtype, device = example.shape, example.dtype, example.device
    return _normal(frame, tuple(size), dtype, device) * std + mean


def _uniform_in_place(frame: Frame, self: torch.Tensor, low: float = 0.0, high: float = 1.0, **named: float) -> torch.Tensor:
    low, high = named.get("from", low), named.get("to", high)
    return self.copy_(_uniform(frame, self.shape, self.dtype, self.device) * (high - low) + low)


def _normal_in_place(frame: Frame, self: torch.Tensor, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return self.copy_(_normal(frame, self.shape, self.dtype, self.device) * std + mean)


def _exponential_in_place(frame: Frame, self: torch.Tensor, lambd: float = 1.0) -> torch.Tensor:
    return self.copy_(-_uniform(frame, self.shape, self.dtype, self.device).log() / lambd)


def _bernoulli_in_place(frame: Frame, self: torch.Tensor, p: Any = 0.5) -> torch.Tensor:
    return self.copy_(_uniform(frame, self.shape, torch.float32, self.device) < p)


def _dropout(frame: Frame, input: torch.Tensor, p: float = 0.5, train: bool = True, inplace: bool = False, **named: Any) -> torch.Tensor:
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not named.get("training", train) or p == 0:
        return input
    keep = _uniform(frame, input.shape, torch.float32, input.device) < 1 - p
    kept = torch.where(keep, input / (1 - p if p < 1 else 1), 0.0)
    return input.copy_(kept) if inplace else kept


def _feature_dropout(frame: Frame, input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    """Whole channels at once: of ``[B, C, ...]`` the first two dimensions draw."""
    channels = _dropout(frame, input.new_ones(input.shape[:2]), p, train)
    return input * channels.reshape(*input.shape[:2], *[1] * (input.ndim - 2))


RULES: dict[Any, Callable[..., torch.Tensor]] = {
    torch.rand: _rand,
    torch.randn: _randn,
    torch.rand_like: _rand_like,
    torch.randn_like: _randn_like,
    torch.randint: _randint,
    torch.randint_like: _randint_like,
    torch.bernoulli: _bernoulli,
    torch.Tensor.bernoulli: _bernoulli,
    torch.multinomial: _multinomial,
    torch.Tensor.multinomial: _multinomial,
    torch.normal: _normal_function,
    torch.Tensor.uniform_: _uniform_in_place,
    torch.Tensor.normal_: _normal_in_place,
    torch.Tensor.exponential_: _exponential_in_place,
    torch.Tensor.bernoulli_: _bernoulli_in_place,
    torch.dropout: _dropout,
    torch.dropout_: lambda frame, input, p, train: _dropout(frame, input, p, train, inplace=True),
    F.dropout: _dropout,
    torch.feature_dropout: _feature_dropout,
    torch.feature_dropout_: lambda frame, input, p, train: input.copy_(_feature_dropout(frame, input, p, train)),
}
