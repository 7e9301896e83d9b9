"""Weights as a persistent kernel reads them. In: the weights of a tile; out: one tensor, each program's rows together, padded with zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812


@dataclass(frozen=True)
class Layout:
    """Where the columns of a tile's weights stand.

    Attributes:
        segments: (first row in the tile, columns of a program, whether every program has all columns) of each weight.
        programs, rows, inner: the packed tensor is ``[programs, rows, inner]``.
        dtype: of its elements.
        split: float32 in two halves, ``[2, programs, rows, inner]``: the part that tf32 holds, and the rest.
    """

    segments: tuple[tuple[int, int, bool], ...]
    programs: int
    rows: int
    inner: int
    dtype: torch.dtype
    split: bool


def packed(weights: Sequence[torch.Tensor], layout: Layout) -> torch.Tensor:
    """The weights ``[K, N]`` of a tile, turned round (a column of a weight is a row of the tile) and packed."""
    device = weights[0].device
    made = torch.zeros((layout.programs, layout.rows, layout.inner), dtype=layout.dtype, device=device)
    for weight, (begin, block, whole) in zip(weights, layout.segments, strict=True):
        inner, columns = weight.shape
        turned = F.pad(
            weight.detach().to(layout.dtype).T, (0, layout.inner - inner, 0, (block if whole else block * layout.programs) - columns)
        )
        shared = turned if whole else turned.reshape(layout.programs, block, layout.inner)
        made[:, begin : begin + block] = shared
    if not layout.split:
        return made
    top = (made.view(torch.int32) & -8192).view(torch.float32)
    return torch.stack([top, made - top])
