"""A recogniser of streams: frames of features in, what each of them is out. Any cell with a linear layer behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..cells import GRUCell
from ..loop import raw_rnn
from ..result import Result


class Recogniser(nn.Module):
    """Frames through a recurrent cell; of each frame the probability of every class, from that frame and those before it.

    Args:
        features: of a frame.
        classes: that it may be of; 1: the probability of one thing, such as voice.
        hidden_size: units of the GRU.
    """

    def __init__(self, features: int, classes: int = 1, hidden_size: int = 64) -> None:
        super().__init__()
        for name, value in (("features", features), ("classes", classes), ("hidden_size", hidden_size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        self.features, self.classes = features, classes
        self.cell = GRUCell(features, hidden_size)
        self.project = nn.Linear(hidden_size, classes)

    def probabilities(self, output: torch.Tensor) -> torch.Tensor:
        """``[B, classes]``, of the cell's output ``[B, hidden_size]``."""
        logits: torch.Tensor = self.project(output)
        return logits.sigmoid() if self.classes == 1 else logits.softmax(-1)

    def forward(
        self, frames: torch.Tensor, state: torch.Tensor | None = None, *, backend: str = "auto"
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Of whole streams.

        Args:
            frames: ``[T, B, features]``.
            state: ``[B, hidden_size]``, that of an earlier call; None at the begin of a stream.
            backend: as in `fusedrnn.raw_rnn`.

        Returns:
            Probabilities ``[T, B, classes]`` and the state after the last frame.
        """
        first = self.cell.zero_state(frames.shape[1]) if state is None else state

        def loop_fn(time: torch.Tensor, output: Any, carried: Any, _: Any) -> Any:
            if output is None:
                return frames.shape[0] <= 0, frames[0], first, torch.zeros(self.classes), None
            return time >= frames.shape[0], frames[time], carried, self.probabilities(output), None

        result: Result = raw_rnn(self.cell, loop_fn, scope="recogniser", backend=backend)
        return result.emit_ta.stack(), result.final_state
