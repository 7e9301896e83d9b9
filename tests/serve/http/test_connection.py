"""Clients that leave, that read slowly, that close one half."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fusedrnn.serve import CharactersModel
from fusedrnn.serve.http import Limits
from tests.serve.http.conftest import Running, characters_engine

GENERATE = "/v2/models/chars/generate"
LONG = {"text_input": "", "parameters": {"max_tokens": 4096, "temperature": 1.0, "one_word": False}}


@pytest.fixture(scope="module", params=[("h11", "asyncio"), ("httptools", "uvloop")], ids=["h11", "httptools"])
def server(request: pytest.FixtureRequest, characters: CharactersModel) -> Iterator[Running]:
    """Of each stack that uvicorn chooses from: what is installed decides."""
    for module in request.param:
        pytest.importorskip(module)
    engine = characters_engine(characters, 3, queue=2, steps=1)
    with Running(engine, limits=Limits(stall=0.5), buffer=4096, stack=request.param) as running:
        yield running


def sent(server: Running, path: str, body: Any, sock: socket.socket | None = None) -> socket.socket:
    sock = sock or socket.create_connection(("127.0.0.1", server.port), 20)
    content = json.dumps(body).encode()
    sock.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    return sock


PATHS = [GENERATE, f"{GENERATE}_stream", "/v1/completions", "/v2/models/chars/infer"]
BODIES: dict[str, Any] = {
    "/v1/completions": {"model": "chars", "prompt": ["a", "b"], "max_tokens": 4096},
    "/v2/models/chars/infer": {
        "inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}],
        "parameters": {"max_tokens": 4096, "temperature": 1.0, "one_word": False},
    },
}


@pytest.mark.parametrize("how", ["close", "half", "reset"])
@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_leaves_frees_its_slots(server: Running, path: str, how: str) -> None:
    before = server.engine.metrics.cancelled
    rows = 2 if path in BODIES else 1
    sock = sent(server, path, BODIES.get(path, LONG))
    server.until(lambda metrics: metrics.running == rows)
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if how == "half":
        sock.shutdown(socket.SHUT_WR)  # to uvicorn, as to most servers, the client is gone
    else:
        sock.close()
    server.until(lambda metrics: metrics.running == 0)
    assert server.engine.metrics.cancelled == before + rows
    sock.close()


def test_a_client_that_leaves_the_queue(server: Running) -> None:
    running = [sent(server, f"{GENERATE}_stream", LONG) for _ in range(3)]
    server.until(lambda metrics: metrics.running == 3)
    waiting = sent(server, f"{GENERATE}_stream", LONG)
    server.until(lambda metrics: metrics.waiting == 1)
    waiting.close()
    server.until(lambda metrics: metrics.waiting == 0)
    for sock in running:
        sock.close()
    server.until(lambda metrics: metrics.running == 0)


def test_a_reader_that_takes_nothing_holds_no_slot_and_is_left(server: Running) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", server.port))
    before = server.engine.metrics.accepted
    sent(server, f"{GENERATE}_stream", {**LONG, "parameters": {**LONG["parameters"], "max_tokens": 2000}}, sock)
    server.until(lambda metrics: metrics.accepted == before + 1)
    with server.client() as client:  # others go on meanwhile
        assert client.post(GENERATE, json={"text_input": "a"}).status_code == 200
    server.until(lambda metrics: metrics.running == 0, 20)
    with sock:  # its answer is some 160 kB of events, more than the buffers hold, and it was given up
        time.sleep(1.0)
        content = b""
        while piece := sock.recv(65536):
            content += piece
    assert b"text_output" in content
    assert not content.endswith(b"0\r\n\r\n")


def test_a_slow_reader_gets_everything(server: Running) -> None:
    body = {"text_input": "", "parameters": {**LONG["parameters"], "max_tokens": 150, "seed": 4}}
    with sent(server, f"{GENERATE}_stream", body) as sock:
        content = b""
        while not content.endswith(b"0\r\n\r\n"):
            content += sock.recv(2000)
            time.sleep(0.005)
    texts = [json.loads(line[6:])["text_output"] for line in content.decode().split("\n") if line.startswith("data: ")]
    with server.client() as client:
        assert "".join(texts) == client.post(GENERATE, json=body).json()["text_output"]
