"""OpenAI's completions over a real socket."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn.serve import CharactersModel, Continuation
from fusedrnn.serve.http.completions import Until
from tests.serve.http.conftest import answer_of
from tests.serve.http.test_generation import events

PATH = "/v1/completions"
BODY = {"model": "chars", "prompt": "inter", "max_tokens": 40, "temperature": 0.7, "seed": 11}


def text_of(model: CharactersModel, request: Continuation) -> str:
    return "".join(answer_of(model, request)[0])


def test_models(client: httpx.Client) -> None:
    (found,) = client.get("/v1/models").json()["data"]
    assert (found["id"], found["object"]) == ("chars", "model")
    assert client.get("/v1/models/chars").json() == found
    assert client.get("/v1/models/g2p").json()["error"]["code"] == "not_found"


def test_a_completion(client: httpx.Client, characters: CharactersModel) -> None:
    answer = client.post(PATH, json=BODY).json()
    (choice,) = answer["choices"]
    assert choice == {
        "index": 0,
        "text": text_of(characters, Continuation("inter", 40, 0.7, None, 11, False)),
        "logprobs": None,
        "finish_reason": "length",
    }
    assert (answer["object"], answer["model"]) == ("text_completion", "chars")
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 40, "total_tokens": 45}
    word = client.post(PATH, json={**BODY, "temperature": 0, "one_word": True, "echo": True}).json()["choices"][0]
    assert word["text"].startswith("inter")
    assert " " not in word["text"]
    assert word["finish_reason"] == "stop"


def test_several_prompts_and_a_stream_of_them(client: httpx.Client) -> None:
    body = {**BODY, "prompt": ["re", "un"]}
    whole = [choice["text"] for choice in client.post(PATH, json=body).json()["choices"]]
    streamed = events(client.post(PATH, json={**body, "stream": True, "stream_options": {"include_usage": True}}))
    assert streamed[-1] == ("", "[DONE]")
    chunks = [data for _, data in streamed[:-1]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 80
    texts = ["", ""]
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == whole
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]].count("length") == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_the_text_before_it(client: httpx.Client, stream: bool) -> None:
    text = client.post(PATH, json={**BODY, "max_tokens": 400}).json()["choices"][0]["text"]
    stop = text[20:23]
    answer = client.post(PATH, json={**BODY, "max_tokens": 400, "stop": ["999", stop], "stream": stream})
    choices = [data["choices"][0] for _, data in events(answer)[:-1]] if stream else answer.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == text[: text.index(stop)]
    assert choices[-1]["finish_reason"] == "stop"


@given(st.lists(st.text("ab", max_size=3)), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_until_is_a_cut_of_the_whole(pieces: list[str], stops: list[str]) -> None:
    until, made, text = Until(stops), "", "".join(pieces)
    for piece in pieces:
        made += until.feed(piece)
        assert text.startswith(made)
        if until.over:
            break
    made += until.rest()
    if not until.over:
        assert made == text
        assert not any(stop in text for stop in stops)
        return
    ended = min(text.index(stop) + len(stop) for stop in stops if stop in text)  # the stop that is whole first
    assert any(made + stop == text[: len(made) + len(stop)] for stop in stops)
    assert len(made) < ended


BAD: list[tuple[Any, int, str]] = [
    ({}, 422, "model must be a string"),
    ({"model": "g2p"}, 404, "no language model 'g2p'"),
    ({**BODY, "prompt": []}, 422, "prompt must be"),
    ({**BODY, "prompt": [1, 2]}, 422, "prompt must be"),
    ({**BODY, "prompt": ["a"] * 41}, 413, "may have 40"),
    ({**BODY, "prompt": "a" * 65}, 422, "a prompt may have 64"),
    ({**BODY, "n": 2}, 422, "n must be 1"),
    ({**BODY, "logprobs": 1}, 422, "logprobs must be left out"),
    ({**BODY, "top_p": 0.5}, 422, "top_p must be 1"),
    ({**BODY, "stream": 1}, 422, "stream must be true or false"),
    ({**BODY, "stop": ["a"] * 5}, 422, "stop must be"),
    ({**BODY, "stop": ""}, 422, "stop must be"),
    ({**BODY, "stream_options": 3}, 422, "stream_options must be an object"),
    ({**BODY, "tools": []}, 422, "'tools' is not known"),
    ({**BODY, "max_tokens": 0}, 422, "max_tokens must be a whole number from 1 to 4096, got 0"),
    ({**BODY, "temperature": "hot"}, 422, "temperature must be a number"),
]


@pytest.mark.parametrize(("body", "status", "said"), BAD)
def test_bad_bodies(client: httpx.Client, body: Any, status: int, said: str) -> None:
    answer = client.post(PATH, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, said in error["message"]) == (status, True), answer.text
    assert error["type"] == "invalid_request_error"
