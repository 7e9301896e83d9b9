"""Clients of others, unchanged. They are not needed to run the other tests."""

from __future__ import annotations

import numpy as np
import pytest

from fusedrnn.models import G2P, Characters
from tests.serve.http.conftest import Running, characters_engine
from tests.serve.http.test_generation import Breaking


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient(both: Running, binary: bool) -> None:
    http = pytest.importorskip("tritonclient.http")
    words = ["hello", "naïve", ""]
    with http.InferenceServerClient(f"127.0.0.1:{both.port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("g2p")
        assert client.get_server_metadata()["name"] == "fusedrnn"
        (spec,) = client.get_model_metadata("g2p")["inputs"]
        given = http.InferInput("words", [3], spec["datatype"])
        given.set_data_from_numpy(np.array([word.encode() for word in words], dtype=object), binary_data=binary)
        wanted = [http.InferRequestedOutput("phonemes", binary_data=binary)]
        for outputs in (wanted, None):
            made = client.infer("g2p", [given], outputs=outputs, request_id="1", timeout=20_000_000, priority=1)
            expected = [" ".join(phonemes) for phonemes in G2P.pretrained()(words, backend="reference")]
            assert [_text(each) for each in made.as_numpy("phonemes")] == expected
            assert made.get_response()["id"] == "1"
        with pytest.raises(_error(), match="no model 'x'"):
            client.infer("x", [given])


def _text(element: bytes | str) -> str:
    return element.decode() if isinstance(element, bytes) else element


def _error() -> type[Exception]:
    return pytest.importorskip("tritonclient.utils").InferenceServerException


def test_openai(both: Running) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{both.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["chars"]
        asked = {"model": "chars", "prompt": "inter", "max_tokens": 60, "temperature": 0.8, "seed": 3}
        whole = client.completions.create(**asked)
        assert whole.usage.completion_tokens == len(whole.choices[0].text) == 60
        pieces = list(client.completions.create(**asked, stream=True, extra_body={"top_k": None}))
        assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
        assert pieces[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.NotFoundError, match="no language model 'gpt'"):
            client.completions.create(model="gpt", prompt="a")
        with pytest.raises(openai.UnprocessableEntityError, match="alphabet"):
            client.completions.create(model="chars", prompt="ä")
        with pytest.raises(openai.InternalServerError, match="deadline"):
            client.completions.create(**asked, extra_headers={"Request-Timeout": "0"})


def test_openai_sees_what_fails_midway() -> None:
    openai = pytest.importorskip("openai")
    engine = characters_engine(Breaking(Characters.pretrained()), steps=2)
    with Running(engine) as running, openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        pieces = client.completions.create(model="chars", prompt="break", max_tokens=50, seed=2, stream=True)
        assert next(pieces).choices[0].text
        with pytest.raises(openai.APIError, match="this model is broken"):
            list(pieces)
