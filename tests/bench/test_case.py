"""Cases as they are declared: shapes, comparisons, names."""

import pytest
import torch

from bench.case import Case, Peer, text, within

CASE = Case(
    name="one", about="", unit="us/step", axes=({"H": [8, 16], "B": [1]}, {"H": [16], "B": [1, 2]}), quick=({"H": [8], "B": [1]},),
    make=dict, peers={"a": Peer(dict)},
)  # fmt: skip


def test_shapes_are_every_combination_once():
    assert CASE.shapes() == [{"H": 8, "B": 1}, {"H": 16, "B": 1}, {"H": 16, "B": 2}]
    assert CASE.shapes(quick=True) == [{"H": 8, "B": 1}]


def test_given_values_replace_those_of_axes_that_the_case_has():
    assert CASE.shapes(given={"H": [4], "T": [9]}) == [{"H": 4, "B": 1}, {"H": 4, "B": 2}]


def test_names_of_shapes():
    assert text({"cell": "lstm", "H": 512, "dtype": "float32"}) == "lstm H=512 float32"


@pytest.mark.parametrize(
    ("ours", "theirs", "fault"),
    [
        ([torch.ones(2)], [torch.ones(2) + 1e-6], None),
        ([torch.ones(2)], [(torch.ones(2) + 1e-6).numpy()], None),
        ([torch.full((2,), 1000.0)], [torch.full((2,), 1000.05)], None),  # of the greatest
        ([torch.ones(2)], [torch.ones(2) + 1e-3], "output 0 differs by 0.001, allowed are 0.0001"),
        ([torch.ones(2)], [torch.ones(3)], "output 0 has shape [2], the peer's [3]"),
        ([torch.ones(2)], [torch.tensor([1.0, float("nan")])], "output 0 differs by nan, allowed are 0.0001"),
        ([["AH"]], [["AH"]], None),
        ([["AH"], ["B"]], [["AH"], ["P"]], "output 1 is another one"),
    ],
)
def test_outputs_are_compared(ours, theirs, fault):
    assert within(1e-4)(None, ours, theirs) == fault


def test_a_missing_output_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        within(1e-4)(None, [torch.ones(1)], [])
