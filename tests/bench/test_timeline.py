"""The timeline of a decode: operators in their order within the call."""

from types import SimpleNamespace

from bench import timeline


def test_operators_of_a_loop_and_of_one_call(monkeypatch):
    monkeypatch.setattr(timeline, "_SHAPE", {"H": 8, "V": 12, "B": 1, "T": 3})
    eager, fused = timeline.measure(SimpleNamespace())
    assert (eager["who"], fused["who"]) == ("eager loop", "fusedrnn")
    assert [name for name, _, _ in eager["operators"]].count("aten::lstm_cell") == 3
    assert [name for name, _, _ in fused["operators"]].count("compiled loop") == 1
    for row in (eager, fused):
        ends = [start + took for _, start, took in row["operators"]]
        assert all(0 <= start <= end <= row["us"] + 1 for (_, start, _), end in zip(row["operators"], ends, strict=True))
