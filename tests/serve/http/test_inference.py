"""The Open Inference Protocol over a real socket."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import fusedrnn
from fusedrnn.models import G2P
from fusedrnn.models.recogniser import Recogniser
from fusedrnn.serve import Engine, RecogniserModel
from fusedrnn.serve.http import RecogniserFace
from tests.serve.http.conftest import Running

WORDS = ["hello", "Recurrence", "naïve", "a"]
INFER = "/v2/models/g2p/infer"


def asked(words: list[str], **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "words", "datatype": "BYTES", "shape": [len(words)], "data": words}], **more}


def expected(words: list[str]) -> list[str]:
    return [" ".join(phonemes) for phonemes in G2P.pretrained()(words, backend="reference")]


def test_health_and_metadata(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json() == {
        "name": "fusedrnn",
        "version": fusedrnn.__version__,
        "extensions": ["binary_tensor_data", "generate"],
    }
    found = client.get("/v2/models/g2p").json()
    assert found["inputs"] == [{"name": "words", "datatype": "BYTES", "shape": [-1]}]
    assert found["outputs"] == [{"name": "phonemes", "datatype": "BYTES", "shape": [-1]}]
    assert client.get("/v2/models/g2p/versions/1").json() == found
    assert client.get("/v2/models/chars/ready").json() == {"name": "chars", "ready": True}


def test_words_in_json(client: httpx.Client) -> None:
    answer = client.post(INFER, json=asked(WORDS, id="mine"))
    assert answer.status_code == 200
    assert answer.json() == {
        "model_name": "g2p",
        "model_version": "1",
        "id": "mine",
        "outputs": [{"name": "phonemes", "datatype": "BYTES", "shape": [4], "data": expected(WORDS)}],
    }
    nothing = client.post(INFER, json=asked([])).json()
    assert nothing["outputs"] == [{"name": "phonemes", "datatype": "BYTES", "shape": [0], "data": []}]


def test_words_in_binary(client: httpx.Client) -> None:
    tail = b"".join(struct.pack("<I", len(word.encode())) + word.encode() for word in WORDS)
    entry = {"name": "words", "datatype": "BYTES", "shape": [4], "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [entry], "outputs": [{"name": "phonemes", "parameters": {"binary_data": True}}]}).encode()
    answer = client.post(INFER, content=head + tail, headers={"Inference-Header-Content-Length": str(len(head))})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.content[:length])["outputs"]
    rest, made = answer.content[length:], []
    assert output["parameters"]["binary_data_size"] == len(rest)
    while rest:
        (size,) = struct.unpack_from("<I", rest)
        made.append(rest[4 : 4 + size].decode())
        rest = rest[4 + size :]
    assert made == expected(WORDS)


def test_prompts_with_parameters(client: httpx.Client) -> None:
    body = {
        "inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [2], "data": ["inter", "inter"]}],
        "parameters": {"max_tokens": 9, "temperature": 0.9, "seed": 5, "one_word": False},
    }
    first, second = client.post("/v2/models/chars/infer", json=body).json()["outputs"][0]["data"]
    assert first == second
    assert len(first) == 9


BAD: list[tuple[Any, int, str]] = [
    (b"", 400, "not JSON"),
    (b"{", 400, "not JSON"),
    (b"[" * 100_000, 413, "65536 bytes"),
    (b"[" * 20_000, 400, "nested too deeply"),
    (b"\xff", 400, "not JSON"),
    ([1], 422, "must be a JSON object"),
    ({}, 422, "inputs must be an array"),
    ({"inputs": []}, 422, "'words' is missing"),
    ({"inputs": [3]}, 422, "inputs[0] must be an object"),
    ({"inputs": [{"name": "words", "datatype": "BYTES", "shape": [2], "data": ["a"]}]}, 422, "has 2 elements, data has 1"),
    ({"inputs": [{"name": "words", "datatype": "BYTES", "shape": [1], "data": [1]}]}, 422, "must be str"),
    ({"inputs": [{"name": "words", "datatype": "BYTES", "shape": [-1], "data": []}]}, 422, "shape must be"),
    ({"inputs": [{"name": "words", "datatype": "BYTES", "shape": [2**30, 2**30], "data": []}]}, 413, "too large"),
    ({"inputs": [{"name": "words", "datatype": "BYTES", "shape": [1, 1], "data": [["a"]]}]}, 422, "must have shape [-1]"),
    ({"inputs": [{"name": "words", "datatype": "FP32", "shape": [1], "data": [1.5]}]}, 422, "must be BYTES, got FP32"),
    ({"inputs": [{"name": "words", "datatype": "FP8", "shape": [1], "data": [1]}]}, 422, "datatype must be one of"),
    ({"inputs": [{"name": "word", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}, 422, "'word' is not known"),
    (asked(["a"], parameters={"temperature": 1}), 422, "'temperature' is not known to the model 'g2p'; known: none"),
    (asked(["a"], outputs=[{"name": "letters"}]), 422, "has no 'letters'"),
    (asked(["a"], id=7), 422, "id must be a string"),
    (asked(["a"], parameters={"timeout": -1}), 422, "timeout must be a whole number"),
    (asked(["a" * 65]), 422, "a word may have 64 letters, this one has 65"),
    (asked(["İ" * 40]), 422, "a word may have 64 letters, this one has 80 in lower case"),
    (asked(["a"] * 41), 413, "a request may have 40"),
    (rb'{"inputs": [{"name": "words", "datatype": "BYTES", "shape": [1], "data": ["\ud800"]}]}', 422, "an element is no BYTES"),
]


@pytest.mark.parametrize(("body", "status", "said"), BAD)
def test_bad_bodies(client: httpx.Client, body: Any, status: int, said: str) -> None:
    answer = client.post(INFER, content=body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.text


@pytest.mark.parametrize(
    ("length", "size", "tail", "status", "said"),
    [
        ("x", 5, b"\1\0\0\0a", 400, "must be a number of bytes"),
        ("9999", 5, b"\1\0\0\0a", 400, "must be a number of bytes"),
        (None, 6, b"\1\0\0\0a", 400, "binary_data_size must be"),
        (None, 4, b"\1\0\0\0a", 400, "an element says that it has 1 bytes, 0 are left"),
        (None, 3, b"\1\0\0", 400, "end within the length"),
        (None, 5, b"\1\0\0\0a!", 400, "1 bytes are left behind"),
        (None, 10, b"\1\0\0\0a\1\0\0\0a", 422, "its bytes hold 2"),
        (None, 5, b"\1\0\0\0\xff", 422, "not UTF-8"),
    ],
)
def test_bad_binary_bodies(client: httpx.Client, length: str | None, size: int, tail: bytes, status: int, said: str) -> None:
    entry = {"name": "words", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [entry]}).encode()
    answer = client.post(INFER, content=head + tail, headers={"Inference-Header-Content-Length": length or str(len(head))})
    assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.text


def test_addresses_that_there_are_not(client: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/v2/models/x", 404),
        ("GET", "/v2/models/g2p/versions/2", 404),
        ("POST", "/v2/models/x/infer", 404),
        ("GET", INFER, 405),
        ("GET", "/nowhere", 404),
        ("GET", "/v2/health/ready/", 404),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()) == {"error"}
        assert "openapi.json" in answer.json()["error"] or "no model" in answer.json()["error"]
    assert client.post("/v1/chat/completions").json()["error"]["message"].startswith("there is nothing at /v1/chat/completions")


KEY = b"a key of the whole fleet"


def pushed(client: httpx.Client, frames: np.ndarray, state: str | None, binary: bool) -> tuple[np.ndarray, str]:
    """What a server says of a piece of a stream: probabilities, and the state that goes into the next request."""
    entries, tail = [tensor("frames", frames, binary)], frames.tobytes() if binary else b""
    if state is not None:
        entries.append({"name": "state", "datatype": "BYTES", "shape": [1], "data": [state]})
    head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": binary}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    answer = client.post("/v2/models/recogniser/infer", content=head + tail, headers=headers)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    rest, (seen, left) = answer.content[length:], json.loads(answer.content[:length])["outputs"]
    assert (seen["name"], left["name"], left["datatype"], left["shape"]) == ("probabilities", "state", "BYTES", [1])
    if not binary:
        return np.array(seen["data"], np.float32).reshape(seen["shape"]), left["data"][0]
    size = seen["parameters"]["binary_data_size"]
    return np.frombuffer(rest[:size], np.float32).reshape(seen["shape"]), rest[size + 4 :].decode()


def tensor(name: str, array: np.ndarray, binary: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
    return {**entry, "parameters": {"binary_data_size": array.nbytes}} if binary else {**entry, "data": array.tolist()}


def recogniser(seed: int = 1) -> Recogniser:
    torch.manual_seed(seed)
    return Recogniser(5, 3, hidden_size=16)


def recogniser_server(model: Recogniser, key: bytes | None = KEY) -> Running:
    return Running(RecogniserFace(Engine(RecogniserModel(model), 4, threads=1, backend="native"), key=key))


@pytest.mark.parametrize("binary", [False, True])
def test_a_stream_goes_on_at_another_server(binary: bool) -> None:
    frames = np.random.default_rng(0).standard_normal((30, 5), np.float32)
    with torch.no_grad():
        whole, _ = recogniser()(torch.tensor(frames)[:, None], backend="reference")
    with recogniser_server(recogniser()) as one, recogniser_server(recogniser()) as other, one.client() as first, other.client() as second:
        at_one, _ = pushed(first, frames, None, binary)
        state, made = None, list[Any]()
        for client, piece in ((first, frames[:11]), (second, frames[11:11]), (second, frames[11:12]), (first, frames[12:])):
            seen, state = pushed(client, piece, state, binary)
            made.append(seen)
        refused = first.post("/v2/models/recogniser/generate", json={"text_input": "a"})
        assert first.get("/v2/models/recogniser").json()["inputs"][1] == {"name": "state", "datatype": "BYTES", "shape": [1]}
    assert np.concatenate(made).tobytes() == at_one.tobytes()
    np.testing.assert_allclose(np.concatenate(made), whole[:, 0].numpy(), atol=1e-6)
    assert refused.status_code == 404


def test_a_state_that_is_none_of_this_model() -> None:
    frames = np.zeros((2, 5), np.float32)
    with (
        recogniser_server(recogniser()) as one,
        recogniser_server(recogniser(2)) as other,
        recogniser_server(recogniser(), None) as keyless,
        one.client() as client,
        other.client() as others,
        keyless.client() as without,
    ):
        _, state = pushed(client, frames, None, False)
        _, unsigned = pushed(without, frames, None, False)
        for mine, given, said in (
            (others, state, "of another model"),
            (client, unsigned, "another key"),
            (client, ("A" if state[60] != "A" else "B").join([state[:60], state[61:]]), "has been changed"),
            (client, state + "AAAA", "has been changed"),
            (client, "", "cannot be read"),
            (client, "ä", "cannot be read"),
            (client, "A" * 60_000, "characters here"),
        ):
            entry = {"name": "state", "datatype": "BYTES", "shape": [1], "data": [given]}
            answer = mine.post("/v2/models/recogniser/infer", json={"inputs": [tensor("frames", frames, False), entry]})
            assert (answer.status_code, said in answer.json()["error"]) == (422, True), answer.text
        pushed(client, frames, state, False)
