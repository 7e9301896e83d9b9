"""What a training step keeps: a row for each way and length, and one that fails."""

import argparse

from bench import memory, workers


def test_rows(monkeypatch, tmp_path, capsys):
    def results(function, calls, *rest):
        how, hidden, rows, steps = calls[0]
        return iter([(0, workers.Failure("it crashed") if (how, steps) == ("native", 8) else hidden * rows * steps)])

    monkeypatch.setattr(workers, "results", results)
    found = memory.peaks(4, 2, [8, 16])
    assert [(row["how"], row["T"]) for row in found] == [(how, steps) for steps in (8, 16) for how in memory.HOW]
    assert found[0] == {"case": "memory", "how": "native", "H": 4, "B": 2, "T": 8, "error": "it crashed"}
    assert found[-1]["bytes"] == 4 * 2 * 16
    path = tmp_path / "memory.json"
    assert memory.run(argparse.Namespace(hidden=4, rows=2, steps=[8], json=path)) == 1
    assert memory.run(argparse.Namespace(hidden=4, rows=2, steps=[16], json=path)) == 0
