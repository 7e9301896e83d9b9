"""Serving recurrences: requests come and go, and share the batch at every step (continuous batching)."""

from .characters import CharactersModel, Continuation
from .engine import Engine, Stream
from .errors import Cancelled, DeadlineExceeded, Draining, QueueFull, RequestFailed, ServeError, StepLimit
from .g2p import G2PModel
from .metrics import Histogram, Metrics
from .model import Model, SlotLoop
from .recogniser import Left, Piece, RecogniserModel, Session
from .rows import Row
from .scheduler import Scheduler
from .slots import Slots
from .work import Ticket

__all__ = [
    "Cancelled", "CharactersModel", "Continuation", "DeadlineExceeded", "Draining", "Engine", "G2PModel", "Histogram", "Left", "Metrics",
    "Model", "Piece", "QueueFull", "RecogniserModel", "RequestFailed", "Row",
    "Scheduler", "ServeError", "Session", "SlotLoop", "Slots", "StepLimit", "Stream", "Ticket",
]  # fmt: skip
