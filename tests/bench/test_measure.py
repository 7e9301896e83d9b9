"""Pairs of runs: in turn, and what is made of their times."""

import pytest

from bench import measure


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where a test says so."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measure.time, "sleep", lambda seconds: None)

    def takes(seconds):
        now[0] += seconds

    return takes


def test_runs_are_in_turn_and_ratios_of_pairs(clock):
    order, mine = [], iter([9.0, 1.0, 2.0, 4.0])

    def ours():
        order.append("A")
        clock(next(mine))

    def theirs():
        order.append("B")
        clock(4.0)

    found = measure.compared(ours, theirs, 3)
    assert "".join(order) == "ABABABAB"  # the first pair is not counted
    assert found["fusedrnn_seconds"] == [1.0, 2.0, 4.0]
    assert found["ratios"] == [4.0, 2.0, 1.0]
    assert (found["ratio"], found["fusedrnn_median_seconds"], found["peer_median_seconds"]) == (2.0, 2.0, 4.0)


def test_short_calls_are_timed_many_at_once(clock):
    calls = []

    def short():
        calls.append(1)
        clock(0.001)

    found = measure.compared(short, lambda: clock(1.0), 2)
    assert found["fusedrnn_seconds"] == pytest.approx([0.001, 0.001])
    assert len(calls) == 1 + 2 * (1 + 20)  # before each sample one that is not timed


def test_a_returned_float_is_its_own_measurement(clock):
    assert measure.timed(lambda: clock(5.0) or 0.25) == 0.25


def test_long_work_has_fewer_pairs_but_three(clock):
    assert len(measure.compared(lambda: clock(3.0), lambda: clock(1.0), 11, most=20.0)["ratios"]) == 4
    assert len(measure.compared(lambda: clock(30.0), lambda: clock(10.0), 11, most=20.0)["ratios"]) == 3


def test_circumstances_tell_machine_versions_commit_and_command():
    found = measure.circumstances()
    assert found["command"].startswith("python -m bench")
    assert {"cpu", "cpus", "threads", "load"} <= set(found["machine"])
    assert {"fusedrnn", "torch", "python"} <= set(found["versions"])
    assert {"date", "commit", "uncommitted_changes"} <= set(found)
