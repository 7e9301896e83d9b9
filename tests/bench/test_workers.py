"""Work in other processes: results, and what stands for them where there are none."""

from bench.workers import Failure, results

from .calls import call


def test_a_crash_a_hang_and_an_error_cost_one_result_each(monkeypatch):
    monkeypatch.setenv("FUSEDRNN_TOLD", "yes")
    calls = [
        ("return", 1), ("crash", None), ("raise", 2), ("hang", None), ("leave", 3), ("return", {"a": [4]}), ("FUSEDRNN_TOLD", None),
        ("return", None),
    ]  # fmt: skip
    found = dict(results(call, calls, 2, lambda: 6.0))
    assert found == {
        0: 1,
        1: "the process crashed: SIGABRT",
        2: "ValueError: not 2",
        3: "no end in 6 s",
        4: "the process crashed: exit code 3",
        5: {"a": [4]},
        6: "yes",
        7: None,
    }
    assert {place for place, result in found.items() if isinstance(result, Failure)} == {1, 2, 3, 4}


def test_processes_can_do_without_variables(monkeypatch):
    monkeypatch.setenv("FUSEDRNN_TOLD", "yes")
    assert list(results(call, [("FUSEDRNN_TOLD", None)], 1, lambda: 60.0, ["FUSEDRNN_TOLD", "NOT_THERE"])) == [(0, None)]


def test_no_calls():
    assert list(results(call, [], 2, lambda: 1.0)) == []


def test_no_time_left():
    left, found = [60.0], []
    for place, result in results(call, [("return", 1), ("return", 2), ("return", 3)], 1, lambda: left[0]):
        found.append((place, result))
        left[0] = 0.0
    assert found == [(0, 1), (1, "no time left"), (2, "no time left")]
