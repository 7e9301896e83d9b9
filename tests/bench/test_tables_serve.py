"""The table of serving, of results that a test makes up."""

import json

import pytest

from bench import tables_serve


def limit(of, times, mine, theirs):
    ratio = None if mine is None or theirs is None else mine / theirs
    served = {"continuous": mine, "batch-and-wait": theirs}
    return {"of": of, "limit_seconds": times * 0.01, "limit_times_alone": times, "served": served, "ratios": {"batch-and-wait": ratio}}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables_serve, "RESULTS", tmp_path)
    shipped, large = [limit("total", 1, 50.0, None)], [limit("total", 2, 200.0, 100.0), limit("first", 2, 50.0, 400.0)]
    for hidden, served in ((None, shipped), (512, large)):
        loads = {"continuous": [{"served": 50.0}, {"served": 200.0}], "batch-and-wait": [{"served": 100.0}, {"served": 400.0}]}
        made = {
            "machine": {"cpu": "A CPU", "cpus": 2, "load": [0.5, 0, 0]}, "versions": {"torch": "2.13.0"}, "date": "2026-11-28T00:00:00",
            "commit": "0123456789", "command": "python -m bench serve --seconds 3 --json somewhere", "arguments": {"hidden": hidden},
            "measured": {"process": {"served": served, "loads": loads}},
        }  # fmt: skip
        (tmp_path / f"serve-lstm{hidden or 192}.json").write_text(json.dumps(made))


def test_a_line_for_each_limit_that_someone_holds():
    lines = tables_serve.serve().splitlines()
    assert lines[2] == "| 192 units (shipped) | batch-and-wait | 10 ms (1 x) | none | 50.0 | | | | |"
    assert lines[3] == "| 512 units | batch-and-wait | 20 ms (2 x) | 100 | ≥ 200 | ≥ 2.00 | ≥ 400 | 50.0 | |"


def test_a_ratio_over_a_peer_that_could_do_more_is_not_told():
    assert tables_serve.serve().splitlines()[3].endswith("| ≥ 400 | 50.0 | |")


def test_each_file_tells_its_machine_and_command():
    last = tables_serve.serve().splitlines()[-1]
    assert (
        last.count("A CPU, 2 CPUs, load 0.5 before; torch 2.13.0; 2026-11-28, commit 0123456; `python -m bench serve --seconds 3`: ") == 2
    )
    assert "[serve-lstm512.json](bench/results/serve-lstm512.json)" in last
