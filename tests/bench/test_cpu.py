"""`python -m bench cpu`: what it is asked, what it writes, and when it fails."""

import argparse
import json
from types import SimpleNamespace

import pytest

from bench import __main__ as command
from bench import bounds, cases, cpu, runner


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Runs the command with what a case or a part would measure; tells what was asked for."""
    monkeypatch.delenv("BENCH_TENSORFLOW", raising=False)
    seen = []

    def run(*arguments, rows=()):
        def measured(case, pairs, quick, given, only):
            seen.append((case.name, pairs, quick, given, only))
            return list(rows)

        monkeypatch.setattr(runner, "run", measured)
        monkeypatch.setitem(cpu._PARTS, "calls", SimpleNamespace(measure=lambda args: [{"case": "calls", "calls": args.calls}]))
        path = tmp_path / "result.json"
        code = command.main(["cpu", *arguments, "--json", str(path)])
        return code, seen, json.loads(path.read_text()) if path.exists() else None

    return run


def test_cases_and_parts_with_what_was_asked_for(asked):
    code, seen, found = asked("--only", "calls", "decode", "training", "--pairs", "3", "--set", "H=8,16", "cell=lstm", "--peers", "jax")
    assert code == 0
    given = {"H": [8, 16], "cell": ["lstm"]}
    assert seen == [("decode", 3, False, given, "jax"), ("training", 3, False, given, "jax")]
    assert list(found["parts"]) == ["decode", "training", "calls"]
    assert found["parts"]["calls"]["rows"] == [{"case": "calls", "calls": 300}]
    for part in found["parts"].values():
        assert {"machine", "versions", "commit", "command", "date", "load_after", "seconds"} <= set(part)


def test_quick_has_fewer_pairs(asked):
    assert asked("--only", "decode", "--quick")[1] == [("decode", 5, True, {}, "")]


def test_rows_that_differ_fail_the_command_and_are_written(asked, capsys):
    row = {"case": "decode", "peer": "JAX", "fault": "it differs"}
    code, _, found = asked("--only", "decode", rows=[row])
    assert code == 1
    assert found["parts"]["decode"]["rows"] == [row]
    assert "WRONG: decode: JAX: it differs" in capsys.readouterr().err


def test_an_update_leaves_what_is_not_measured(asked):
    row = {"case": "decode", "peer": "JAX", "ratio": 2.0}
    before = asked("--only", "decode", "training", rows=[row])[2]["parts"]
    after = asked("--only", "training", "--update")[2]["parts"]
    assert list(after) == ["decode", "training"]
    assert after["decode"] == before["decode"]
    assert after["training"]["rows"] == []
    assert list(asked("--only", "training")[2]["parts"]) == ["training"]


def test_the_guard_fails_the_command(asked, monkeypatch):
    monkeypatch.setattr(bounds, "broken", lambda rows: ["too slow"])
    assert asked("--only", "decode", "--quick")[0] == 0
    assert asked("--only", "decode", "--quick", "--guard")[0] == 1


def test_an_axis_that_no_case_has_is_refused(asked, capsys):
    assert asked("--only", "decode", "--set", "rows=3")[0] == 2
    assert "no case that is asked for has an axis rows; they have B, H, T, V, layers" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["H", "H=", "=3"])
def test_what_is_no_axis_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not AXIS=V\[,V\]"):
        cpu._axis(text)


def test_numbers_are_rounded_to_what_a_clock_is_worth():
    assert cpu._rounded({"a": [0.123456789, 3], "b": "text", "c": None}) == {"a": [0.123457, 3], "b": "text", "c": None}


def test_every_case_is_a_part():
    assert set(cases.NAMES) <= set(cpu._PARTS)
