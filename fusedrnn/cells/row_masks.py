"""Masks for the wrappers that drop. In: a seed and leaves; out: bool masks that are a function of row seed, step and call site alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from .. import frames, random

Mask = Callable[[torch.Tensor, float], torch.Tensor]


@contextmanager
def row_masks(seed: int | torch.Tensor | None, *, every_step: bool = True) -> Iterator[Mask]:
    """Within the block, ``mask(leaf, p)`` is a bool tensor of the leaf's shape, True with probability ``p``.

    A seed of None is that of the running loop. Outside of a loop a call counts as a loop of one step, so that the masks within it
    differ from one another.
    """
    running = frames.current()
    with frames.running() if running is None else nullcontext(running) as frame:
        seeds: dict[tuple[int, torch.device], torch.Tensor] = {}

        def mask(leaf: torch.Tensor, p: float) -> torch.Tensor:
            rows = (leaf.shape[0], leaf.device)
            if rows not in seeds:  # the loop's seed is drawn when first asked for: no mask, no draw
                chosen = frame.seed if seed is None else seed
                seeds[rows] = random.row_seeds(chosen, *rows).to(leaf.device)
            return random.bernoulli(leaf.shape[1:], seeds[rows], p=p, every_step=every_step)

        yield mask


def has_rows(leaf: object) -> bool:
    """Whether a leaf can be masked: a floating tensor ``[B, ...]``, not an int, a TensorArray or a rank-0 leaf, which is no row's."""
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim > 0
