"""`generate` and `generate_stream`, and what is broken midway."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from fusedrnn.models import Characters
from fusedrnn.serve import CharactersModel, Continuation
from fusedrnn.serve.http.faces import CharactersFace
from tests.serve.http.conftest import Running, answer_of, characters_engine

CHARS, G2P = "/v2/models/chars/generate", "/v2/models/g2p/generate"


class Breaking(CharactersModel):
    """Fails at the second chunk of what begins with "break", and at the first of what begins with "never"."""

    def __init__(self, model: Characters) -> None:
        super().__init__(model)
        self.begun = set[Continuation]()

    def emit(self, request: Continuation, values: Any) -> str | None:
        text = super().emit(request, values)
        if request.prompt == "never" or (text and request in self.begun):
            raise RuntimeError("this model is broken")
        if text and request.prompt == "break":
            self.begun.add(request)
        return text


def events(answer: httpx.Response) -> list[tuple[str, Any]]:
    found = []
    for block in answer.text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"]
        found.append((fields.get("event", ""), json.loads(data) if data != "[DONE]" else data))
    return found


def test_phonemes(client: httpx.Client) -> None:
    answer = client.post(G2P, json={"text_input": "hello", "id": "7"}).json()
    assert answer == {"id": "7", "model_name": "g2p", "model_version": "1", "text_output": "HH EH1 L OW0"}
    stream = client.post(f"{G2P}_stream", json={"text_input": "antidisestablishmentarianism"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    whole = client.post(G2P, json={"text_input": "antidisestablishmentarianism"}).json()["text_output"]
    assert "".join(data["text_output"] for _, data in events(stream)) == whole


def test_characters_as_the_engine_gives_them(client: httpx.Client, characters: CharactersModel) -> None:
    parameters = {"max_tokens": 150, "temperature": 0.8, "top_k": 5, "seed": 3, "one_word": False}
    ((*pieces,),) = answer_of(characters, Continuation("re", 150, 0.8, 5, 3, False))
    whole = client.post(CHARS, json={"text_input": "re", "parameters": parameters}).json()["text_output"]
    assert whole == "".join(pieces)
    stream = events(client.post(f"{CHARS}_stream", json={"text_input": "re", "parameters": parameters}))
    assert "".join(data["text_output"] for _, data in stream) == whole
    assert len(stream) > 1
    assert len(client.post(CHARS, json={"text_input": "re"}).json()["text_output"]) <= 32


def test_without_a_seed_each_request_draws_for_itself(client: httpx.Client) -> None:
    parameters = {"max_tokens": 60, "temperature": 1.0, "one_word": False}
    made = {client.post(CHARS, json={"text_input": "", "parameters": parameters}).json()["text_output"] for _ in range(3)}
    assert len(made) == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "text_input must be a string"),
        ({"text_input": 1}, "text_input must be a string"),
        ({"text_input": "a", "parameters": []}, "parameters must be an object"),
        ({"text_input": "a", "id": 1}, "id must be a string"),
        ({"text_input": "a", "stream": True}, "'stream' is not known"),
        ({"text_input": "a", "parameters": {"top_p": 1}}, "'top_p' is not known to the model 'chars'"),
        ({"text_input": "a", "parameters": {"max_tokens": 5000}}, "max_tokens must be a whole number from 1 to 4096, got 5000"),
        ({"text_input": "a", "parameters": {"temperature": 10**400}}, "temperature"),
        ({"text_input": "a", "parameters": {"temperature": float("nan")}}, "temperature"),
        ({"text_input": "a", "parameters": {"temperature": None}}, "temperature"),
        ({"text_input": "a", "parameters": {"seed": 0.5}}, "seed must be an int"),
        ({"text_input": "ä"}, "there is no 'ä' in the alphabet"),
        ({"text_input": "\ud800"}, "in the alphabet"),
    ],
)
@pytest.mark.parametrize("path", [CHARS, f"{CHARS}_stream"])
def test_bad_bodies(client: httpx.Client, path: str, body: Any, said: str) -> None:
    answer = client.post(path, content=json.dumps(body).encode())
    assert (answer.status_code, said in answer.json()["error"]) == (422, True), answer.text


class Halting(CharactersFace):
    """Fails at the second chunk, by a fault of its own."""

    def text(self, chunk: Any, first: bool) -> str:
        if not first:
            raise LookupError("a fault of the face")
        return super().text(chunk, first)


def test_the_log_tells_of_a_fault_midway(caplog: pytest.LogCaptureFixture) -> None:
    face = Halting(characters_engine(CharactersModel(Characters.pretrained()), steps=2))
    with Running(face) as running, running.client() as client:
        body = {"text_input": "a", "parameters": {"max_tokens": 50, "temperature": 1.0, "seed": 1, "one_word": False}}
        (kind, last) = events(client.post(f"{CHARS}_stream", json=body))[-1]
    assert (kind, last) == ("error", {"error": "the server has a fault, which its log tells of"})
    assert "LookupError: a fault of the face" in caplog.text


def test_what_fails_midway_is_an_error_event() -> None:
    with Running(characters_engine(Breaking(Characters.pretrained()), steps=2)) as running, running.client() as client:
        body = {"text_input": "break", "parameters": {"max_tokens": 50, "temperature": 1.0, "seed": 1, "one_word": False}}
        stream = client.post(f"{CHARS}_stream", json=body)
        assert stream.status_code == 200
        *good, (kind, last) = events(stream)
        assert good
        assert all(not each and "text_output" in data for each, data in good)
        assert kind == "error"
        assert last == {"error": "RuntimeError: this model is broken"}

        whole = client.post(CHARS, json=body)
        assert whole.status_code == 500
        for path in (CHARS, f"{CHARS}_stream"):  # before the first event there is a status to say it with
            early = client.post(path, json={**body, "text_input": "never"})
            assert early.status_code == 500
            assert early.json() == {"error": "RuntimeError: this model is broken"}

        openai = {"model": "chars", "prompt": "break", "max_tokens": 50, "seed": 2, "stream": True}
        kind, last = events(client.post("/v1/completions", json=openai))[-1]
        assert kind == "error"
        assert last["error"]["message"] == "RuntimeError: this model is broken"
        assert client.post(CHARS, json={"text_input": "fine"}).status_code == 200
        assert running.engine.metrics.failed >= 4
