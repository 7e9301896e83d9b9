"""How a request can end other than done."""

from __future__ import annotations


class ServeError(RuntimeError):
    """A request has no result, or no whole one."""


class QueueFull(ServeError):
    """The queue takes no more.

    Attributes:
        retry_after: seconds after which there is likely to be room.
    """

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} requests are waiting already, which is all that the queue holds: try again in {retry_after:.3g} s")
        self.retry_after = retry_after


class Draining(ServeError):
    """The engine takes no new requests."""

    def __init__(self) -> None:
        super().__init__("the engine is draining and takes no new requests: send this one to another")


class DeadlineExceeded(ServeError):
    """The request's time is over."""

    def __init__(self, seconds: float, steps: int) -> None:
        super().__init__(f"the deadline of {seconds:.3g} s passed after {steps} steps")


class Cancelled(ServeError):
    """The request was cancelled."""

    def __init__(self) -> None:
        super().__init__("the request was cancelled")


class StepLimit(ServeError):
    """The request took all the steps that one may take, and had not finished."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request has not finished after {limit} steps, which is the most one may take")


class RequestFailed(ServeError):
    """The request could not be run; other requests were not touched."""
