"""Weights as a persistent kernel reads them. In: the weights of a tile; out: one tensor, a program's rows together, padded with zeros."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

Segment = tuple[int, int, bool]  # first row in the tile, columns of a program, whether every program has all columns


def packed(
    weights: Sequence[torch.Tensor], segments: Sequence[Segment], programs: int, rows: int, inner: int, dtype: torch.dtype, split: bool
) -> torch.Tensor:
    """The weights ``[K, N]`` of a tile, turned round (a column of a weight is a row of the tile) and packed.

    Args:
        segments: where the columns of each weight stand.
        split: float32 in two parts: what tf32 holds, and the rest.

    Returns:
        ``[programs, rows, inner]``, float8 as uint8, split ``[2, programs, rows, inner]``.
    """
    if dtype == torch.float8_e4m3fn:  # torch pads none
        weights, dtype = [weight.detach().view(torch.uint8) for weight in weights], torch.uint8
    made = torch.zeros((programs, rows, inner), dtype=dtype, device=weights[0].device)
    for weight, (begin, block, whole) in zip(weights, segments, strict=True):
        turned = weight.detach().to(dtype).T
        height = block if whole else block * programs
        turned = F.pad(turned, (0, inner - turned.shape[1], 0, height - turned.shape[0]))
        made[:, begin : begin + block] = turned if whole else turned.reshape(programs, block, inner)
    if not split:
        return made
    top = (made.view(torch.int32) & -8192).view(torch.float32)
    return torch.stack([top, torch.where(made.isinf(), 0.0, made - top)])
