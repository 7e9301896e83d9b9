"""Kernels compile without a GPU, and their numbers say whether weights stay on-chip."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from fusedrnn.kernels import gpu  # before Triton, which it tells to interpret


@pytest.fixture(scope="module")
def rows():
    environment = {name: value for name, value in os.environ.items() if name not in ("FUSEDRNN_EMULATE", "TRITON_INTERPRET")}
    command = [sys.executable, "-m", "tests.kernels.gpu.compile_loops"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def statistics(rows):
    return {(row["arch"], row["where"]): row for row in rows if "arch" in row}


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_a_resident_weight_is_not_loaded_in_the_loop(statistics, arch):
    resident, streamed = statistics[arch, "resident"], statistics[arch, "streamed"]
    assert resident["in_loop_weight_loads"] == 0
    assert streamed["in_loop_weight_loads"] > 0
    assert resident["shared_bytes"] >= 64 * 256 * 2 > streamed["shared_bytes"]
    for row in (resident, streamed):
        assert row["spill_bytes"] == row["in_loop_spills"] == row["stack"] == 0
        assert 0 < row["registers"] <= 250
        assert row["cta_barriers"] >= 2
        assert row["instructions"] > 100


def test_products_are_of_the_kind_the_device_has(statistics):
    kinds = {arch: (row["wgmma"] > 0, row["mma"] > 0) for (arch, where), row in statistics.items() if where == "resident"}
    assert kinds == {80: (False, True), 90: (True, False), 100: (True, False)}


def test_spills_are_seen(statistics):
    crowded = statistics[80, "crowded"]
    assert crowded["registers"] <= 32
    assert crowded["spill_bytes"] >= 4
    assert crowded["stack"] > 0


def test_wrong_names_are_told(rows):
    errors = [row["error"] for row in rows if "error" in row]
    assert len(errors) == 2
    assert "loop: every parameter needs a type or a value" in errors[0]
    assert "['BB', 'KC', 'M', 'WHERE']" in errors[0]
    assert "weights ['weights'] are not among the arguments" in errors[1]


@pytest.mark.skipif(not gpu.EMULATED, reason="Triton does not interpret in this process")
def test_a_process_that_interprets_says_that_it_cannot_compile():
    from fusedrnn.kernels.gpu import barrier, compiled

    with pytest.raises(RuntimeError, match="interprets Triton"):
        compiled.compile_kernel(barrier.arrive, {}, {}, 90, warps=4, stages=1)
