"""Tensors there and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fusedrnn.serve.http import Problem, tensors

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NUMBERS = st.sampled_from(["<f4", "<f8", "<i4", "<i8"]).flatmap(
    lambda kind: arrays.arrays(np.dtype(kind), SHAPES, elements={"allow_nan": False, "allow_infinity": False} if "f" in kind else None)
)
WORDS = st.text().filter(lambda text: _utf8(text)).map(str.encode)
TEXTS = SHAPES.flatmap(lambda shape: arrays.arrays(np.dtype("O"), shape, elements=WORDS, fill=st.nothing()))


def _utf8(text: str) -> bool:
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


@given(st.lists(st.one_of(NUMBERS, TEXTS), min_size=1, max_size=3), st.booleans())
def test_what_is_written_can_be_read(every: list[Any], binary: bool) -> None:
    named = {f"t{place}": array for place, array in enumerate(every)}
    content, length = tensors.write({}, named, dict.fromkeys(named, binary))
    head = json.loads(content[:length])
    head["inputs"] = head.pop("outputs")
    text = json.dumps(head).encode()
    asked = tensors.read(text + content[length:] if length is not None else text, None if length is None else str(len(text)))
    assert list(asked.inputs) == list(named)
    for name, array in named.items():
        assert asked.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(asked.inputs[name], array)


def test_zeros_behind_text_are_kept() -> None:
    content, _ = tensors.write({}, {"t": tensors.of_strings(["a\0", ""])}, {"t": False})
    assert json.loads(content)["outputs"][0]["data"] == ["a\0", ""]


def test_nan_has_no_number_in_json() -> None:
    array = np.array([np.nan], np.float32)
    with pytest.raises(Problem, match="t holds NaN"):
        tensors.write({}, {"t": array}, {"t": False})
    content, length = tensors.write({}, {"t": array}, {"t": True})
    assert length is not None
    assert np.isnan(np.frombuffer(content[length:], "<f4")).all()


def test_an_int_that_a_datatype_cannot_hold_is_refused() -> None:
    entry = {"name": "t", "datatype": "INT32", "shape": [1], "data": [2**40]}
    with pytest.raises(Problem, match="no INT32"):
        tensors.read(json.dumps({"inputs": [entry]}).encode(), None)
