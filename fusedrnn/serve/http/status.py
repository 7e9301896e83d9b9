"""The status page. In: engines; out: the page at ``/``, and the numbers on it at ``/status``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ..._version import __version__
from .faces import CharactersFace, Face
from .problems import json_response

_PAGE = Path(__file__).with_name("page.html").read_text("utf-8")
_POLICY = (
    "default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)


async def page(request: Request) -> Response:
    """The endpoint ``/``."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY, "X-Frame-Options": "DENY", "Cache-Control": "no-cache"})


def status(faces: Mapping[str, Face], replica: str | None = None) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint ``/status``; ``replica``: whose numbers these are, if there are more."""

    async def endpoint(request: Request) -> Response:
        ready = all(face.engine.ready for face in faces.values())
        models = {name: _numbers(face) for name, face in faces.items()}
        found = {"version": __version__, "ready": ready, "models": models}
        return json_response(found if replica is None else {**found, "replica": replica}, headers={"Cache-Control": "no-store"})

    return endpoint


def _numbers(face: Face) -> dict[str, Any]:
    metrics = face.engine.metrics
    return {
        "slots": metrics.slots, "running": metrics.running, "waiting": metrics.waiting, "accepted": metrics.accepted,
        "completed": metrics.completed, "failed": metrics.failed, "cancelled": metrics.cancelled, "expired": metrics.expired,
        "rejected": metrics.rejected.total(), "launches": metrics.launches, "row_steps": metrics.row_steps,
        "generates": face.generates, "draws": isinstance(face, CharactersFace),
        "first_chunk_seconds": metrics.first_chunk_seconds.mean, "total_seconds": metrics.total_seconds.mean,
    }  # fmt: skip
