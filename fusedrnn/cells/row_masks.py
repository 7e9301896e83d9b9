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
        seeds: list[tuple[int, torch.device, torch.Tensor]] = []  # no dict: a traced size cannot be hashed

        def mask(leaf: torch.Tensor, p: float) -> torch.Tensor:
            rows, device = leaf.shape[0], leaf.device
            row_seed = next((known for n, where, known in seeds if n == rows and where == device), None)
            if row_seed is None:  # the loop's seed is drawn when first asked for: no mask, no draw
                row_seed = random.row_seeds(frame.seed if seed is None else seed, rows, device).to(device)
                seeds.append((rows, device, row_seed))
            return random.bernoulli(leaf.shape[1:], row_seed, p=p, every_step=every_step)

        yield mask


def has_rows(leaf: object) -> bool:
    """Whether a leaf can be masked: a floating tensor ``[B, ...]``, not an int, a TensorArray or a rank-0 leaf, which is no row's."""
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim > 0
