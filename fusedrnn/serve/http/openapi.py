"""What the server has, as OpenAPI says it. In: faces; out: the document at ``/openapi.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..._version import __version__
from .authorisation import OPEN
from .faces import CharactersFace, Face
from .inference import VERSION
from .limits import DEADLINE, Limits
from .tensors import DATATYPES, HEADER

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer", "minimum": 0}
_NAMES: Schema = {"type": "object", "additionalProperties": True}
_PARAMETERS: dict[str, Schema] = {
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0},
    "top_k": {"type": "integer", "minimum": 1},
    "seed": {"type": "integer"},
    "one_word": {"type": "boolean"},
}
_MISTAKES = {
    400: "It cannot be read.",
    401: "The token is missing or wrong.",
    403: "A page of another origin asks.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "It is too large.",
    415: "The body is compressed.",
    421: "The server does not go by this name.",
    422: "It can be read, and asks for what is not there.",
    429: "The queue is full: Retry-After says when to try again.",
    500: "The request failed.",
    503: "The server drains and takes no more requests.",
    504: "The deadline passed.",
}
_ACCESS = (401, 403, 421)  # which of them there are depends on how access is checked


def description(faces: Mapping[str, Face], limits: Limits, token: bool, named: bool = False) -> Schema:
    """The document.

    Args:
        faces: by name.
        limits: of a request.
        token: whether clients must show one.
        named: whether they must address the server by a name of its own.
    """
    paths: dict[str, Schema] = {
        "/v2": {"get": _get("What the server is", _object({"name": _TEXT, "version": _TEXT, "extensions": _array(_TEXT)}))},
        "/v2/health/live": {"get": _health("Whether the process works", "live")},
        "/v2/health/ready": {"get": _health("Whether requests are taken: not while it drains", "ready")},
        "/metrics": {"get": _get("Metrics for Prometheus", None)},
        "/status": {"get": _get("The numbers of the status page", _NAMES)},
        "/": {"get": _get("The status page", None, kind="text/html")},
        "/openapi.json": {"get": _get("This document", _NAMES)},
    }
    for name, face in faces.items():
        paths |= _of_model(name, face)
    paths |= _of_completions({name: face for name, face in faces.items() if isinstance(face, CharactersFace)})
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "fusedrnn", "version": __version__, "description": _said(limits)},
        "paths": paths,
        "components": {"schemas": {"Error": _object({"error": _TEXT}), "OpenAIError": _object({"error": _NAMES})}},
    }
    for path, methods in paths.items():
        checked = (401,) if token and path not in OPEN else (403, 421) if named else ()
        for operation in methods.values():
            operation["responses"] |= _mistakes(checked, "OpenAIError" if path.startswith("/v1") else "Error")
    if token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        for path in OPEN & set(paths):
            paths[path]["get"]["security"] = []
    return document


def _said(limits: Limits) -> str:
    return (
        f"Recurrent models with continuous batching. A body may have {limits.body} bytes and {limits.rows} rows; a request is given up "
        f"after {limits.deadline:g} s, or after fewer where the header {DEADLINE} says so. A client that disconnects ends its request."
    )


def _of_model(name: str, face: Face) -> dict[str, Schema]:
    metadata = _object({"name": _TEXT, "versions": _array(_TEXT), "platform": _TEXT, "inputs": _array(_NAMES), "outputs": _array(_NAMES)})
    known = _up_to(face.most) if isinstance(face, CharactersFace) else {}
    parameters = _object({each: known.get(each, {}) for each in face.parameters}, required=(), closed=True)
    path, ready = f"/v2/models/{name}", _object({"name": _TEXT, "ready": {"type": "boolean"}})
    found: dict[str, Schema] = {}
    for at in (path, f"{path}/versions/{VERSION}"):
        found |= {
            at: {"get": _get("Inputs and outputs", metadata, (404,))},
            f"{at}/ready": {"get": _get("Whether the model takes requests", ready, (404, 503))},
            f"{at}/infer": {"post": _infer(face, parameters)},
        }
    if not face.generates:
        return found
    asked = _object({"text_input": _TEXT, "id": _TEXT, "parameters": parameters}, required=("text_input",), closed=True)
    made = _object({"model_name": _TEXT, "model_version": _TEXT, "text_output": _TEXT, "id": _TEXT}, ("model_name", "text_output"))
    found[f"{path}/generate"] = {"post": _post("Text from a text", asked, {"application/json": made})}
    found[f"{path}/generate_stream"] = {
        "post": _post("The same as it is made; an event `error` where it fails midway", asked, {"text/event-stream": _TEXT})
    }
    return found


def _infer(face: Face, parameters: Schema) -> Schema:
    tensors = [
        _object(
            {
                "name": {"const": spec.name}, "datatype": {"const": spec.datatype}, "shape": _shape(spec.shape),
                "data": {"type": "array"}, "parameters": _object({"binary_data_size": _WHOLE}, (), closed=True),
            },
            ("name", "datatype", "shape"),
        )
        for spec in face.inputs
    ]  # fmt: skip
    of_request = {**parameters["properties"], "priority": _WHOLE, "timeout": _WHOLE, "binary_data_output": {"type": "boolean"}}
    wanted = _object(
        {
            "name": {"enum": [spec.name for spec in face.outputs]},
            "parameters": _object({"binary_data": {"type": "boolean"}}, (), closed=True),
        },
        ("name",),
    )
    given = _object(
        {"name": {"enum": [spec.name for spec in face.outputs]}, "datatype": {"enum": sorted(DATATYPES)}, "shape": _array(_WHOLE)},
        ("name", "datatype", "shape"),
    )
    asked = _object(
        {
            "id": _TEXT,
            "inputs": {"type": "array", "items": {"anyOf": tensors}, "minItems": 1},
            "outputs": _array(wanted),
            "parameters": _object(of_request, (), closed=True),
        },
        ("inputs",),
    )
    made = _object({"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "outputs": _array(given)}, ("model_name", "outputs"))
    operation = _post("Outputs of inputs", asked, {"application/json": made, "application/octet-stream": {"type": "string"}})
    operation["parameters"].append(
        {"name": HEADER, "in": "header", "schema": _WHOLE, "description": "bytes of JSON, where binary tensors stand behind it"}
    )
    return operation


def _up_to(most: int) -> dict[str, Schema]:
    """What a language model can be told, if it writes so many characters at most."""
    return {**_PARAMETERS, "max_tokens": {**_PARAMETERS["max_tokens"], "maximum": most}}


def _of_completions(models: Mapping[str, CharactersFace]) -> dict[str, Schema]:
    described = _object({"id": _TEXT, "object": {"const": "model"}, "created": _WHOLE, "owned_by": _TEXT})
    listed = _object({"object": {"const": "list"}, "data": _array(described)})
    asked = _object(
        {
            **(_up_to(max(face.most for face in models.values())) if models else _PARAMETERS),
            "model": {"enum": list(models)} if models else _TEXT,
            "prompt": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]},
            "stream": {"type": "boolean"},
            "stream_options": _object({"include_usage": {"type": "boolean"}}, ()),
            "stop": {
                "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 4}]
            },
            "echo": {"type": "boolean"},
            "user": _TEXT,
        },
        ("model", "prompt"),
        closed=True,
    )
    choice = _object({"index": _WHOLE, "text": _TEXT, "finish_reason": {"enum": ["stop", "length", None]}})
    made = _object({"id": _TEXT, "object": _TEXT, "created": _WHOLE, "model": _TEXT, "choices": _array(choice), "usage": _NAMES})
    return {
        "/v1/models": {"get": _get("The language models", listed)},
        "/v1/models/{model}": {
            "get": {
                **_get("One of them", described, (404,), "OpenAIError"),
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}],
            }
        },
        "/v1/completions": {
            "post": _post(
                "How prompts go on; a token is a character", asked, {"application/json": made, "text/event-stream": _TEXT}, "OpenAIError"
            )
        },
    }


def _get(
    summary: str, schema: Schema | None, mistakes: tuple[int, ...] = (), error: str = "Error", kind: str = "text/plain"
) -> Schema:  # fmt: skip
    content: Schema = {kind: {}} if schema is None else {"application/json": {"schema": schema}}
    return {"summary": summary, "responses": {"200": {"description": "It is so.", "content": content}, **_mistakes(mistakes, error)}}


def _health(summary: str, name: str) -> Schema:
    content = {"application/json": {"schema": _object({name: {"type": "boolean"}})}}
    return {
        "summary": summary,
        "responses": {"200": {"description": "Yes.", "content": content}, "503": {"description": "No.", "content": content}},
    }


def _post(summary: str, asked: Schema, made: dict[str, Schema], error: str = "Error") -> Schema:
    return {
        "summary": summary,
        "parameters": [{"name": DEADLINE, "in": "header", "schema": {"type": "number", "minimum": 0}, "description": "seconds"}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
        "responses": {
            "200": {"description": "Done.", "content": {kind: {"schema": schema} for kind, schema in made.items()}},
            **_mistakes(tuple(code for code in _MISTAKES if code not in _ACCESS), error),
        },
    }


def _mistakes(codes: tuple[int, ...], error: str) -> Schema:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{error}"}}}
    return {str(code): {"description": _MISTAKES[code], "content": content} for code in codes}


def _object(properties: dict[str, Schema], required: tuple[str, ...] | None = None, *, closed: bool = False) -> Schema:
    made: Schema = {"type": "object", "properties": properties, "required": list(properties if required is None else required)}
    return {**made, "additionalProperties": False} if closed else made


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _shape(shape: tuple[int, ...]) -> Schema:
    return {
        "type": "array",
        "prefixItems": [_WHOLE if size < 0 else {"const": size} for size in shape],
        "minItems": len(shape),
        "maxItems": len(shape),
    }
