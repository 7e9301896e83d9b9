"""How many steps a launch takes, and what is counted."""

import pytest

from fusedrnn.serve import Histogram
from fusedrnn.serve.pace import Pace


def paced(step: float, overhead: float = 0.0, **changed: float) -> Pace:
    pace = Pace(**{"latency": 0.004, "throughput": 0.02, "most": 64, **changed})
    for _ in range(100):
        pace.note(4, 4 * step, overhead)
    return pace


def test_a_launch_is_short_while_someone_waits_and_longer_otherwise():
    assert Pace(0.004, 0.02, 64).steps(urgent=False) == 1  # nothing is known yet
    assert paced(0.001).steps(urgent=True) == 4
    assert paced(0.001).steps(urgent=False) == 16
    assert paced(0.1).steps(urgent=False) == 1
    assert paced(1e-6).steps(urgent=True) == 64


def test_what_a_launch_costs_besides_its_steps_makes_it_longer_but_not_beyond_the_longer_target():
    assert paced(0.001, overhead=0.004).steps(urgent=True) == 8  # 12 ms
    assert paced(0.001, overhead=1.0).steps(urgent=True) == 16


def test_a_launch_without_steps_tells_nothing():
    pace = paced(0.001)
    pace.note(0, 5.0, 5.0)
    assert pace.steps(urgent=True) == 4


@pytest.mark.parametrize(("changed", "words"), [
    ({"latency": 0.0}, "latency must be above 0"), ({"latency": 0.03}, "at most throughput, in seconds; got 0.03 and 0.02"),
    ({"most": 0}, "steps must be an int of at least 1, got 0"), ({"most": 2.0}, "steps must be an int of at least 1, got 2.0"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        paced(0.001, **changed)


def test_a_histogram_counts_each_value_once_under_the_first_bound_it_does_not_exceed():
    histogram = Histogram([1.0, 2.0, 4.0])
    assert histogram.mean == 0
    for value in (0.5, 1.0, 1.5, 4.0, 9.0):
        histogram.add(value)
    histogram.add(3.0, times=2)
    assert histogram.counts == [2, 1, 3, 1]
    assert (histogram.sum, histogram.count) == (22.0, 7)
    assert histogram.mean == pytest.approx(22 / 7)
