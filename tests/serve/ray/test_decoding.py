"""Files of text through Ray Data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedrnn.models import G2P, Characters
from fusedrnn.serve import CharactersModel, Continuation
from fusedrnn.serve.ray import decode
from fusedrnn.serve.ray.decoding import Decoder
from tests.serve.http.conftest import answer_of
from tests.serve.ray.models import recogniser

WORDS = ["hello", "recurrence", "naïve", "a", "x" * 65, "tensor", ""]
ENGINE = {"slots": 4, "queue": 2, "backend": "native"}


def test_a_batch_more_than_the_queue_holds() -> None:
    made = Decoder("g2p", "word", "phonemes", {}, 1, ENGINE)({"word": np.array(WORDS * 3, object), "place": np.arange(21)})
    assert made["place"].tolist() == list(range(21))
    for word, phonemes, error in zip(made["word"].tolist(), made["phonemes"].tolist(), made["error"].tolist(), strict=True):
        if len(word) > 64:
            assert (phonemes, error.startswith("a word may have 64 letters")) == ("", True)
        else:
            assert (phonemes, error) == (" ".join(G2P.pretrained()([word], backend="reference")[0]), "")


def test_what_fails_late_and_what_is_no_text() -> None:
    made = Decoder("chars", "text", "output", {"max_tokens": 9, "seed": 1, "one_word": False}, 1, {**ENGINE, "step_limit": 12, "steps": 1})(
        {"text": np.array(["in", "internat", None], object)}
    )
    assert len(made["output"][0]) == 9
    assert made["output"].tolist()[1:] == ["", ""]
    assert [error[:26] for error in made["error"]] == ["", "the request has not finish", "prompt must be a str, got "]


def test_models_that_make_no_text_and_parameters_that_are_not_known() -> None:
    with pytest.raises(TypeError, match="'recogniser' makes no text"):
        Decoder(recogniser, "text", "output", {}, 1, {"slots": 2, "backend": "native"})
    with pytest.raises(Exception, match="'heat' is not known to the model 'chars'"):
        Decoder("chars", "text", "output", {"heat": 1}, 1, ENGINE)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_file_of_words_by_two_workers(cluster: Any, tmp_path: Path) -> None:
    from ray import data

    words = [word for word in WORDS if word] + [f"word{'abcdefgh'[number % 8] * (number % 9)}" for number in range(300)]
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n", "utf-8")
    made = decode(data.read_text(str(tmp_path / "words.txt")), "g2p", workers=2, batch_size=50, slots=8)
    made.write_json(str(tmp_path / "phonemes"))
    rows = [json.loads(line) for path in (tmp_path / "phonemes").glob("*.json") for line in path.read_text("utf-8").splitlines()]
    expected = dict(zip(words, G2P.pretrained()([word if len(word) < 65 else "" for word in words], backend="reference"), strict=True))
    assert sorted(row["text"] for row in rows) == sorted(words)
    for row in rows:
        long = len(row["text"]) > 64
        assert row["phonemes"] == ("" if long else " ".join(expected[row["text"]]))
        assert bool(row["error"]) == long

    with pytest.warns(RuntimeWarning, match="4 workers of 1 CPUs leave none of the cluster's 4"):
        decode(data.from_items([{"text": "a"}]), workers=4, cpus=1)

    drawn = decode(data.from_items([{"begin": "re"}, {"begin": "in"}]), "chars", column="begin", workers=1, parameters={"seed": 7})
    one, other = answer_of(CharactersModel(Characters.pretrained()), Continuation("re", seed=7), Continuation("in", seed=7))
    assert {row["begin"]: row["output"] for row in drawn.take_all()} == {"re": "".join(one), "in": "".join(other)}
