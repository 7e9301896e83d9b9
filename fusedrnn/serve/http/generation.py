"""Text from a text, whole or as it is made. In: HTTP requests to ``generate`` and ``generate_stream``; out: JSON, or server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...fallback import log
from ..engine import Stream
from ..errors import ServeError
from .connection import EventStream, while_connected
from .faces import Face
from .inference import VERSION, model_of
from .limits import Limits, body, deadline, parsed
from .problems import Problem, json_response, problem, refusing
from .submission import answers, submitted


class Generation:
    """The endpoints ``/v2/models/{model}/generate`` and ``/generate_stream``.

    Args:
        faces: by name.
        limits: of a request.
    """

    def __init__(self, faces: Mapping[str, Face], limits: Limits) -> None:
        self._faces, self._limits = faces, limits

    def routes(self) -> list[Route]:
        """Of Starlette."""
        path = "/v2/models/{model}"
        return [
            Route(f"{path}/generate", self.generate, methods=["POST"]),
            Route(f"{path}/generate_stream", self.generate_stream, methods=["POST"]),
        ]

    async def generate(self, request: Request) -> Response:
        face, row, head = await self._asked(request)
        work = answers(face.engine, [row], priority=0, deadline=deadline(request, self._limits))
        (chunks,) = await while_connected(request.receive, work)
        return json_response({**head, "text_output": "".join(face.text(chunk, not place) for place, chunk in enumerate(chunks))})

    async def generate_stream(self, request: Request) -> Response:
        face, row, head = await self._asked(request)

        async def made(streams: Sequence[Stream]) -> AsyncGenerator[bytes]:
            first = True
            async for chunk in streams[0]:
                yield event({**head, "text_output": face.text(chunk, first)})
                first = False

        return await streamed(request, face, [row], made, self._limits)

    async def _asked(self, request: Request) -> tuple[Face, Any, dict[str, Any]]:
        face = model_of(self._faces, request)
        if not face.generates:
            raise Problem(404, f"the model {face.name!r} does not generate text: use infer")
        asked = parsed(await body(request, self._limits))
        text, parameters, identity = asked.pop("text_input", None), asked.pop("parameters", {}), asked.pop("id", None)
        if not isinstance(text, str):
            raise Problem(422, "text_input must be a string")
        if not isinstance(parameters, dict):
            raise Problem(422, "parameters must be an object")
        if identity is not None and not isinstance(identity, str):
            raise Problem(422, "id must be a string")
        if asked:
            raise Problem(422, f"{min(asked)!r} is not known here; known: 'id', 'parameters', 'text_input'")
        head = {} if identity is None else {"id": identity}
        with refusing():
            row = face.row(text, face.known(parameters))
        return face, row, {**head, "model_name": face.name, "model_version": VERSION}


def event(content: Any, kind: str | None = None) -> bytes:
    """A server-sent event with JSON in it."""
    return (f"event: {kind}\n" if kind else "").encode() + b"data: " + json.dumps(content).encode() + b"\n\n"


async def streamed(
    request: Request, face: Face, rows: Sequence[Any], made: Callable[[Sequence[Stream]], AsyncGenerator[bytes]], limits: Limits
) -> EventStream:
    """Events that are made of the streams of rows. What goes wrong before the first one is raised, and has a status of its own; later it
    is an event of the name ``error``, the last one.

    Raises:
        Exception: as `submitted` and `Stream`.
    """
    seconds = deadline(request, limits)

    async def events() -> AsyncGenerator[bytes]:
        with submitted(face.engine, rows, priority=0, deadline=seconds) as streams:
            begun = False
            try:
                async with aclosing(made(streams)) as pieces:
                    async for piece in pieces:
                        yield piece
                        begun = True
            except Exception as error:
                if not begun:
                    raise
                if not isinstance(error, (Problem, ServeError)):
                    log.exception("a stream of %s has failed", face.name)
                yield event(problem(error).body(request.url.path), "error")

    making = events()
    try:
        first = await while_connected(request.receive, anext(making, None))
    except BaseException:
        await making.aclose()
        raise
    return EventStream(first, making, limits.stall)
