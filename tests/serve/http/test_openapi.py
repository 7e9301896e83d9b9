"""A fuzzer by the server's own description: whatever comes, the answer is one that the description tells of, and never a 500."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusedrnn.serve import CharactersModel
from fusedrnn.serve.http import application
from fusedrnn.serve.http.faces import CharactersFace
from fusedrnn.serve.http.openapi import description
from fusedrnn.serve.http.problems import Problem
from tests.serve.http.conftest import Running, characters_engine

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([10**400, -(2**63), 2**64, 1e308, -0.0]), st.floats(),
    st.text(max_size=8), st.sampled_from(["\ud800", "\0", "words", "BYTES", "a" * 70]),
)  # fmt: skip
ANY = st.recursive(ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8)
NEAR = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=20)


def of_schema(schema: dict[str, Any], odd: float = 0.0) -> st.SearchStrategy[Any]:
    """Values as a schema has them; ``odd``: one part in so many is something else."""
    fits = _of_schema(schema, odd)
    if not odd:
        return fits
    return st.integers(0, round(1 / odd)).flatmap(lambda drawn: ANY if drawn == 0 else fits)


def _of_schema(schema: dict[str, Any], odd: float) -> st.SearchStrategy[Any]:
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([of_schema(each, odd) for each in schema["anyOf"]])
    match schema.get("type"):
        case "object":
            required = set(schema.get("required", ()))
            parts = {name: of_schema(each, odd) for name, each in schema.get("properties", {}).items()}
            return st.fixed_dictionaries(
                {name: each for name, each in parts.items() if name in required},
                optional={name: each for name, each in parts.items() if name not in required},
            )
        case "array" if "prefixItems" in schema:
            return st.tuples(*[of_schema(each, odd) for each in schema["prefixItems"]]).map(list)
        case "array":
            items = of_schema(schema["items"], odd) if "items" in schema else st.text("abc", max_size=5)
            return st.lists(items, min_size=schema.get("minItems", 0), max_size=min(schema.get("maxItems", 3), 3))
        case "string":
            return st.text("abc'-", min_size=schema.get("minLength", 0), max_size=6)
        case "integer":
            return st.integers(schema.get("minimum", -3), min(schema.get("maximum", 40), 40))
        case "number":
            return st.floats(schema.get("minimum", 0), 3)
        case "boolean":
            return st.booleans()
    return ANY


@pytest.fixture(scope="module")
def document(both: Running) -> dict[str, Any]:
    with both.client() as client:
        return client.get("/openapi.json").json()


def told(document: dict[str, Any], path: str, method: str, answer: httpx.Response) -> None:
    """That the description tells of such an answer."""
    responses = document["paths"][path][method]["responses"]
    assert answer.status_code != 500, answer.text
    assert str(answer.status_code) in responses, (answer.status_code, answer.text)
    content = responses[str(answer.status_code)]["content"]
    assert answer.headers["content-type"].split(";")[0] in {kind.split(";")[0] for kind in content}
    if answer.headers["content-type"] == "application/json":
        found = answer.json()
        schema = content["application/json"]["schema"]
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].split("/")[-1]]
        assert set(schema.get("required", ())) - {"id"} <= set(found)


POSTS = [
    "/v2/models/g2p/versions/1/infer", "/v2/models/chars/versions/1/infer",
    "/v2/models/g2p/infer", "/v2/models/chars/infer", "/v2/models/g2p/generate", "/v2/models/chars/generate",
    "/v2/models/chars/generate_stream", "/v2/models/g2p/generate_stream", "/v1/completions",
]  # fmt: skip


def test_it_tells_of_every_address(both: Running, document: dict[str, Any]) -> None:
    routes = [(route.path, route.methods - {"HEAD"}) for route in application(both.engine).routes]  # type: ignore[attr-defined]
    for path, methods in routes:
        at = path.replace("{model}", "g2p").replace("{version}", "1")
        told_of = document["paths"].get(at) or document["paths"][path]
        assert {method.upper() for method in told_of} == methods
    posts = {path for path, each in document["paths"].items() if "post" in each}
    assert posts == set(POSTS)
    with both.client() as client:
        for path, each in document["paths"].items():
            if "get" in each:
                answer = client.get(path.replace("{model}", "chars"))
                assert answer.status_code == 200
                told(document, path, "get", answer)
    assert "security" not in document
    assert description({}, both.limits, True)["security"] == [{"token": []}]


def test_it_tells_how_much_a_model_writes(both: Running, characters: CharactersModel) -> None:
    short = CharactersFace(characters_engine(CharactersModel(characters.model, most=50)))
    paths = description({"chars": short}, both.limits, False)["paths"]
    for path, within in (("/v2/models/chars/generate", ("parameters", "properties")), ("/v1/completions", ())):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        for name in within:
            schema = schema[name]
        assert schema["max_tokens"] == {"type": "integer", "minimum": 1, "maximum": 50}
    with pytest.raises(Problem, match="max_tokens must be a whole number from 1 to 50, got 51"):
        short.row("a", {"max_tokens": 51})


@pytest.mark.parametrize("path", POSTS)
def test_what_fits_the_description_is_understood(both: Running, document: dict[str, Any], path: str) -> None:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    seen = set[int]()
    with both.client() as client:

        @NEAR
        @given(of_schema(schema))
        def check(body: Any) -> None:
            answer = client.post(path, content=json.dumps(body).encode())
            told(document, path, "post", answer)
            assert answer.status_code in (200, 400, 413, 422, 504)  # 400: a binary tensor without bytes
            seen.add(answer.status_code)

        check()
    assert 200 in seen or path.endswith("infer")  # shape and data do not often agree by chance


@pytest.mark.parametrize("path", POSTS)
def test_what_nearly_fits_does_no_harm(both: Running, document: dict[str, Any], path: str) -> None:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    with both.client() as client:

        @NEAR
        @given(of_schema(schema, odd=0.15))
        def check(body: Any) -> None:
            told(document, path, "post", client.post(path, content=json.dumps(body).encode()))

        check()
        assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("path", POSTS)
def test_any_bytes_do_no_harm(both: Running, document: dict[str, Any], path: str) -> None:
    with both.client() as client:

        @NEAR
        @given(st.binary(max_size=40) | ANY.map(lambda value: json.dumps(value).encode()))
        def check(body: bytes) -> None:
            answer = client.post(path, content=body)
            told(document, path, "post", answer)
            assert answer.status_code >= 400

        check()


def text(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


@pytest.mark.parametrize(("model", "name"), [("g2p", "words"), ("chars", "prompt")])
def test_binary_bodies(both: Running, document: dict[str, Any], model: str, name: str) -> None:
    path, seen = f"/v2/models/{model}/infer", set[int]()
    tails = st.lists(st.binary(max_size=6) | st.just(b"abc"), max_size=3).map(lambda parts: b"".join(map(text, parts)))
    with both.client() as client:

        @settings(NEAR, max_examples=50)
        @given(
            tail=tails | st.binary(max_size=20),
            size=st.none() | st.integers(-1, 30) | ODD,
            count=st.integers(0, 3) | ODD,
            length=st.none() | st.integers(-1, 300).map(str) | st.sampled_from(["", "x", "1e3", "٣", "9" * 5000]),
            kind=st.sampled_from(["BYTES", "BYTES", "BYTES", "FP32", "INT64", "UINT8"]),
            binary=st.booleans(),
        )
        def check(tail: bytes, size: Any, count: Any, length: str | None, kind: str, binary: bool) -> None:
            entry = {
                "name": name,
                "datatype": kind,
                "shape": [count],
                "parameters": {"binary_data_size": len(tail) if size is None else size},
            }
            head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": binary}}).encode()
            header = (str(len(head)) if length is None else length).encode()
            answer = client.post(path, content=head + tail, headers={b"Inference-Header-Content-Length": header})
            told(document, path, "post", answer)
            seen.add(answer.status_code)

        check()
    assert {400, 422} <= seen
