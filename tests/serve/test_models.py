"""The shipped models, served: what they give is what they give without a server."""

from __future__ import annotations

import asyncio
import math
import pickle
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
import torch

from fusedrnn.models import G2P, Characters, Recogniser
from fusedrnn.models.characters import ALPHABET, SPACE, text, tokens
from fusedrnn.serve import CharactersModel, Continuation, Engine, G2PModel, Piece, RecogniserModel, Scheduler, Session
from tests.serve.loops import alone, slowed

pytestmark = pytest.mark.usefixtures("auto")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def served(model: Any, requests: list[Any], slots: int = 5) -> list[list[Any]]:
    """The chunks of requests that come at once."""
    scheduler = Scheduler(model, slots)
    tickets = [scheduler.submit(request) for request in requests]
    while scheduler.step():
        pass
    assert [ticket.error for ticket in tickets] == [None] * len(tickets)
    return [list(ticket.chunks) for ticket in tickets]


def flat(chunks: list[list[str]]) -> list[str]:
    return [piece for chunk in chunks for piece in chunk]


@pytest.fixture(scope="module")
def g2p() -> G2PModel:
    torch.manual_seed(0)
    return G2PModel(G2P(embedding_size=12, hidden_size=24), most_letters=12)


def test_served_words_have_the_phonemes_that_the_model_gives(g2p: G2PModel) -> None:
    words = ["", "a", "Hello", "tensor", "zürich", "x" * 12, *[f"word{'abc'[n % 3] * (n % 7)}" for n in range(70)]]
    made = served(g2p, words, slots=80)
    assert [flat(chunks) for chunks in made] == g2p.model(words, backend="reference")
    assert [flat(chunks) for chunks in served(g2p, words, slots=3)] == [flat(chunks) for chunks in made]


def test_the_encoder_gives_a_word_the_same_bits_in_any_company(g2p: G2PModel) -> None:
    words = ["hello", "a", "tensor", "flow", "b" * 12]
    alone_each = [g2p.admit([word])[0]["state"] for word in words]  # type: ignore[index]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [1, 1, 1, 0, 2, 3, 4] * 20):
        together = g2p.admit([words[place] for place in order])
        for place, values in zip(order, together, strict=True):
            assert torch.equal(values["state"], alone_each[place])  # type: ignore[index]


def test_pretrained_words(g2p: G2PModel) -> None:
    pytest.importorskip("g2p_en")
    made = served(G2PModel(G2P.pretrained()), ["hello", "tensor"])
    assert [flat(chunks) for chunks in made] == [["HH", "EH1", "L", "OW0"], ["T", "EH1", "N", "S", "ER0"]]


@pytest.mark.parametrize(("request_", "error", "words"), [
    (5, TypeError, "a word must be a str, got int"),
    ("y" * 13, ValueError, "a word may have 12 letters, this one has 13"),
    ("İ" * 7, ValueError, "a word may have 12 letters, this one has 14 in lower case"),
])  # fmt: skip
def test_what_is_no_word_is_refused(g2p: G2PModel, request_: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        g2p.check(request_)


@pytest.fixture(scope="module")
def characters() -> CharactersModel:
    pytest.importorskip("safetensors")
    return CharactersModel(Characters.pretrained(), most_prompt=12, most=64)


def joined(chunks: list[str]) -> str:
    return "".join(chunks)


def test_greedy_continuations_are_the_most_probable_characters(characters: CharactersModel) -> None:
    prompts = ["", "inter", "q", "the ", "O'", "zzzzzzzzzzzz"]
    made = [joined(chunks) for chunks in served(characters, [Continuation(prompt, 10, one_word=False) for prompt in prompts])]
    for prompt, continuation in zip(prompts, made, strict=True):
        assert len(continuation) == 10
        whole = torch.tensor(tokens(prompt + continuation)).unsqueeze(1)
        said = characters.model(whole, backend="reference")[:, 0].argmax(-1).tolist()
        assert text(said[len(prompt) :]) == continuation
    assert made[2].startswith("u")


def test_one_word_ends_before_its_space(characters: CharactersModel) -> None:
    (whole,), (word,) = (served(characters, [Continuation("inter", 30, one_word=one)]) for one in (False, True))
    assert joined(word) == joined(whole).partition(" ")[0]


def test_draws_follow_temperature_top_k_and_seed(characters: CharactersModel) -> None:
    requests = [Continuation("s", 1, temperature=1.0, seed=seed, one_word=False) for seed in range(400)]
    drawn = Counter(joined(chunks) for chunks in served(characters, requests, slots=101))
    logits = characters.model(torch.tensor([tokens("s" + "a")]).T, backend="reference")[1, 0]
    wanted = logits.softmax(-1)
    for place, letter in enumerate(ALPHABET):
        assert abs(drawn[letter] / 400 - wanted[place]) < 4 * math.sqrt(0.25 / 400) * 0.6
    three = {ALPHABET[place] for place in logits.topk(3).indices.tolist()}
    cut = [Continuation("s", 1, temperature=2.0, top_k=3, seed=seed, one_word=False) for seed in range(60)]
    assert {joined(chunks) for chunks in served(characters, cut, slots=101)} == three
    cold = [Continuation("s", 5, temperature=0.7, top_k=1, seed=seed) for seed in range(5)]
    assert len({joined(chunks) for chunks in served(characters, cold)}) == 1


def test_a_seed_gives_the_same_text_in_any_company(characters: CharactersModel) -> None:
    requests = [Continuation("un", 20 + seed, temperature=0.9, seed=seed, one_word=False) for seed in range(12)]
    together = [joined(chunks) for chunks in served(characters, requests, slots=4)]
    assert [joined(served(characters, [request], slots=2)[0]) for request in requests] == together
    assert len(set(together)) == 12


def test_a_continuation_is_what_raw_rnn_gives(characters: CharactersModel) -> None:
    request = Continuation("co", 15, temperature=0.8, top_k=9, seed=-3, one_word=False)
    (emits,), _ = alone(characters, request, slots=3, slot=1)
    written = text([token for token in emits.tolist() if token >= 0])
    assert joined(served(characters, [request])[0]) == written
    assert emits[:2].tolist() == [-1, -1]
    assert SPACE in emits.tolist()


@pytest.mark.parametrize(("request_", "error", "words"), [
    ("hello", TypeError, "a request must be a Continuation, got str"),
    (Continuation("ü"), ValueError, "there is no 'ü' in the alphabet"),
    (Continuation("a" * 13), ValueError, "a prompt may have 12 characters, this one has 13"),
    (Continuation(most=0), ValueError, "most must be at least 1 and at most 64, got 0"),
    (Continuation(most=65), ValueError, "most must be at least 1 and at most 64, got 65"),
    (Continuation(most=True), TypeError, "most must be an int, got True"),
    (Continuation(top_k=0), ValueError, "top_k must be at least 1, got 0"),
    (Continuation(temperature=-1.0), ValueError, "temperature must be at least 0 and finite in float32, got -1.0"),
    (Continuation(temperature=1e39), ValueError, "temperature must be at least 0 and finite in float32"),
    (Continuation(temperature=math.nan), ValueError, "temperature must be at least 0 and finite in float32, got nan"),
    (Continuation(seed=0.5), TypeError, "seed must be an int, got 0.5"),  # type: ignore[arg-type]
    (Continuation(one_word=1), TypeError, "one_word must be a bool, got 1"),  # type: ignore[arg-type]
])  # fmt: skip
def test_what_is_no_continuation_is_refused(characters: CharactersModel, request_: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        characters.check(request_)


def recogniser(classes: int = 1) -> RecogniserModel:
    torch.manual_seed(1)
    return RecogniserModel(Recogniser(5, classes, 20), most_frames=9)


def stream(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, 5)).astype(np.float32)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_stream_gives_the_same_bits_wherever_it_is_cut(classes: int) -> None:
    model = recogniser(classes)

    async def main() -> None:
        frames = stream(50)
        want, final = model.model(torch.from_numpy(frames).unsqueeze(1), backend="reference")
        async with Engine(model, 4) as engine:

            async def heard(cuts: list[int]) -> tuple[np.ndarray, Any]:
                session = Session(engine)
                parts = []
                for piece in np.split(frames, cuts):
                    parts += [chunk async for chunk in session.push(piece)]
                    session = Session(engine, pickle.loads(pickle.dumps(session.state)))  # as another process would go on
                return np.concatenate(parts), session.state

            made = await asyncio.gather(*[heard(cuts) for cuts in ([], [1, 2, 3], [10, 20, 29, 47], [25], [0, 49])])
        for probabilities, state in made:
            assert probabilities.shape == (50, classes)
            assert probabilities.tobytes() == made[0][0].tobytes()
            assert state.tobytes() == made[0][1].tobytes()
        torch.testing.assert_close(torch.from_numpy(made[0][0]), want[:, 0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(torch.from_numpy(made[0][1]), final[0], rtol=1e-5, atol=1e-6)

    run(main())


def test_a_piece_that_is_given_up_leaves_the_session_as_it_was() -> None:
    async def main() -> None:
        async with slowed(Engine(recogniser(), 2, steps=1)) as engine:
            session = Session(engine)
            pushed = session.push(stream(9))
            await anext(pushed)
            await pushed.aclose()  # type: ignore[attr-defined]
            assert session.state is None
            assert engine.metrics.cancelled == 1
            assert sum([len(chunk) async for chunk in session.push(stream(9))]) == 9
            assert session.state is not None

    run(main())


@pytest.mark.parametrize(("request_", "error", "words"), [
    (stream(3), TypeError, "a request must be a Piece, got ndarray"),
    (Piece(stream(3).astype(np.float64)), TypeError, "frames must be a float32 array, got float64"),
    (Piece(stream(3)[:, :4]), ValueError, r"frames must have shape \[n, 5\], got \[3, 4\]"),
    (Piece(stream(3), np.zeros(3, np.float32)), ValueError, r"state must have shape \[20\], got \[3\]"),
    (Piece(stream(10)), ValueError, "a piece may have 9 frames, this one has 10"),
])  # fmt: skip
def test_what_is_no_piece_is_refused(request_: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        recogniser().check(request_)


def test_a_session_needs_a_recogniser(characters: CharactersModel) -> None:
    with pytest.raises(TypeError, match="engine must serve a RecogniserModel, it serves CharactersModel"):
        Session(Engine(characters, 2))
