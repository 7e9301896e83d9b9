"""Servers on real sockets, in threads of the test's process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
import uvicorn

from fusedrnn.models import G2P, Characters
from fusedrnn.serve import CharactersModel, Engine, G2PModel
from fusedrnn.serve.http import Limits, application
from fusedrnn.serve.http.server import Server, listener


class Running:
    """A server until its block is left; ``buffer``: bytes that the system keeps for a client, 0 for as many as it likes;
    ``stack``: what uvicorn reads HTTP with, and its event loop.

    Attributes:
        url: where it is.
        port: of 127.0.0.1.
        limits: of a request.
        engine: the first of its engines.
    """

    def __init__(
        self,
        *served: Any,
        limits: Limits | None = None,
        token: str | None = None,
        hosts: Sequence[str] = (),
        linger: float = 0.0,
        buffer: int = 0,
        stack: tuple[Any, Any] = ("auto", "auto"),
    ) -> None:
        self.limits = limits or Limits()
        app = application(*served, limits=limits, token=token, hosts=hosts)
        engines = [getattr(each, "engine", each) for each in served]
        self.engine: Engine = engines[0]
        self._sock = listener("127.0.0.1", 0, token=token)
        if buffer:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self.port = self._sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(
            uvicorn.Config(app, lifespan="on", ws="none", log_level="critical", http=stack[0], loop=stack[1]), engines, linger=linger
        )
        self._thread = threading.Thread(target=self.server.run, args=([self._sock],))

    def __enter__(self) -> Running:
        self._thread.start()
        for _ in range(2000):
            if self.server.started:
                return self
            self._thread.join(0.01)
        raise RuntimeError("the server did not start")

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        metrics = self.engine.metrics
        assert metrics.running == metrics.waiting == 0
        assert metrics.accepted == metrics.completed + metrics.failed + metrics.cancelled + metrics.expired

    def client(self, **options: Any) -> httpx.Client:
        """With a time limit: nothing here may hang."""
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=False, **options)

    def stop(self) -> None:
        """As a signal does."""
        self.server.handle_exit(15, None)

    def until(self, condition: Any, seconds: float = 10.0) -> None:
        """Wait for something of the engine."""
        for _ in range(int(seconds / 0.005)):
            if condition(self.engine.metrics):
                return
            self._thread.join(0.005)
        raise AssertionError(f"it has not come to pass: {self.engine.metrics}")


@pytest.fixture(scope="session")
def characters() -> CharactersModel:
    return CharactersModel(Characters.pretrained())


def characters_engine(model: CharactersModel, slots: int = 4, **options: Any) -> Engine:
    return Engine(model, slots, threads=1, backend="native", **options)


@pytest.fixture(scope="session")
def both(characters: CharactersModel) -> Iterator[Running]:
    """A server of both models, for tests that do not fill it."""
    g2p = Engine(G2PModel(G2P.pretrained()), 4, threads=1, backend="native", queue=64)
    with Running(g2p, characters_engine(characters, queue=64), limits=Limits(body=2**16, rows=40)) as running:
        yield running


@pytest.fixture
def client(both: Running) -> Iterator[httpx.Client]:
    with both.client() as client:
        yield client


def answer_of(model: Any, *requests: Any) -> list[list[Any]]:
    """What an engine gives without HTTP."""

    async def main() -> list[list[Any]]:
        async with Engine(model, 4, threads=1, backend="native") as engine:
            return list(await asyncio.gather(*[engine.submit(request).chunks() for request in requests]))

    return asyncio.run(main())
