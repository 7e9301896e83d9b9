"""What is made of a loop's emits when it has ended. In: what the loop stored; out: the emits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..optimise.sink import Sunk


class After:
    """What `fusedrnn.optimise.sink` has moved behind the loop, with the tensors of one call.

    Args:
        sunk: that.
        tensors: closed-over.

    Attributes:
        places: of the emits that are made so.
    """

    def __init__(self, sunk: Sunk, tensors: Sequence[torch.Tensor]) -> None:
        self._parts = {
            place: (module, [tensors[read.place].detach() for read in sunk.sources[place]]) for place, module in sunk.modules.items()
        }
        self.places = list(self._parts)

    def emit(self, place: int, stored: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """An emit of all steps ``[T, B, N]``, zero where a row has ended (``lengths``, ``[B]`` int32), of what the loop stored for it."""
        module, tensors = self._parts[place]
        with torch.no_grad():
            emit = module(stored.reshape(-1, *stored.shape[2:]), *tensors).reshape(*stored.shape[:2], -1)
            over = torch.arange(len(emit), dtype=torch.int32, device=lengths.device).unsqueeze(1) >= lengths
            made: torch.Tensor = emit.masked_fill_(over.unsqueeze(-1), 0)
        return made
