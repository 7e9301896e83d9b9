"""Good requests, and each with one thing wrong with it: at every documented address a documented answer, and the server goes on."""

from __future__ import annotations

import copy
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn.serve.http import Limits
from tests.serve.http.conftest import Running
from tests.serve.http.test_inference import KEY, recogniser
from tests.serve.http.test_openapi import NEAR, told

Body = dict[str, Any]
MISSING = object()
WRONG: list[Any] = [
    MISSING, None, True, 0, -1, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "\0", "\ud800", "ä", "x" * 1000, [],
    [None], [[[[[[[[[[1]]]]]]]]]], ["a"] * 500, {}, {"name": {}}, {"a" * 300: 1},
]  # fmt: skip

FRAMES = np.linspace(-1, 1, 10, dtype=np.float32).reshape(2, 5)


def words(name: str, *every: str) -> Body:
    return {"name": name, "datatype": "BYTES", "shape": [len(every)], "data": list(every)}


PARAMETERS = {"max_tokens": 5, "temperature": 0.5, "top_k": 3, "seed": 1, "one_word": False}
GOOD: dict[str, Body] = {
    "/v2/models/g2p/infer": {
        "id": "a", "inputs": [words("words", "hello", "a")], "parameters": {"priority": 1, "timeout": 20_000_000},
        "outputs": [{"name": "phonemes", "parameters": {"binary_data": False}}],
    },
    "/v2/models/chars/infer": {
        "inputs": [words("prompt", "in")], "parameters": {**PARAMETERS, "binary_data_output": True}, "outputs": [{"name": "text"}],
    },
    "/v2/models/recogniser/infer": {
        "inputs": [{"name": "frames", "datatype": "FP32", "shape": [2, 5], "data": FRAMES.tolist()}],
        "outputs": [{"name": "probabilities"}, {"name": "state"}],
    },
    "/v2/models/g2p/generate": {"text_input": "hello", "id": "b", "parameters": {}},
    "/v2/models/chars/generate": {"text_input": "in", "parameters": PARAMETERS},
    "/v2/models/g2p/generate_stream": {"text_input": "hello"},
    "/v2/models/chars/generate_stream": {"text_input": "in", "parameters": PARAMETERS},
    "/v1/completions": {
        "model": "chars", "prompt": ["in", "a"], **PARAMETERS, "stop": ["xq"], "echo": True, "user": "me", "stream": True,
        "stream_options": {"include_usage": True}, "n": 1, "top_p": 1, "logit_bias": {}, "suffix": "",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def server(both: Running) -> Iterator[dict[str, Running]]:
    """By model: that of two, and one of the recogniser."""
    from fusedrnn.serve import Engine, RecogniserModel
    from fusedrnn.serve.http import RecogniserFace

    engine = Engine(RecogniserModel(recogniser()), 4, threads=1, backend="native", queue=64)
    with Running(RecogniserFace(engine, key=KEY), limits=Limits(body=2**16, rows=40)) as other:
        yield {"recogniser": other, "": both}


class Site:
    """An address, its server's description, and its good request, which is answered as before whatever came between."""

    def __init__(self, server: dict[str, Running], path: str) -> None:
        self.path, self.good = path, GOOD[path]
        self.running = server["recogniser" if "recogniser" in path else ""]
        self.client = self.running.client()
        self.document = self.client.get("/openapi.json").json()
        self.before = self.answer(self.post(self.good))

    def post(self, body: Any) -> httpx.Response:
        return self.send(json.dumps(body).encode())

    def send(self, content: bytes, **headers: str) -> httpx.Response:
        answer = self.client.post(self.path, content=content, headers=headers)
        told(self.document, self.path, "post", answer)
        if answer.status_code != 200:
            error = answer.json()["error"]
            assert error["message"] if self.path.startswith("/v1") else error
        return answer

    def answer(self, response: httpx.Response) -> str:
        """What is in it, however it was cut into events."""
        assert response.status_code == 200, response.text
        if not response.headers["content-type"].startswith("text/event-stream"):
            return response.text
        events = [json.loads(line[6:]) for line in response.text.split("\n") if line.startswith("data: {")]
        if "text_output" in events[0]:
            return "".join(event["text_output"] for event in events)
        choices = [choice for event in events for choice in event["choices"]]
        reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        return "".join(choice["text"] for choice in choices) + str(reasons)

    def goes_on(self) -> None:
        assert self.answer(self.post(self.good)) == self.before
        assert self.client.get("/v2/health/ready").status_code == 200
        metrics = self.running.engine.metrics
        assert metrics.running == metrics.waiting == 0


@contextmanager
def site_of(server: dict[str, Running], path: str) -> Iterator[Site]:
    site = Site(server, path)
    try:
        yield site
        site.goes_on()
    finally:
        site.client.close()


@pytest.fixture(params=GOOD)
def site(request: pytest.FixtureRequest, server: dict[str, Running]) -> Iterator[Site]:
    with site_of(server, request.param) as made:
        yield made


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each part of a JSON value."""
    if at:
        yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*at, key))


def changed(body: Any, at: tuple[Any, ...], value: Any) -> Any:
    made = copy.deepcopy(body)
    holder = made
    for key in at[:-1]:
        holder = holder[key]
    if value is MISSING:
        del holder[at[-1]]
    else:
        holder[at[-1]] = value
    return made


def test_every_post_is_here(server: dict[str, Running]) -> None:
    found = set()
    for running in set(server.values()):
        with running.client() as client:
            found |= {path for path, each in client.get("/openapi.json").json()["paths"].items() if "post" in each}
    assert {path.replace("/versions/1", "") for path in found} == set(GOOD)


def test_each_part_left_out_or_something_else(site: Site) -> None:
    seen = set[int]()
    for at in places(site.good):
        for value in WRONG:
            answer = site.post(changed(site.good, at, value))
            assert answer.status_code in (200, 400, 404, 413, 422, 504), answer.text
            seen.add(answer.status_code)
    assert {200, 422} <= seen
    names = [at for at in places(site.good) if isinstance(at[-1], str)]
    for at in names:  # beside each name one that is not known; completions and tensors of the protocol have closed lists too
        answer = site.post(changed(site.good, (*at[:-1], "unheard of"), 1))
        assert answer.status_code in (200, 422)


def test_too_much_of_everything(site: Site) -> None:
    for at in places(site.good):
        for value in ("x" * 70_000, [1] * 30_000):
            assert site.post(changed(site.good, at, value)).status_code == 413
    assert site.send(json.dumps(site.good).encode() + b" " * 2**16).status_code == 413


def test_what_is_no_json(site: Site) -> None:
    text = json.dumps(site.good)
    half = text[: len(text) // 2]
    for content in (
        b"", b" ", b"\xff\xfe", half.encode(), text.encode() + b"}", text.replace('"', "'").encode(), b"\x80" + text.encode(),
        text.encode()[:-5] + b"\x80" + text.encode()[-5:], text.encode().replace(b'"', b'"\0', 1), b"{" * 5000, b"[" * 5000,
        b'{"a":' * 5000,
    ):  # fmt: skip
        assert site.send(content).status_code in (400, 422)
    assert site.send(text.encode(), **{"Content-Encoding": "gzip"}).status_code == 415
    assert site.send(text.encode(), **{"Content-Type": "application/x-www-form-urlencoded"}).status_code == 200  # it is read as JSON


LENGTHS = [
    "Content-Length: {more}", "Content-Length: {less}", "Content-Length: -1", "Content-Length: 1e3", "Content-Length: 0x10",
    "Content-Length:",
    "Content-Length: 99999999999999999999", "Content-Length: {all}\r\nContent-Length: {less}", "Content-Length: {all}, {all}",
    "Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Content-Length: {all}\r\nTransfer-Encoding: chunked", "X: y",
]  # fmt: skip


@pytest.mark.parametrize("written", LENGTHS)
def test_lengths_that_are_not_so(site: Site, written: str) -> None:
    content = json.dumps(site.good).encode()
    length = written.format(more=len(content) + 5, less=len(content) - 5, all=len(content))
    with socket.create_connection(("127.0.0.1", site.running.port), 10) as sock:
        sock.sendall(f"POST {site.path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode() + content)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := sock.recv(65536):
                answer += part
        except ConnectionResetError:  # what it had not read when it closed
            pass
    if answer:
        status = int(answer.split(b" ")[1])
        assert status in (400, 408, 411, 413, 422, 501), answer


def binary(site: Site, head: Body, tail: bytes, length: Any = None) -> httpx.Response:
    text = json.dumps(head).encode()
    return site.send(text + tail, **{"Inference-Header-Content-Length": str(len(text) if length is None else length)})


def tensors() -> Iterator[tuple[str, Body, bytes]]:
    """A good tensor in binary for each `infer`."""
    text = struct.pack("<I", 5) + b"hello" + struct.pack("<I", 1) + b"a"
    yield "/v2/models/g2p/infer", {"name": "words", "datatype": "BYTES", "shape": [2]}, text
    yield "/v2/models/chars/infer", {"name": "prompt", "datatype": "BYTES", "shape": [2]}, text
    yield "/v2/models/recogniser/infer", {"name": "frames", "datatype": "FP32", "shape": [2, 5]}, FRAMES.tobytes()


@pytest.mark.parametrize(("path", "entry", "tail"), list(tensors()), ids=["g2p", "chars", "recogniser"])
def test_binary_tensors_with_one_thing_wrong(server: dict[str, Running], path: str, entry: Body, tail: bytes) -> None:
    with site_of(server, path) as site:
        sized = {**entry, "parameters": {"binary_data_size": len(tail)}}
        head = {"inputs": [sized], "parameters": {"binary_data_output": True}}
        assert binary(site, head, tail).status_code == 200
        text = len(json.dumps(head))
        for length in (
            text - 1,
            text + 1,
            0,
            text + len(tail),
            text + len(tail) + 1,
            -1,
            "",
            "x",
            2**63,
            10**400,
            "0x9",
            "+5",
            "1_0",
        ):
            assert binary(site, head, tail, length).status_code == 400
        for size in (len(tail) - 1, len(tail) + 1, 0, -1, 2**40, 10**400, 1.5, "9", None, True, []):
            wrong = {**head, "inputs": [{**entry, "parameters": {"binary_data_size": size}}]}
            assert binary(site, wrong, tail).status_code in (400, 422)
        for shape in ([], [0], [1], [3], [-1], [2.0], ["2"], [2, 5, 1], [5, 2], [2**31], [2**16, 2**16], [True], [None], {}, "2", [1] * 9):
            answer = binary(site, {**head, "inputs": [{**sized, "shape": shape}]}, tail)
            assert answer.status_code in (400, 413, 422), shape
        for kind in ("BYTES", "FP32", "FP64", "INT32", "INT64", "UINT8", "BOOL", "", None, 3):
            if kind != entry["datatype"]:
                assert binary(site, {**head, "inputs": [{**sized, "datatype": kind}]}, tail).status_code in (400, 422)
        assert binary(site, {**head, "inputs": [sized, sized]}, tail * 2).status_code == 422  # twice
        assert binary(site, {**head, "inputs": [{**sized, "data": [1]}]}, tail).status_code == 422
        assert binary(site, head, tail + b"\0").status_code == 400
        assert binary(site, head, tail[:-1]).status_code == 400
        assert site.send(json.dumps(head).encode() + tail).status_code == 400  # without the header: not JSON


@pytest.mark.parametrize("length", [0, 4, 6, 2**31, 2**32 - 1])
def test_elements_whose_length_is_not_so(server: dict[str, Running], length: int) -> None:
    tail = struct.pack("<I", length) + b"hello"
    entry = {"name": "words", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tail)}}
    with site_of(server, "/v2/models/g2p/infer") as site:
        assert binary(site, {"inputs": [entry]}, tail).status_code in (400, 422)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38, 1e-45])
def test_numbers_that_are_none_touch_no_one_else(server: dict[str, Running], value: float) -> None:
    tail = np.full((2, 5), value, np.float32).tobytes()
    entry = {"name": "frames", "datatype": "FP32", "shape": [2, 5], "parameters": {"binary_data_size": len(tail)}}
    with site_of(server, "/v2/models/recogniser/infer") as site:
        assert binary(site, {"inputs": [entry], "parameters": {"binary_data_output": True}}, tail).status_code == 200
        assert binary(site, {"inputs": [entry]}, tail).status_code == (200 if np.isfinite(value) else 422)


def test_gets_and_other_methods(server: dict[str, Running]) -> None:
    for running in server.values():
        with running.client() as client:
            for path, each in client.get("/openapi.json").json()["paths"].items():
                at = path.replace("{model}", "chars")
                for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD"):
                    answer = client.request(method, at, content=b"\xff" if method == "POST" else None)
                    if method.lower() in each or (method == "HEAD" and "get" in each):
                        assert answer.status_code != 500
                        assert answer.status_code != 405
                    else:
                        assert answer.status_code == 405
                        assert set(answer.headers["allow"].lower().replace(" ", "").split(",")) >= set(each)
                        if method != "HEAD":
                            assert set(answer.json()) == {"error"}


def test_any_model_and_version(server: dict[str, Running]) -> None:
    with server[""].client() as client:

        @NEAR
        @given(
            st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12),
            st.sampled_from(["", "/ready", "/infer", "/generate", "/versions/2"]),
        )
        def check(name: str, rest: str) -> None:
            path = f"/v2/models/{quote(name, safe='')}{rest}"
            answer = client.request("POST" if rest in ("/infer", "/generate") else "GET", path, content=b"{}")
            assert answer.status_code in (404, 405), answer.text
            assert answer.json()["error"]

        check()
