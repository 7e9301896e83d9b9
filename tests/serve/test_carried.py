"""Sealed states: what was sealed opens to the same bits, and nothing else opens."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fusedrnn.models import Recogniser
from fusedrnn.serve.carried import Carried, fingerprint

KEY = b"sixteen bytes or more"


def model(seed: int = 0, hidden: int = 7) -> Recogniser:
    torch.manual_seed(seed)
    return Recogniser(3, 2, hidden_size=hidden)


@given(arrays.arrays(np.float32, 7, elements={"allow_nan": True}))
def test_what_was_sealed_opens_to_the_same_bits(state: np.ndarray) -> None:
    text = Carried(model(), (7,), KEY).seal(state)
    other = Carried(model(), (7,), KEY)
    assert other.open(text).tobytes() == state.tobytes()
    assert len(text) == other.size


@given(st.data())
def test_not_a_bit_of_it_may_be_changed(data: st.DataObject) -> None:
    carried = Carried(model(), (7,), data.draw(st.sampled_from([None, KEY])))
    content = bytearray(base64.urlsafe_b64decode(carried.seal(np.ones(7, np.float32))))
    how = data.draw(st.sampled_from(["flip", "cut", "more"]))
    if how == "flip":
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    elif how == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content += data.draw(st.binary(min_size=1, max_size=9))
    with pytest.raises(ValueError, match="the state"):
        carried.open(base64.urlsafe_b64encode(content).decode())


@given(st.text(max_size=30))
def test_no_text_does_harm(text: str) -> None:
    with pytest.raises(ValueError, match="the state cannot be read"):
        Carried(model(), (7,)).open(text)


def test_states_of_others() -> None:
    state = np.zeros(7, np.float32)
    mine = Carried(model(), (7,), KEY)
    with pytest.raises(ValueError, match="another key"):
        mine.open(Carried(model(), (7,)).seal(state))
    with pytest.raises(ValueError, match="another model"):
        mine.open(Carried(model(1), (7,), KEY).seal(state))
    with pytest.raises(ValueError, match="another model"):
        mine.open(Carried(model(hidden=8), (8,), KEY).seal(np.zeros(8, np.float32)))
    newer = bytearray(base64.urlsafe_b64decode(mine.seal(state)))
    newer[4] = 2
    with pytest.raises(ValueError, match="version 2, this server has 1"):
        mine.open(base64.urlsafe_b64encode(newer).decode())
    with pytest.raises(ValueError, match=f"has {mine.size} characters here, this one has 1000000"):
        mine.open("a" * 10**6)
    with pytest.raises(ValueError, match="16 bytes or more, got 5"):
        Carried(model(), (7,), b"short")


def test_a_fingerprint_knows_the_form_and_the_weights() -> None:
    assert fingerprint(model()) == fingerprint(model())
    changed = model()
    with torch.no_grad():
        changed.project.bias[0] += 1e-7
    assert fingerprint(changed) != fingerprint(model())
    assert fingerprint(torch.nn.Sequential(torch.nn.Tanh())) != fingerprint(torch.nn.Sequential(torch.nn.Sigmoid()))
