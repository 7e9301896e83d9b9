"""Serving recurrences: requests come and go, and share the batch at every step (continuous batching)."""

from .engine import Engine, Stream
from .errors import Cancelled, DeadlineExceeded, Draining, QueueFull, RequestFailed, ServeError, StepLimit
from .g2p import G2PModel
from .metrics import Histogram, Metrics
from .model import Model, SlotLoop
from .scheduler import Scheduler, Ticket
from .slots import Row, Slots

__all__ = [
    "Cancelled", "DeadlineExceeded", "Draining", "Engine", "G2PModel", "Histogram", "Metrics", "Model", "QueueFull", "RequestFailed", "Row",
    "Scheduler", "ServeError", "SlotLoop", "Slots", "StepLimit", "Stream", "Ticket",
]  # fmt: skip
