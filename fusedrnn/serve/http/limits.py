"""What a client may ask for. In: a request; out: its body and its deadline, or a `Problem`."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass, fields
from typing import Any

from starlette.requests import ClientDisconnect, Request

from .connection import ClientGone
from .problems import Problem

DEADLINE = "request-timeout"  # a header: seconds


@dataclass(frozen=True)
class Limits:
    """Bounds on one HTTP request.

    Attributes:
        body: bytes.
        rows: of a request: words, prompts.
        deadline: seconds until it is given up; a client may ask for less, in the header ``Request-Timeout``.
        stall: seconds that a client may take to send its body, or to take the next piece of an answer.

    Raises:
        ValueError: a number is not above 0.
    """

    body: int = 2**20
    rows: int = 1024
    deadline: float = 60.0
    stall: float = 30.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)!r}")


async def body(request: Request, limits: Limits) -> bytes:
    """The body of a request, if it is short enough and comes in time.

    Raises:
        ClientGone: the client left before it had sent all.
        Problem: it is too long, compressed or late.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced[:20]) > limits.body:
        raise _too_long(limits)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(415, f"the body is in {request.headers['content-encoding']}: send it as it is")
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.stall):
            async for part in request.stream():
                size += len(part)
                if size > limits.body:
                    raise _too_long(limits)
                parts.append(part)
    except ClientDisconnect:
        raise ClientGone from None
    except TimeoutError:
        raise Problem(408, f"the body did not come within {limits.stall:g} s") from None
    return b"".join(parts)


def _too_long(limits: Limits) -> Problem:
    return Problem(413, f"a body may have {limits.body} bytes: send less at once")


def parsed(text: bytes, what: str = "the body") -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Problem(400, f"{what} is not JSON: {reason}") from None
    if not isinstance(found, dict):
        raise Problem(422, f"{what} must be a JSON object, got {_kind(found)}")
    return found


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")


def deadline(request: Request, limits: Limits, asked: float | None = None) -> float:
    """Seconds for a request: what it asks for in its header or otherwise, and at most what it may have."""
    written = request.headers.get(DEADLINE)
    if written is not None:
        try:
            asked = float(written)
        except ValueError:
            asked = math.nan
        if not asked >= 0:
            raise Problem(422, f"{DEADLINE} must be a number of seconds of at least 0, got {written!r}")
    return limits.deadline if asked is None else min(asked, limits.deadline)
