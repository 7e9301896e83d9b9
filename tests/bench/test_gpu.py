"""`python -m bench gpu` where there is no GPU: what it refuses, what a dry run goes through, and what counts as wrong."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu, parts, tables_gpu, workers
from bench.parts import PARTS, Where, timing

ROOT = Path(__file__).parents[2]


def run(tmp_path, *, budget=60.0, only=None):
    code = gpu.run(argparse.Namespace(budget=budget, out=tmp_path, only=only, dry=True))
    return code, [json.loads(line) for line in (tmp_path / "emulated.jsonl").read_text().splitlines()]


@pytest.fixture
def found(monkeypatch):
    """Puts what the cases of each part give in the place of running them."""
    monkeypatch.setenv("FUSEDRNN_EMULATE", "1")

    def put(**rows):
        monkeypatch.setattr(parts, "cases", lambda part, where: [{"case": place} for place in range(len(rows.get(part, [])))])
        monkeypatch.setattr(workers, "results", lambda function, calls, *_: enumerate(rows[calls[0][0]] if calls else []))

    return put


def test_what_cannot_be_measured_is_refused(monkeypatch):
    monkeypatch.setenv("FUSEDRNN_EMULATE", "1")
    assert gpu.refusal(dry=True) is None
    assert "unset it" in gpu.refusal(dry=False)
    monkeypatch.delenv("FUSEDRNN_EMULATE")
    assert "set FUSEDRNN_EMULATE=1" in gpu.refusal(dry=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is no CUDA device" in gpu.refusal(dry=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("FUSEDRNN_EMULATE", "TRITON_INTERPRET")}
    command = [sys.executable, "-m", "bench", "gpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("bench gpu: there is no CUDA device")
    assert not (tmp_path / "out").exists()


def test_right_rows(found, tmp_path):
    found(correctness=[[{"faults": []}], [{"faults": []}]], tables=[[{"us": 1.0}, {"us": 2.0}]])
    code, rows = run(tmp_path)
    assert code == 0
    assert [row["part"] for row in rows] == ["machine", "correctness", "correctness", "tables", "tables"]
    assert all(row["emulated"] is True for row in rows)
    assert rows[-1] == {"part": "tables", "emulated": True, "case": 0, "us": 2.0}


@pytest.mark.parametrize("found_wrong", [[[{"faults": ["off by one"]}]], [workers.Failure("the process crashed: SIGSEGV")]])
def test_wrong_rows_fail_the_command_and_the_rest_is_still_measured(found, tmp_path, capsys, found_wrong):
    found(correctness=found_wrong, tables=[[{"us": 1.0}]])
    code, rows = run(tmp_path)
    assert code == 1
    assert rows[-1]["us"] == 1.0
    assert "  correctness case=0: " in capsys.readouterr().out


def test_a_crash_of_a_measurement_is_told_and_is_no_wrong_number(found, tmp_path):
    found(correctness=[[{"faults": []}]], barrier=[workers.Failure("no end in 50 s"), [{"us": 1.0, "faults": []}]])
    code, rows = run(tmp_path)
    assert code == 0
    assert [row.get("error") for row in rows[2:]] == ["no end in 50 s", None]


def test_one_part_alone(found, tmp_path):
    found(correctness=[[{"faults": ["bad"]}]], tables=[[{"us": 1.0}]])
    assert run(tmp_path, only="tables")[0] == 0


def test_without_time_correctness_is_not_right(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSEDRNN_EMULATE", "1")
    code, rows = run(tmp_path, budget=0.0)
    assert code == 1
    assert {row["part"] for row in rows} == {"machine", *PARTS}
    assert {row.get("error") for row in rows[1:]} == {"no time left"}


def test_the_cases_for_a_gpu_differ_and_are_json():
    for part in PARTS:
        for dry in (True, False):
            cases = parts.cases(part, Where(dry))
            texts = [json.dumps(case, sort_keys=True) for case in cases]
            assert len(set(texts)) == len(texts) > 0
    assert len(parts.cases("tables", Where(False))) == 96


def test_medians_and_quartiles():
    assert timing.spread([4.0, 2.0, 8.0, 6.0, 10.0], 2) == {"median": 3.0, "quartiles": [2.0, 4.0], "runs": 5}
    assert timing.ratio([1.0, 2.0, 4.0], [2.0, 8.0, 4.0])["median"] == 2.0
    assert timing.marginal([10.0, 12.0, 11.0], [21.0, 20.0, 25.0], 5) == 2.0


@pytest.mark.slow
def test_a_dry_run_goes_through_everything(tmp_path):
    """Every part for real, on emulated kernels."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "bench", "gpu", "--dry", "--budget", "3000", "--out", str(tmp_path)]
    environment = os.environ | {"FUSEDRNN_EMULATE": "1", "TRITON_INTERPRET": "1"}
    environment.pop("FUSEDRNN_BACKEND", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "emulated.jsonl").read_text().splitlines()]
    assert [row for row in rows if "error" in row] == []
    assert {row["part"] for row in rows} == {"machine", *PARTS}
    assert all(row["emulated"] is True for row in rows)
    for row in rows:
        if row["part"] == "correctness":
            assert 0 <= row["largest_error"] <= row["allowed"]
            assert row["faults"] == []
    assert {row["who"] for row in rows if row["part"] == "decode"} == {"persistent", "stepwise", "graphed by hand", "reference"}
    assert all(row["rows_equal"] is not False for row in rows if row["part"] == "decode" and "rows_equal" in row)
    assert {row["who"] for row in rows if row["part"] == "timeline"} == {"eager loop", "graphed by hand", "fusedrnn"}
    tables = tables_gpu.markdown(tmp_path / "emulated.jsonl")
    assert tables.count("### ") == tables.count("(emulated)") == tables.count("**EMULATED on a CPU") >= 8
    assert [row["skipped"][:23] for row in rows if row["part"] == "tests"] == ["no test is marked gpu: "]
