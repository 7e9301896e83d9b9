"""What happens to the rows of a leaf that are finished: frozen, quieted, guarded. In: leaves ``[B, ...]`` and bool flags ``[B]``."""

from __future__ import annotations

import math
from typing import Any

import torch

from .tensor_array import TensorArray


def shaped(flags: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """``[B]`` flags shaped to broadcast over a leaf ``[B, ...]``."""
    return flags.view(-1, *[1] * (leaf.ndim - 1))


def belongs_to_rows(leaf: Any) -> bool:
    """Whether a state leaf freezes. A TensorArray and a rank-0 leaf belong to no row."""
    return not isinstance(leaf, TensorArray) and leaf.ndim > 0


def frozen(old: Any, new: Any, finished: torch.Tensor) -> Any:
    """The next state leaf: the old one for finished rows."""
    return torch.where(shaped(finished, new), old, new) if belongs_to_rows(new) else new


def zeroed(leaf: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
    """An emit, zero for finished rows."""
    return leaf.masked_fill(shaped(finished, leaf), 0)


def may_be_infinite(leaf: Any) -> bool:
    """Whether a leaf is a row's and of a dtype that holds NaN and Inf."""
    return belongs_to_rows(leaf) and (leaf.is_floating_point() or leaf.is_complex())


def quieted(leaf: Any, finished: torch.Tensor) -> Any:
    """The leaf with NaN and Inf of finished rows as zeros, so that the cell's backward makes no ``0 * inf`` of them."""
    if not may_be_infinite(leaf) or _sum_is_finite(leaf):
        return leaf  # one cheap pass in the common case; a sum that overflows only costs the mask
    return leaf.masked_fill(shaped(finished, leaf) & ~torch.isfinite(leaf), 0)


def _sum_is_finite(leaf: torch.Tensor) -> bool:
    if leaf.device.type != "cpu" or leaf.is_complex():
        return False  # looking would wait for the device
    try:
        return math.isfinite(leaf.detach().sum().item())
    except RuntimeError:  # under vmap nothing can be looked at
        return False


def guarded(leaf: Any, finished: torch.Tensor) -> Any:
    """The leaf, with gradients that are not finite dropped for finished rows: loop_fn may divide by what such a row holds."""
    if not isinstance(leaf, torch.Tensor) or not leaf.requires_grad or leaf.shape[:1] != finished.shape:
        return leaf

    def dropped(grad: torch.Tensor | None) -> torch.Tensor | None:
        # A second backward may come without a gradient.
        return None if grad is None else grad.masked_fill(shaped(finished, grad) & ~torch.isfinite(grad), 0)

    alias = leaf.view_as(leaf)  # a hook on the leaf itself would also meet gradients that do not come from loop_fn
    alias.register_hook(dropped)  # type: ignore[no-untyped-call]
    return alias
