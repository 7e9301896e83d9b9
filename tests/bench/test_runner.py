"""Cases, run: rows, faults, peers that are missing, and fitted powers."""

import pytest

from bench import runner
from bench.case import Case, Missing, Peer, Run


class Sum:
    """The sum of so many numbers."""

    def __init__(self, shape):
        self.count, self.fused = shape["T"], lambda: Run(lambda: [sum(range(shape["T"]))])


def missing(work):
    raise Missing("no module named other; pip install other")


def case(**peers):
    return Case("sum", "a sum", "us/step", ({"T": [10, 20]},), ({"T": [10]},), Sum, peers)


def test_a_row_for_each_shape_and_peer():
    rows = runner.run(case(itself=Peer(lambda work: work.fused())), 3)
    assert [(row["case"], row["shape"], row["peer"], row["count"]) for row in rows] == [
        ("sum", {"T": 10}, "itself", 10),
        ("sum", {"T": 20}, "itself", 20),
    ]
    assert all(len(row["ratios"]) == 3 for row in rows)


def test_other_outputs_are_a_fault_and_are_not_timed(capsys):
    rows = runner.run(case(wrong=Peer(lambda work: Run(lambda: [-1]))), 3, quick=True)
    assert [row.get("fault") for row in rows] == ["output 0 is another one"]
    assert "ratio" not in rows[0]
    assert "sum T=10: wrong: output 0 is another one" in capsys.readouterr().err


def test_a_missing_peer_is_told_once_and_the_others_run(capsys):
    rows = runner.run(case(other=Peer(missing), itself=Peer(lambda work: work.fused())), 3)
    assert [row["peer"] for row in rows] == ["itself", "itself"]
    assert capsys.readouterr().out.count("other is left out: no module named other; pip install other") == 1


def test_peers_are_asked_where_they_are_declared():
    rows = runner.run(case(late=Peer(lambda work: work.fused(), lambda shape: shape["T"] > 10)), 3)
    assert [row["shape"] for row in rows] == [{"T": 20}]
    assert runner.run(case(late=Peer(lambda work: work.fused())), 3, only="early") == []


@pytest.mark.parametrize(("unit", "expected"), [("us/step", 2000.0), ("tokens/s", 500.0)])
def test_rates(unit, expected):
    assert runner.rate({"unit": unit, "count": 100, "peer_median_seconds": 0.2}, "peer") == pytest.approx(expected)


def test_the_fitted_power():
    assert runner.exponent({1: 3.0, 10: 300.0, 100: 30000.0}) == pytest.approx(2.0)


def test_fits_use_rows_that_differ_in_the_axis_alone():
    def row(steps, rows, seconds):
        times = {"fusedrnn_median_seconds": seconds, "peer_median_seconds": 2 * seconds**2, "ratio": 1.0}
        return {"shape": {"T": steps, "B": rows}, "peer": "a", **times}

    rows = [row(1, 8, 1.0), row(2, 8, 2.0), row(4, 8, 4.0), row(4, 16, 100.0)]
    assert runner.fitted(rows, case(), "T", "fusedrnn") == {
        "case": "sum", "axis": "T", "who": "fusedrnn", "values": [1, 2, 4], "seconds": [1.0, 2.0, 4.0], "exponent": pytest.approx(1.0),
    }  # fmt: skip
    assert runner.fitted(rows, case(), "T", "a")["exponent"] == pytest.approx(2.0)
    assert runner.fitted(rows, case(), "B", "fusedrnn")["values"] == [8]
