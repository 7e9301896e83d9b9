"""Which of several processes has answered. In: responses; out: the same with a header that says so."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-fusedrnn-replica"


class Signed:
    """An ASGI app around another that puts a header on its responses.

    Args:
        app: the other.
        replica: the header's value.
    """

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self._app, self._replica = app, replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = self._replica
            await send(message)

        await self._app(scope, receive, signed)
