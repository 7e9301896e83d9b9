"""A recogniser of streams as a served model. In: pieces of a stream as they come; out: what each frame is, with the state kept between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ..models.recogniser import Recogniser
from .model import Model, SlotLoop, Values
from .rows import Row

if TYPE_CHECKING:
    from .engine import Engine

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Piece:
    """Some frames of a stream.

    Attributes:
        frames: ``[n, features]`` float32.
        state: ``[hidden]`` float32, what the frames before have left; None at the begin of a stream.
    """

    frames: Array
    state: Array | None = None


@dataclass(frozen=True, eq=False)
class Left:
    """The last chunk of a piece: what it leaves to the next one.

    Attributes:
        state: ``[hidden]`` float32.
    """

    state: Array


class RecogniserModel(Model):
    """Streams through a `fusedrnn.models.Recogniser`. A request is a `Piece`; a chunk ``[n, classes]`` float32, the last one `Left`.

    `Session` puts the pieces of a stream together. What a piece gives does not depend on where the stream was cut.

    Args:
        model: on the CPU.
        most_frames: of a piece.
    """

    name = "recogniser"
    wants_state = True

    def __init__(self, model: Recogniser, *, most_frames: int = 128) -> None:
        if most_frames < 1:
            raise ValueError(f"most_frames must be at least 1, got {most_frames}")
        self.model, self.most_frames = model.requires_grad_(False).eval(), most_frames

    def loop(self, slots: int) -> SlotLoop:
        model, most = self.model, self.most_frames
        frames, length = torch.zeros(most, slots, model.features), torch.zeros(slots, dtype=torch.int64)
        state = model.cell.zero_state(slots)

        def loop_fn(time: torch.Tensor, output: Any, carried: Any, _: Any) -> Any:
            if output is None:
                return length <= 0, frames[0], state, torch.zeros(model.classes), None
            following = frames[time.clamp(max=most - 1)]
            return time >= length, following, carried, model.probabilities(output), None

        return SlotLoop(model.cell, loop_fn, {"frames": Row(frames, 1), "length": Row(length), "state": Row(state)})

    def check(self, request: Any) -> None:
        if not isinstance(request, Piece):
            raise TypeError(f"a request must be a Piece, got {type(request).__name__}")
        hidden = self.model.cell.hidden_size
        for name, array, shape in (("frames", request.frames, ("n", self.model.features)), ("state", request.state, (hidden,))):
            if array is None and name == "state":
                continue
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                raise TypeError(f"{name} must be a float32 array, got {getattr(array, 'dtype', type(array).__name__)}")
            if array.ndim != len(shape) or array.shape[-1] != shape[-1]:
                raise ValueError(f"{name} must have shape [{', '.join(map(str, shape))}], got {list(array.shape)}")
        if len(request.frames) > self.most_frames:
            raise ValueError(f"a piece may have {self.most_frames} frames, this one has {len(request.frames)}: give it in parts")

    def admit(self, requests: Sequence[Piece]) -> list[Values]:
        nothing = torch.zeros(self.model.cell.hidden_size)
        return [
            {
                "frames": torch.tensor(piece.frames),
                "length": torch.tensor(len(piece.frames)),
                "state": nothing if piece.state is None else torch.tensor(piece.state),
            }
            for piece in requests
        ]

    def emit(self, request: Piece, values: Array) -> Array:
        return values.copy()  # of the launch's array, which holds all rows

    def ended(self, request: Piece, state: torch.Tensor) -> Left:
        return Left(state.numpy())


class Session:
    """A stream, piece by piece, in order.

    Args:
        engine: that serves a `RecogniserModel`.
        state: where an earlier session of the same stream left off, in whatever process; None for a new stream.
        deadline: seconds for each request, as `Engine.submit` has it.

    Attributes:
        state: after the pieces that are done: ``[hidden]`` float32, to be kept or sent elsewhere; None before the first.
    """

    def __init__(self, engine: Engine, state: Array | None = None, *, deadline: float | None = None) -> None:
        if not isinstance(engine.model, RecogniserModel):
            raise TypeError(f"engine must serve a RecogniserModel, it serves {type(engine.model).__name__}")
        self._engine, self._most, self._deadline = engine, engine.model.most_frames, deadline
        self.state = state
        self._turn = asyncio.Lock()

    async def push(self, frames: Array) -> AsyncIterator[Array]:
        """The probabilities of the frames ``[n, features]``, ``[m, classes]`` at a time, as they are made.

        A piece that is given up or fails leaves the state as it was before the last part of it that was done.

        Raises:
            TypeError, ValueError, ServeError: as `Engine.submit` and `Stream`.
        """
        async with self._turn:
            for begin in range(0, max(len(frames), 1), self._most):
                piece = Piece(frames[begin : begin + self._most], self.state)
                async with self._engine.submit(piece, deadline=self._deadline) as stream:
                    async for chunk in stream:
                        if isinstance(chunk, Left):
                            self.state = chunk.state
                        else:
                            yield chunk
