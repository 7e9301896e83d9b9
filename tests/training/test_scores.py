"""Error rates against cases by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedrnn.training.scores import Scores, distance, scores

PHONEMES = st.lists(st.sampled_from(["AH0", "AH1", "K", "T"]), max_size=6)


@pytest.mark.parametrize(
    ("mine", "theirs", "edits"),
    [
        ("", "", 0),
        ("K AE1 T", "K AE1 T", 0),
        ("K AE0 T", "K AE1 T", 1),  # stress counts
        ("", "K AE1 T", 3),
        ("K AE1 T S", "K AE1 T", 1),
        ("AE1 T", "K AE1 T", 1),
        ("T AE1 K", "K AE1 T", 2),
        ("S AH0 N", "AH0 N S", 2),
        ("K AE1 T AH0 L AA2 G", "D AO1 G", 6),
    ],
)
def test_distance(mine, theirs, edits):
    assert distance(mine.split(), theirs.split()) == distance(theirs.split(), mine.split()) == edits


@given(one=PHONEMES, two=PHONEMES, three=PHONEMES)
def test_distance_is_one(one, two, three):
    assert (distance(one, two) == 0) == (one == two)
    assert abs(len(one) - len(two)) <= distance(one, two) <= max(len(one), len(two))
    assert distance(one, three) <= distance(one, two) + distance(two, three)


def test_the_nearest_pronunciation_counts():
    words = {
        "a": [["EY1"], ["AH0"]],  # right by the second
        "either": [["IY1", "DH", "ER0"], ["AY1", "DH", "ER0"]],  # one edit from the second
        "data": [["D", "EY1", "T", "AH0"], ["D", "AE1", "T"]],  # two edits from both: the longer one counts
    }
    found = scores([["AH0"], ["AY1", "DH", "AH0"], ["D", "IY1", "T", "IY0"]], words)
    assert found == Scores(words=3, wrong_words=2, edits=1 + 2, phonemes=1 + 3 + 4)
    assert (found.wer, found.per) == (2 / 3, 3 / 8)
    assert str(found) == "WER 66.67 %, PER 37.50 %"


def test_nothing_said():
    assert scores([[]], {"cat": [["K", "AE1", "T"]]}) == Scores(1, 1, 3, 3)
    assert (scores([], {}).wer, scores([], {}).per) == (0, 0)


def test_another_number_of_words():
    with pytest.raises(ValueError, match="longer"):
        scores([["AH0"]], {"a": [["AH0"]], "b": [["B", "IY1"]]})
