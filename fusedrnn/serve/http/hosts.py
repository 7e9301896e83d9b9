"""By which names a server may be addressed. In: requests; out: those that name it as they should.

A page from elsewhere can have its own name resolve to this machine (DNS rebinding); a browser then lets it talk to a server here. Such a
request says the page's name in its header ``Host``. One that a page sends across says where it is from in ``Origin``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from .problems import Problem, answered


def name_of(host: str) -> str | None:
    """The name in a header ``Host``, without the port, in lower case; None where there is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


class Hosts:
    """An ASGI app before another that lets requests through which address this machine: by an address, as ``localhost``, or by name.

    Args:
        app: the other.
        names: that may be used as well.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str] = ()) -> None:
        self._app, self._names = app, {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Request(scope)) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await (await answered(Request(scope), refusal))(scope, receive, send)

    def _refusal(self, request: Request) -> Problem | None:
        host = request.headers.get("host", "")
        if host and not self._known(name_of(host)):  # browsers always say one
            return Problem(421, f"this server does not go by the name {host[:80]!r}: allow it (--allow-host, or hosts=), or set a token")
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("//")[2].lower() != host.lower():
            return Problem(403, f"a page of {origin[:80]!r} may not use this server, unless it asks for a token")
        return None

    def _known(self, name: str | None) -> bool:
        if name is None or name in self._names:
            return name is not None
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
