"""The process that serves. In: engines and an address; out: a server that drains when it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

import uvicorn

from ..engine import Engine
from .app import application
from .faces import Face
from .limits import Limits


def loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server(uvicorn.Server):
    """uvicorn, which answers while its engines drain: the first signal ends the admission of requests, and the server stops once all that
    were accepted are done. A second signal stops it at once.

    Args:
        config: of uvicorn.
        engines: to be drained.
        linger: seconds that it goes on answering that it is not ready, for those that look at it seldom.
    """

    def __init__(self, config: uvicorn.Config, engines: Sequence[Engine], *, linger: float = 0.0) -> None:
        super().__init__(config)
        self._engines, self._linger = engines, linger
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def main_loop(self) -> None:
        """As uvicorn's."""
        self._loop = asyncio.get_running_loop()
        await super().main_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of a signal, which may come at any place in the program."""
        if self._loop is None:  # not begun to serve
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._told)

    def _told(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        else:
            self.force_exit = self.should_exit = True

    async def _drain(self) -> None:
        await asyncio.gather(asyncio.sleep(self._linger), *(engine.drain() for engine in self._engines))
        self.should_exit = True


@dataclass(frozen=True)
class Certificate:
    """Of a server, for TLS; the files are looked at here.

    Attributes:
        chain: a file in PEM: the server's certificate, and those above it.
        key: a file in PEM: its private key, without a password.

    Raises:
        ValueError: a file cannot be read or is no such thing, or they do not belong together.
    """

    chain: str
    key: str

    def __post_init__(self) -> None:
        def password() -> str:
            raise ValueError(f"the key in {self.key} has a password: give one without")

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.chain, self.key, password)
        except ssl.SSLError as error:
            said = (error.reason or str(error)).lower().replace("_", " ")
            raise ValueError(f"{self.chain} and {self.key} must be a certificate and its key in PEM: {said}") from None
        except OSError as error:
            raise ValueError(f"cannot read the certificate {self.chain} or its key {self.key}: {error.strerror}") from None


def listener(host: str, port: int, *, token: str | None, open_to_all: bool = False) -> socket.socket:
    """A socket at an address.

    Args:
        host, port: of it; port 0: one that is free.
        token: that clients will have to show; None: none.
        open_to_all: other machines may reach it, even without a token.

    Raises:
        ValueError: other machines may reach the host, there is no token, and it was not asked for.
        OSError: the address cannot be had.
    """
    if token is None and not open_to_all and not loopback(host):
        raise ValueError(f"other machines may reach {host}: set a token, or ask for a server that is open to all of them")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror}") from error
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio turns Nagle's 40 ms off only where TCP is named
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror}") from error
    return made


def serve(
    served: Sequence[Engine | Face],
    sock: socket.socket,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    hosts: Sequence[str] = (),
    tls: Certificate | None = None,
    linger: float = 0.0,
) -> None:
    """Serve until a signal says to stop, and drain. Returns when all is done.

    Args:
        served, token, limits, hosts: as `application` has them.
        sock: of `listener`.
        tls: for HTTPS; None: without it.
        linger: as `Server` has it.
    """
    limits = limits or Limits()
    app = application(*served, limits=limits, token=token, hosts=hosts)
    config = uvicorn.Config(
        app, http="h11",  # httptools takes headers without end
        lifespan="on", ws="none", log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=int(limits.stall) + 1,  # of answers that are made, and that no one takes
        ssl_certfile=None if tls is None else tls.chain, ssl_keyfile=None if tls is None else tls.key,
    )  # fmt: skip
    gc.collect()
    gc.freeze()  # going through all of torch stops every request for 0.15 s
    engines = [each if isinstance(each, Engine) else each.engine for each in served]
    try:
        Server(config, engines, linger=linger).run([sock])
    finally:
        gc.unfreeze()  # what is frozen is not taken down at the end, and Triton's bindings tell at length of what they leak
