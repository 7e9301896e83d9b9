"""OpenAI's completions for language models. In: HTTP requests below ``/v1``; out: JSON, or server-sent events.

A token is a character here.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..characters import Continuation
from ..engine import Stream
from .connection import EventStream, while_connected
from .faces import CharactersFace, Face
from .generation import event, streamed
from .limits import Limits, body, deadline, parsed
from .problems import Problem, json_response
from .submission import submitted

_PASSED = {"max_tokens": 16, "temperature": 1.0, "top_k": None, "seed": None, "one_word": False}  # and what they are by default
_OURS = {"model", "prompt", "stream", "stream_options", "stop", "echo", "user", *_PASSED}
_ONLY: dict[str, Sequence[Any]] = {  # what OpenAI's API has and these models have not
    "n": (1,), "best_of": (1,), "top_p": (1,), "frequency_penalty": (0,), "presence_penalty": (0,),
    "logprobs": (), "logit_bias": ({},), "suffix": ("",),
}  # fmt: skip
_STOPS, _STOP_LENGTH = 4, 64


@dataclass(frozen=True)
class _Asked:
    face: CharactersFace
    prompts: list[str]
    rows: list[Continuation]
    stops: list[str]
    echo: bool
    stream: bool
    usage: bool


class Until:
    """A text as far as the first of some stops.

    Args:
        stops: not empty ones.

    Attributes:
        over: a stop has come.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held, self.over = stops, "", False

    def feed(self, text: str) -> str:
        """What can be handed out, given some more text; the begin of a stop is held back."""
        held = self._held + text
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self.over, self._held = True, ""
            return held[: min(found)]
        begun = max((size for stop in self._stops for size in range(1, len(stop)) if held.endswith(stop[:size])), default=0)
        self._held = held[len(held) - begun :]
        return held[: len(held) - begun]

    def rest(self) -> str:
        """What is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


class Completions:
    """The endpoints ``/v1/models`` and ``/v1/completions``.

    Args:
        faces: by name; those that are language models are there.
        limits: of a request.
    """

    def __init__(self, faces: Mapping[str, Face], limits: Limits) -> None:
        self._faces = {name: face for name, face in faces.items() if isinstance(face, CharactersFace)}
        self._limits, self._began = limits, int(time.time())

    def routes(self) -> list[Route]:
        """Of Starlette."""
        return [
            Route("/v1/models", self.models),
            Route("/v1/models/{model}", self.model),
            Route("/v1/completions", self.complete, methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._described(name) for name in self._faces]})

    async def model(self, request: Request) -> Response:
        return json_response(self._described(self._face(request.path_params["model"]).name))

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "fusedrnn"}

    def _face(self, name: Any) -> CharactersFace:
        if not isinstance(name, str):
            raise Problem(422, "model must be a string")
        if name not in self._faces:
            raise Problem(404, f"there is no language model {name!r}; here are: {', '.join(map(repr, self._faces)) or 'none'}")
        return self._faces[name]

    async def complete(self, request: Request) -> Response:
        asked = self._read(parsed(await body(request, self._limits)))
        head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()), "model": asked.face.name}
        if asked.stream:
            return await self._streamed(request, asked, head)
        choices = await while_connected(request.receive, _choices(asked, deadline(request, self._limits)))
        made = sum(choice.pop("made") for choice in choices)
        return json_response({**head, "choices": choices, "usage": _usage(asked, made)})

    async def _streamed(self, request: Request, asked: _Asked, head: dict[str, Any]) -> EventStream:
        extra = {"usage": None} if asked.usage else {}

        async def made(streams: Sequence[Stream]) -> AsyncGenerator[bytes]:
            total = 0
            for index, stream in enumerate(streams):
                until = Until(asked.stops)
                if asked.echo:
                    yield event({**head, "choices": [_choice(index, asked.prompts[index])], **extra})
                async for text, length in _texts(stream, until):
                    total += length
                    if text:
                        yield event({**head, "choices": [_choice(index, text)], **extra})
                reason = _reason(asked.rows[index], stream, until)
                yield event({**head, "choices": [_choice(index, "", reason)], **extra})
            if asked.usage:
                yield event({**head, "choices": [], "usage": _usage(asked, total)})
            yield b"data: [DONE]\n\n"

        return await streamed(request, asked.face, asked.rows, made, self._limits)

    def _read(self, given: dict[str, Any]) -> _Asked:
        face = self._face(given.get("model"))
        for name, value in given.items():
            if name in _ONLY:
                if value is not None and (isinstance(value, bool) or value not in _ONLY[name]):
                    allowed = " or ".join(map(repr, _ONLY[name])) or "left out"
                    raise Problem(422, f"{name} must be {allowed}: the model {face.name!r} has nothing else")
            elif name not in _OURS:
                raise Problem(422, f"{name!r} is not known here; known: {', '.join(map(repr, sorted(_OURS | set(_ONLY))))}")
        prompts = [given["prompt"]] if isinstance(given.get("prompt"), str) else given.get("prompt", [""])
        if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            raise Problem(422, "prompt must be a string, or an array of strings with at least one")
        if len(prompts) > self._limits.rows:
            raise Problem(413, f"{len(prompts)} prompts at once: a request may have {self._limits.rows}")
        passed = {name: default if given.get(name) is None else given[name] for name, default in _PASSED.items()}
        if passed["seed"] is None:
            del passed["seed"]
        options = given.get("stream_options") or {}
        if not isinstance(options, dict):
            raise Problem(422, "stream_options must be an object")
        return _Asked(
            face, prompts, [face.row(prompt, passed) for prompt in prompts], _stops(given.get("stop")),
            _flag(given, "echo"), _flag(given, "stream"), _flag(options, "include_usage"),
        )  # fmt: skip


def _stops(stop: Any) -> list[str]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    fits = isinstance(stops, list) and len(stops) <= _STOPS
    if not fits or not all(isinstance(each, str) and 0 < len(each) <= _STOP_LENGTH for each in stops):
        raise Problem(422, f"stop must be a string of 1 to {_STOP_LENGTH} characters, or an array of at most {_STOPS} of them")
    return list(stops)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name)
    if value not in (None, False, True) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        raise Problem(422, f"{name} must be true or false")
    return bool(value)


async def _choices(asked: _Asked, seconds: float) -> list[dict[str, Any]]:
    """Of each prompt; ``made`` is how many tokens it took."""
    choices = []
    with submitted(asked.face.engine, asked.rows, priority=0, deadline=seconds) as streams:
        for index, stream in enumerate(streams):
            until, text, made = Until(asked.stops), asked.prompts[index] if asked.echo else "", 0
            async for piece, length in _texts(stream, until):
                text, made = text + piece, made + length
            choices.append({**_choice(index, text, _reason(asked.rows[index], stream, until)), "made": made})
    return choices


async def _texts(stream: Stream, until: Until) -> AsyncGenerator[tuple[str, int]]:
    """Pieces of text up to a stop, which cancels the request, and of how many tokens each was made."""
    async for chunk in stream:
        yield until.feed(chunk), len(chunk)
        if until.over:
            stream.cancel()
            return
    yield until.rest(), 0


def _choice(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _reason(row: Continuation, stream: Stream, until: Until) -> str:
    """Why a text has ended: its row took a step for each character of the prompt and each that was asked for."""
    cut = not until.over and stream.ticket.steps >= len(row.prompt) + row.most
    return "length" if cut else "stop"


def _usage(asked: _Asked, made: int) -> dict[str, int]:
    read = sum(map(len, asked.prompts))
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
