"""Warming up: seconds of processes of their own, with nothing cached and again."""

from types import SimpleNamespace

import pytest

from bench import warmup, workers


def test_rows(monkeypatch):
    seen = []

    def results(function, calls, *rest):
        import os

        seen.append((calls[0][0], os.environ["FUSEDRNN_CACHE_DIR"]))
        found = workers.Failure("RuntimeError: no module") if calls[0][0] == "JAX while_loop" else {"first_seconds": 2.0, "seconds": 0.1}
        return iter([(0, found)])

    monkeypatch.setattr(workers, "results", results)
    rows = warmup.measure(SimpleNamespace(quick=False, threads=1))
    assert [(row["who"], row["cached"]) for row in rows] == [(way, cached) for way in warmup._WAYS for cached in (False, True)]
    assert {row.get("skipped") for row in rows if row["who"] == "JAX while_loop"} == {"RuntimeError: no module"}
    folders = [folder for _, folder in seen]
    assert folders[0] == folders[1] != folders[2] == folders[3]  # one for each way, and its second run finds what the first left
    assert [way for way, _ in seen[::2]] == list(warmup._WAYS)


@pytest.mark.slow
def test_the_second_process_finds_what_the_first_compiled():
    rows = {row["cached"]: row for row in warmup.measure(SimpleNamespace(quick=True, threads=1)) if row["who"] == "fusedrnn native"}
    assert 0 < rows[True]["first_seconds"] < rows[False]["first_seconds"]
    assert rows[True]["seconds"] < rows[True]["first_seconds"]
