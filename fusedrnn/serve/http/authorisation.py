"""Who may ask. In: requests; out: those that show the token, or need not."""

from __future__ import annotations

import hmac

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from .problems import Problem, answered

OPEN = {"/", "/openapi.json", "/v2/health/live", "/v2/health/ready"}


class Authorisation:
    """An ASGI app before another that lets requests with a bearer token through.

    Args:
        app: the other.
        token: not empty.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        if not token:
            raise ValueError("token must not be empty")
        self._app, self._wanted = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or self._shown(scope):
            await self._app(scope, receive, send)
            return
        refusal = Problem(401, "this server wants a token: send the header 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"})
        response = await answered(Request(scope), refusal)
        await response(scope, receive, send)

    def _shown(self, scope: Scope) -> bool:
        scheme, _, shown = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(shown.strip(), self._wanted) and scheme.lower() == b"bearer"
