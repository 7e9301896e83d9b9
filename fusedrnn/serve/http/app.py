"""The ASGI application. In: engines; out: an app that starts them, serves them, and drains them at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..engine import Engine
from ..errors import ServeError
from .authorisation import Authorisation
from .completions import Completions
from .connection import ClientGone
from .exposition import metrics
from .faces import Face, face
from .generation import Generation
from .hosts import Hosts
from .inference import Inference
from .limits import Limits
from .openapi import description
from .problems import Problem, answered, json_response
from .signed import Signed
from .status import page, status

_EXPECTED = (Problem, ServeError, HTTPException)


def application(
    *served: Engine | Face,
    limits: Limits | None = None,
    token: str | None = None,
    hosts: Sequence[str] = (),
    replica: str | None = None,
) -> Starlette:
    """What a server of ASGI runs. Its lifespan starts the engines; at its end they are drained, so nothing that was accepted is lost.

    Args:
        served: engines of models that come with fusedrnn, or faces. They are made already: making one compiles.
        limits: of a request; None: the default ones.
        token: that clients must show, as ``Authorization: Bearer ...``, except for health, the page and its description; None: none.
        hosts: names by which clients may address a server without a token, beside addresses and ``localhost``; "*": any.
        replica: the name of this process among others that serve the same: a header of its answers, and a label of its metrics.

    Raises:
        TypeError: an engine's model has no face.
        ValueError: there is no engine, two have one name, or the token is empty.
    """
    every = [face(each) if isinstance(each, Engine) else each for each in served]
    faces = {each.name: each for each in every}
    if not every or len(faces) != len(every):
        raise ValueError(f"served must be engines of different names, at least one; got {[each.name for each in every]}")
    limits, named = limits or Limits(), token is None and "*" not in hosts

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for each in every:
                await stack.enter_async_context(each.engine)
            yield

    async def openapi(request: Request) -> Response:
        return json_response(description(faces, limits, token is not None, named))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # no one reads it

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/status", status(faces, replica)),
            Route("/metrics", metrics(faces, replica)),
            Route("/openapi.json", openapi),
            *Inference(faces, limits).routes(),
            *Generation(faces, limits).routes(),
            *Completions(faces, limits).routes(),
        ],
        lifespan=lifespan,
        exception_handlers={ClientGone: gone, Exception: answered, **dict.fromkeys(_EXPECTED, answered)},
    )
    app.router.redirect_slashes = False  # it would send clients to whatever they said in `Host`
    if token is not None:
        app.add_middleware(Authorisation, token=token)
    if named:
        app.add_middleware(Hosts, names=hosts)
    if replica is not None:
        app.add_middleware(Signed, replica=replica)
    return app
