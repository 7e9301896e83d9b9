"""Columns as expressions: what they print is what numpy finds at the same index."""

import numpy as np
import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn.lowering.gpu.columns import C, Columns, counter, divided, interval, joined, rounds, taken_apart, text

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def value_of(at, width, **counters):
    return eval(text(at, width), {f"c{width}": np.arange(width), **counters})


@given(SIZES)
def test_an_index_and_back(sizes):
    width = int(np.prod(sizes))
    index = taken_apart(C, sizes, width)
    assert [np.broadcast_to(value_of(place, width), width).tolist() for place in index] == [
        place.tolist() for place in np.unravel_index(np.arange(width), sizes)
    ]
    assert np.broadcast_to(value_of(joined(index, sizes), width), width).tolist() == list(range(width))
    for place, size in zip(index, sizes, strict=True):
        low, high = interval(place, width)
        assert (low, high) == (0, size - 1)


@given(SIZES, st.randoms())
def test_permuted_twice(sizes, random):
    """A permutation's columns, and those of its inverse behind it."""
    width, order = int(np.prod(sizes)), list(range(len(sizes)))
    random.shuffle(order)
    new = [sizes[place] for place in order]
    index = dict(zip(order, taken_apart(C, new, width), strict=True))
    at = joined([index[place] for place in range(len(sizes))], sizes)
    expected = np.arange(width).reshape(sizes).transpose(order).flatten()
    assert np.broadcast_to(value_of(at, width), width).tolist() == expected.tolist()


@given(SIZES, st.integers(-30, 30), st.integers(1, 7))
def test_a_kernel_cuts_quotients_off(sizes, begin, by):
    """As C does, not as Python: what a view behind a shift divides is not negative."""
    width = int(np.prod(sizes))
    quotient, remainder = divided(C + begin, by, width)
    for made in (quotient, remainder):
        for divided_ in made.atoms(sympy.Function):
            low, _ = interval(divided_.args[0], width)
            assert low >= 0
    at = np.arange(width) + begin
    assert np.broadcast_to(value_of(quotient, width), width).tolist() == (at // by).tolist()
    assert np.broadcast_to(value_of(remainder, width), width).tolist() == (at % by).tolist()


def test_a_shift_within_a_dimension_and_back():
    index = taken_apart(joined([counter(0, 3), C + 2], [3, 6]) - 12, [3, 6], 4)
    assert str(joined(index, [3, 6])) == "c + 6*r0_of3 - 10"


def test_whole_dimensions_are_not_divided():
    row = counter(0, 3)
    at = joined([row, C], [3, 8])
    assert taken_apart(at, [3, 8], 8) == [row, C]
    assert str(at) == "c + 8*r0_of3"
    assert divided(at, 8, 8) == (row, C)
    assert rounds(row) == 3
    assert rounds(C) is None


@pytest.mark.parametrize(
    ("at", "size", "within"), [(C, 8, True), (C + 1, 8, False), (C - 1, 8, False), (7 - C, 8, True), (2 * C, 15, True)]
)
def test_within(at, size, within):
    assert Columns(8, at).within(size) is within


def test_text():
    assert Columns(8, C).index == "c8"
    assert Columns(8, C + 2).index == "(c8 + 2)"
    assert Columns(0, counter(1, 4) * 3).index == "(3*r1_of4)"
    assert Columns(0, C - C).mask is None
