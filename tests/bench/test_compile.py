"""`python -m bench compile`: which rows pass, and what the command says and returns."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from bench import compile as command
from bench import compiled_row, workers
from bench.configurations import QUICK, shipped

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("FUSEDRNN_EMULATE", "TRITON_INTERPRET")}
GOOD = {
    "cell": "lstm", "H": 512, "B": 8, "dtype": "bfloat16", "arch": 90, "registers": 166, "spill_bytes": 0, "shared_bytes": 81920,
    "resident": True, "in_loop_weight_loads": 0, "barriers_per_step": 1, "resident_weight_loads": 0, "planned_barriers": 1,
    "shared_limit": 232448, "programs": 32, "groups": 1, "batch_tile": 16, "warps": 4, "choice": 0, "seconds": 3.0,
}  # fmt: skip
BAD = [
    ({"spill_bytes": 4}, "spills 4 bytes a thread"),
    ({"spill_bytes": 8, "dtype": "float16"}, "spills 8 bytes"),
    ({"in_loop_weight_loads": 2, "resident_weight_loads": 2}, "2 loads in the step loop from weights that are planned to stay on-chip"),
    ({"in_loop_weight_loads": 3, "resident_weight_loads": 1, "resident": False}, "1 loads in the step loop"),
    ({"in_loop_weight_loads": 2}, "calls itself resident and loads weights 2 times"),
    ({"shared_bytes": 232449}, "needs 232449 bytes of shared memory, there are 232448"),
    ({"barriers_per_step": 2}, "2 barriers stand in the step loop, planned are 1"),
    ({"error": "the process crashed: SIGSEGV"}, "does not compile: the process crashed: SIGSEGV"),
]
PASS = [{}, {"dtype": "float32", "spill_bytes": 400}, {"resident": False, "in_loop_weight_loads": 2}, {"shared_bytes": 232448}]


def compiled(monkeypatch, tmp_path, *found, **options):
    """The exit code and the file of a run in which compiling gives these."""
    monkeypatch.setattr(workers, "results", lambda function, calls, *rest: enumerate(found))
    path = tmp_path / "rows.json"
    code = command.run(argparse.Namespace(arch=[90], json=path, quick=True, only=[""], jobs=1) if not options else options["args"])
    return code, json.loads(path.read_text())["rows"] if path.exists() else None


@pytest.mark.parametrize("change", PASS)
def test_rows_that_pass(change, monkeypatch, tmp_path, capsys):
    code, rows = compiled(monkeypatch, tmp_path, GOOD | change)
    assert code == 0
    assert rows[0]["faults"] == []
    assert "0 fail" in capsys.readouterr().out


@pytest.mark.parametrize(("change", "fault"), BAD)
def test_rows_that_fail(change, fault, monkeypatch, tmp_path, capsys):
    found = workers.Failure(change["error"]) if "error" in change else GOOD | change
    code, rows = compiled(monkeypatch, tmp_path, found, GOOD)
    assert code == 1
    assert [len(row["faults"]) for row in rows] == [1, 0]
    assert fault in rows[0]["faults"][0]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("  lstm H=64 B=8 bfloat16 sm_90: ")
    assert fault in last


def test_a_row_tells_every_fault():
    assert len(command.faults(GOOD | {"spill_bytes": 4, "shared_bytes": 300000, "barriers_per_step": 0})) == 3


def test_nothing_to_compile_is_told(monkeypatch, tmp_path, capsys):
    args = argparse.Namespace(arch=[90], json=None, quick=False, only=["lstm H=63"], jobs=1)
    assert compiled(monkeypatch, tmp_path, args=args) == (2, None)
    assert "lstm H=63" in capsys.readouterr().err


def test_names_tell_rows_apart():
    names = [str(config) for config in shipped()]
    assert len(set(names)) == len(names)
    assert {"lstm H=512 B=8 backward bfloat16", "bahdanau gru H=256 B=8 V=1000 forced forward with gradients bfloat16"} <= set(names)


def test_barriers_are_counted_in_the_step_loop_alone():
    waits = "wait(counter, target, limit, ASM)"
    loop = ["while (t < T) & (going > 0):", f"    late = {waits}", "    if x:", f"        late = {waits}"]
    text = "\n".join(f"    {line}" for line in [f"late = {waits}", *loop, waits])
    assert compiled_row.barriers(text) == 2


def test_the_list_holds_what_is_promised():
    found = list(shipped())
    assert len(set(found)) == len(found) > 200
    for cell in ("lstm", "gru", "gru before", "rnn"):
        for size in (64, 128, 256, 512, 768, 1024):
            assert {config.B for config in found if (config.cell, config.H, config.dtype) == (cell, size, "bfloat16")} >= {
                1,
                8,
                32,
                64,
                256,
            }
            assert {config.B for config in found if (config.cell, config.H, config.dtype) == (cell, size, "float32")} >= {1, 32}
        assert {config.H for config in found if config.cell == cell} >= {1536, 2048}
    assert {config.cell for config in found} >= {"g2p encoder", "g2p decoder"}
    assert {(config.H, config.V) for config in found if config.cell == "lstm"} >= {(512, 1000), (512, 8000), (1024, 8000)}
    for part in ("forward with gradients", "backward"):
        for cell in ("lstm", "gru", "layer norm lstm"):
            sizes = {(config.H, config.B) for config in found if (config.cell, config.part, config.dtype) == (cell, part, "bfloat16")}
            assert sizes == {(size, rows) for size in (128, 256, 512, 1024) for rows in (8, 64)}
        assert {config.picks for config in found if config.part == part} == {"greedy", "forced"}
        assert {config.cell for _, config in QUICK if config.part == part}
    assert {config for _, config in QUICK} <= set(found)


@pytest.mark.slow
def test_what_continuous_integration_compiles(tmp_path):
    path = tmp_path / "rows.json"
    arguments = [sys.executable, "-m", "bench", "compile", "--quick", "--json", str(path)]
    done = subprocess.run(arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [(row["arch"], row["cell"], row["H"], row["B"], row["dtype"]) for row in rows] == [
        (arch, config.cell, config.H, config.B, config.dtype) for arch, config in QUICK
    ]
    assert {row["arch"] for row in rows} == {80, 90, 100}
    for row in rows:
        assert set(command.KEYS) <= set(row)
        assert row["spill_bytes"] == 0
        assert 0 < row["registers"] <= 255
        assert row["shared_bytes"] <= row["shared_limit"]
        assert row["in_loop_weight_loads"] == 0 if row["resident"] else row["in_loop_weight_loads"] > 0
        assert (row["wgmma"] > 0) == (row["arch"] >= 90)
        assert (row["barriers_per_step"] == 0) == (row["programs"] == 1)
