"""Trees: structure in, leaves out, and errors that say where two trees differ."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn import trees

Pair = namedtuple("Pair", "h c")
SamePair = namedtuple("Pair", "h c")  # another class of the same name and fields
OtherPair = namedtuple("OtherPair", "h c")

LEAVES = st.integers() | st.none() | st.just(torch.Size([2, 3]))
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        | st.tuples(inner, inner).map(lambda pair: Pair(*pair))
    ),
    max_leaves=8,
)


@given(TREES)
def test_a_tree_is_its_structure_and_its_leaves(tree):
    leaves, structure = trees.flatten(tree)
    assert trees.unflatten(structure, leaves) == tree
    assert trees.match(structure, tree, "x") == leaves
    assert len(trees.paths(structure)) == len(leaves)


@given(TREES)
def test_the_slow_path_agrees_with_the_fast_one(tree):
    leaves, structure = trees.flatten(tree)
    found = []
    trees._align(trees.unflatten(structure, [0] * structure.num_leaves), tree, "x", found)
    assert found == leaves


def test_none_and_size_are_leaves():
    assert trees.leaves((None, torch.Size([3, 4]), torch.Size(()))) == [None, torch.Size([3, 4]), torch.Size(())]


@pytest.mark.parametrize("mapping", [dict, OrderedDict])
def test_key_order_and_kind_of_mapping_are_immaterial(mapping):
    _, structure = trees.flatten({"a": 1, "b": 2})
    assert trees.match(structure, mapping([("b", 4), ("a", 3)]), "x") == [3, 4]


def test_namedtuples_match_by_name_and_fields():
    _, structure = trees.flatten(Pair(1, (2, 3)))
    assert trees.match(structure, SamePair(4, (5, 6)), "x") == [4, 5, 6]
    with pytest.raises(TypeError, match=r"x: expected a Pair, got OtherPair\(1, \(2, 3\)\)"):
        trees.match(structure, OtherPair(1, (2, 3)), "x")


@pytest.mark.parametrize(
    ("expected", "got", "kind", "words"),
    [
        ((1, [2, 3]), (1, (2, 3)), TypeError, r"x\[1\]: expected a list, got \(2, 3\)"),
        (Pair(1, 2), (1, 2), TypeError, r"x: expected a Pair, got \(1, 2\)"),
        ((1, 2), Pair(1, 2), TypeError, r"x: expected a tuple, got Pair\(1, 2\)"),
        ({"a": (1,)}, {"a": [1]}, TypeError, r"x\['a'\]: expected a tuple, got \[1\]"),
        ((1, 2), {"a": 1}, TypeError, r"x: expected a tuple, got \{'a': 1\}"),
        ((1, 2), (1, 2, 3), ValueError, r"x: expected a tuple of 2, got one of 3: \(1, 2, 3\)"),
        ({"a": 1}, {"b": 1}, ValueError, r"x: expected the keys \{'a'\}, got \{'b'\}"),
        ((1, (2, 3)), (1, 2), ValueError, r"x\[1\]: expected a tuple, got 2"),
        (Pair(1, (2,)), Pair(1, 2), ValueError, r"x\.c: expected a tuple, got 2"),
    ],
)
def test_a_mismatch_names_the_place_and_both_sides(expected, got, kind, words):
    with pytest.raises(kind, match=words):
        trees.match(trees.flatten(expected)[1], got, "x")


def test_describe_shows_tensors_by_dtype_and_shape():
    tree = {"a": torch.zeros(3, 5), "b": [torch.zeros((), dtype=torch.int64), None], "c": (object(),)}
    assert trees.describe(tree) == "{'a': float32[3, 5], 'b': [int64[], None], 'c': (an object of type object,)}"


def test_map_leaves_goes_through_several_trees():
    assert trees.map_leaves(lambda a, b: a + b, {"x": 1, "y": (2,)}, {"y": (20,), "x": 10}) == {"x": 11, "y": (22,)}
