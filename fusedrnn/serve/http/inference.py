"""The Open Inference Protocol, version 2. In: HTTP requests; out: health, metadata, and outputs of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..._version import __version__
from . import tensors
from .connection import while_connected
from .faces import Face
from .limits import Limits, body, deadline
from .problems import Problem, json_response, refusing
from .submission import answers

VERSION = "1"  # of every model


class Inference:
    """The endpoints below ``/v2``.

    Args:
        faces: by name.
        limits: of a request.
    """

    def __init__(self, faces: Mapping[str, Face], limits: Limits) -> None:
        self._faces, self._limits = faces, limits

    def routes(self) -> list[Route]:
        """Of Starlette."""
        model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        return [
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            *(Route(path, self.metadata) for path in (model, version)),
            *(Route(f"{path}/ready", self.model_ready) for path in (model, version)),
            *(Route(f"{path}/infer", self.infer, methods=["POST"]) for path in (model, version)),
        ]

    async def server(self, request: Request) -> Response:
        return json_response({"name": "fusedrnn", "version": __version__, "extensions": ["binary_tensor_data", "generate"]})

    async def live(self, request: Request) -> Response:
        live = all(face.engine.alive for face in self._faces.values())
        return json_response({"live": live}, 200 if live else 503)

    async def ready(self, request: Request) -> Response:
        ready = all(face.engine.ready for face in self._faces.values())
        return json_response({"ready": ready}, 200 if ready else 503)

    async def model_ready(self, request: Request) -> Response:
        face = model_of(self._faces, request)
        return json_response({"name": face.name, "ready": face.engine.ready}, 200 if face.engine.ready else 503)

    async def metadata(self, request: Request) -> Response:
        face = model_of(self._faces, request)
        return json_response(
            {
                "name": face.name,
                "versions": [VERSION],
                "platform": "fusedrnn",
                "inputs": [spec.as_dict() for spec in face.inputs],
                "outputs": [spec.as_dict() for spec in face.outputs],
            }
        )

    async def infer(self, request: Request) -> Response:
        face = model_of(self._faces, request)
        asked = tensors.read(await body(request, self._limits), request.headers.get(tensors.HEADER))
        parameters = dict(asked.parameters)
        priority, timeout = _whole(parameters.pop("priority", 0), "priority"), _whole(parameters.pop("timeout", 0), "timeout")
        wanted = asked.outputs or {spec.name: asked.binary for spec in face.outputs}
        if unknown := set(wanted) - {spec.name for spec in face.outputs}:
            raise Problem(422, f"outputs: the model {face.name!r} has no {min(unknown)!r}")
        with refusing():
            rows = face.rows(face.checked(asked.inputs), face.known(parameters))
        if len(rows) > self._limits.rows:
            raise Problem(413, f"{len(rows)} rows at once: a request may have {self._limits.rows}")
        seconds = deadline(request, self._limits, timeout / 1e6 if timeout else None)
        made = await while_connected(request.receive, answers(face.engine, rows, priority=priority, deadline=seconds))
        given = face.tensors(made)
        head: dict[str, Any] = {"model_name": face.name, "model_version": VERSION}
        if asked.id is not None:
            head["id"] = asked.id
        content, length = tensors.write(head, {name: given[name] for name in wanted}, wanted)
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={tensors.HEADER: str(length)}, media_type="application/octet-stream")


def model_of(faces: Mapping[str, Face], request: Request) -> Face:
    """The model that an address names.

    Raises:
        Problem: there is none.
    """
    name, version = request.path_params["model"], request.path_params.get("version", VERSION)
    if name not in faces or version != VERSION:
        raise Problem(
            404, f"there is no model {name!r} of version {version!r}; here are {', '.join(map(repr, faces))} of version {VERSION!r}"
        )
    return faces[name]


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise Problem(422, f"{name} must be a whole number of at least 0")
    return value
