"""What goes wrong, as HTTP says it. In: exceptions; out: a status, headers and a JSON body."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import Cancelled, DeadlineExceeded, Draining, QueueFull, ServeError, StepLimit

_CODES = {401: "invalid_api_key", 404: "not_found", 413: "too_large", 429: "queue_full", 503: "unavailable", 504: "deadline_exceeded"}


class Problem(Exception):
    """A request that is not answered as it would like.

    Attributes:
        status: of HTTP.
        message: one line.
        headers: of the response.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def body(self, path: str) -> dict[str, Any]:
        """As the clients of a path expect it: OpenAI's below ``/v1``, else that of the Open Inference Protocol."""
        if not path.startswith("/v1"):
            return {"error": self.message}
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": _CODES.get(self.status)}}


def problem(error: Exception) -> Problem:
    """What an error of a request means to its client."""
    match error:
        case Problem():
            return error
        case QueueFull():
            return Problem(429, str(error), {"Retry-After": str(math.ceil(error.retry_after))})
        case DeadlineExceeded():
            return Problem(504, str(error))
        case StepLimit():
            return Problem(422, str(error))
        case Draining():
            return Problem(503, str(error), {"Retry-After": "1"})
        case Cancelled():
            return Problem(503, "the server stopped before the request had ended: send it to another")
        case HTTPException():
            return Problem(error.status_code, error.detail, error.headers)
        case ServeError():  # RequestFailed, or an engine that does not run
            return Problem(500, str(error))
    return Problem(500, "the server has a fault, which its log tells of")


@contextmanager
def refusing() -> Iterator[None]:
    """What a model says of a request that is none of its own is the client's mistake: TypeError and ValueError become a `Problem`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise Problem(422, str(error)) from error


async def answered(request: Request, error: Exception) -> Response:
    """The response for an error, as Starlette's exception handlers give it."""
    found = problem(error)
    if isinstance(error, HTTPException) and found.status in (404, 405):  # of the router
        what = "nothing" if found.status == 404 else f"no {request.method}"
        found = Problem(found.status, f"there is {what} at {request.url.path[:200]}: /openapi.json tells what there is", found.headers)
    return json_response(found.body(request.url.path), found.status, found.headers)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: text may hold lone surrogates, which UTF-8 has no bytes for."""
    return Response(json.dumps(content), status, headers, "application/json")
