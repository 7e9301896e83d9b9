"""What a client may not ask for: more, longer, sooner, in another form."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from fusedrnn.serve import CharactersModel
from fusedrnn.serve.http import Limits, application
from tests.serve.http.conftest import Running, characters_engine

GENERATE = "/v2/models/chars/generate"
MOST = 1500
LONG = {"text_input": "", "parameters": {"max_tokens": MOST, "temperature": 1.0, "one_word": False}}


@pytest.fixture(scope="module")
def small(characters: CharactersModel) -> Iterator[Running]:
    """A server of two slots and one place to wait."""
    engine = characters_engine(characters, 2, queue=1, steps=4)
    with Running(engine, limits=Limits(body=2000, rows=3, deadline=30.0, stall=0.4)) as running:
        yield running


def test_limits_are_above_0() -> None:
    with pytest.raises(ValueError, match="deadline must be above 0"):
        Limits(deadline=0)
    with pytest.raises(ValueError, match="engines of different names"):
        application()


def test_a_full_queue(small: Running) -> None:
    with small.client() as client, ThreadPoolExecutor(3) as pool:
        long = [pool.submit(client.post, GENERATE, json=LONG) for _ in range(3)]
        small.until(lambda metrics: metrics.running + metrics.waiting == 3)
        for path, body in (
            (GENERATE, LONG),
            (f"{GENERATE}_stream", LONG),
            ("/v1/completions", {"model": "chars", "prompt": "a"}),
            ("/v2/models/chars/infer", {"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}),
        ):
            refused = client.post(path, json=body)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/v2/health/ready").status_code == 200
        assert [each.result().status_code for each in long] == [200] * 3
        assert all(len(each.result().json()["text_output"]) == MOST for each in long)
        assert small.engine.metrics.rejected["queue full"] == 4


def test_rows_are_accepted_all_or_none(small: Running) -> None:
    with small.client() as client, ThreadPoolExecutor(2) as pool:
        long = [pool.submit(client.post, GENERATE, json=LONG) for _ in range(2)]
        small.until(lambda metrics: metrics.running == 2)
        words = {"name": "prompt", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
        assert client.post("/v2/models/chars/infer", json={"inputs": [words]}).status_code == 429
        assert small.engine.metrics.waiting == 0
        many = {**words, "shape": [4], "data": ["a"] * 4}
        assert client.post("/v2/models/chars/infer", json={"inputs": [many]}).status_code == 413
        assert [each.result().status_code for each in long] == [200] * 2


def test_more_rows_than_there_is_room_for_will_never_do(characters: CharactersModel) -> None:
    with Running(characters_engine(characters, 2, queue=1)) as running, running.client() as client:
        body = {"model": "chars", "prompt": ["a"] * 4}
        assert client.post("/v1/completions", json=body).status_code == 413
        assert client.post("/v1/completions", json={**body, "prompt": ["a"] * 3}).status_code == 200


@pytest.mark.parametrize("header", ["0", "0.05", "1e-9"])
@pytest.mark.parametrize("path", [GENERATE, f"{GENERATE}_stream"])
def test_a_deadline(small: Running, path: str, header: str) -> None:
    with small.client() as client:
        before = small.engine.metrics.expired
        answer = client.post(path, json=LONG, headers={"Request-Timeout": header})
        if path.endswith("_stream") and header == "0.05":  # it has begun to answer
            assert answer.status_code == 200
            assert "event: error" in answer.text
            assert "deadline" in json.loads(answer.text.split("data: ")[-1])["error"]
        else:
            assert answer.status_code == 504
            assert "deadline" in answer.json()["error"]
        assert small.engine.metrics.expired == before + 1


def test_a_deadline_in_microseconds_as_triton_has_it(small: Running) -> None:
    parameters = {"timeout": 20_000, "max_tokens": 4096, "one_word": False}
    body = {"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a"]}], "parameters": parameters}
    with small.client() as client:
        assert client.post("/v2/models/chars/infer", json=body).status_code == 504


@pytest.mark.parametrize("header", ["-1", "soon", "nan", ""])
def test_a_deadline_that_is_none(small: Running, header: str) -> None:
    with small.client() as client:
        answer = client.post(GENERATE, json={"text_input": "a"}, headers={"Request-Timeout": header})
        assert (answer.status_code, "request-timeout must be" in answer.json()["error"]) == (422, True)


def test_a_step_limit(characters: CharactersModel) -> None:
    with Running(characters_engine(characters, step_limit=20)) as running, running.client() as client:
        answer = client.post(GENERATE, json=LONG)
        assert (answer.status_code, "after 20 steps" in answer.json()["error"]) == (422, True)


def test_a_long_body_announced_and_not(small: Running) -> None:
    with small.client() as client:
        assert client.post(GENERATE, content=b" " * 2001).status_code == 413

        def parts() -> Iterator[bytes]:
            for _ in range(30):
                yield b" " * 100

        assert client.post(GENERATE, content=parts()).status_code == 413
        assert client.post(GENERATE, content=b"\0", headers={"Content-Encoding": "gzip"}).status_code == 415


def test_a_body_that_does_not_come(small: Running) -> None:
    with socket.create_connection(("127.0.0.1", small.port), 10) as sock:
        sock.sendall(f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_client_that_leaves_amid_its_body_is_no_fault_of_the_server(small: Running) -> None:
    raised: list[BaseException] = []
    app = small.server.config.app

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)  # type: ignore[operator, misc]
        except BaseException as error:
            raised.append(error)
            raise
        finally:
            ended.set()

    ended = threading.Event()
    loaded, small.server.config.loaded_app = small.server.config.loaded_app, noting  # type: ignore[assignment]
    try:
        with socket.create_connection(("127.0.0.1", small.port), 10) as sock:
            sock.sendall(f"POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert ended.wait(10)
    finally:
        small.server.config.loaded_app = loaded
    assert not raised


@pytest.mark.parametrize("line", [b"\r\n\r\n", b"POST\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"\0" * 200 + b"\r\n\r\n"])
def test_what_is_not_http_does_no_harm(small: Running, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", small.port), 10) as sock:
        sock.sendall(line)
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(1000)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    with small.client() as client:
        assert client.get("/v2/health/ready").status_code == 200


def test_draining_refuses_and_finishes(characters: CharactersModel) -> None:
    engine = characters_engine(characters, 2, queue=5, steps=4)
    with Running(engine, linger=1.0) as running, running.client() as client, ThreadPoolExecutor(4) as pool:
        long = [pool.submit(client.post, GENERATE, json=LONG) for _ in range(4)]
        running.until(lambda metrics: metrics.accepted == 4)
        assert client.get("/v2/models/chars/ready").json()["ready"]
        running.stop()
        running.until(lambda _: engine.scheduler.draining)
        for path in ("/v2/health/ready", "/v2/models/chars/ready"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["ready"]) == (503, False)
        assert client.get("/v2/health/live").status_code == 200
        refused = client.post(GENERATE, json=LONG)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        answers: list[httpx.Response] = [each.result() for each in long]
        assert [answer.status_code for answer in answers] == [200] * 4
        done: list[Any] = [len(answer.json()["text_output"]) for answer in answers]
        assert done == [MOST] * 4
