"""The floor of a GPU, of made-up constants: no GPU has measured any."""

import argparse
import json

import pytest

from bench import floor as command
from bench import floor_gpu

MEASURED = [
    {"part": "machine", "device": {"sms": 100}},
    {"part": "barrier", "programs": 1, "groups": 1, "us": 0.1}, {"part": "barrier", "programs": 2, "groups": 1, "us": 0.5},
    {"part": "barrier", "programs": 32, "groups": 1, "us": 1.0}, {"part": "barrier", "programs": 64, "groups": 2, "us": 9.0},
    {"part": "constants", "what": "l2", "bytes_per_us": 1e6}, {"part": "constants", "what": "latency", "us": 0.25},
    {"part": "constants", "what": "products", "multiply_adds_per_us": 1e8}, {"part": "constants", "what": "shared", "bytes_per_us": 1e7},
]  # fmt: skip
ROW = {
    "part": "sequence", "cell": "lstm", "H": 512, "B": 8, "T": 512, "dtype": "bfloat16", "programs": 50, "groups": 1, "barriers": 1,
    "us": {"median": 10.0}, "peer": "LSTM", "peer_us": {"median": 20.0},
}  # fmt: skip


def test_constants_are_those_of_one_group():
    found = floor_gpu.constants(MEASURED)
    assert (found["barriers"], found["sms"]) == ({1: 0.1, 2: 0.5, 32: 1.0}, 100)


@pytest.mark.parametrize("left_out", [0, 5, 6, 7, 8])
def test_without_one_of_them_there_are_none(left_out):
    assert floor_gpu.constants([row for place, row in enumerate(MEASURED) if place != left_out]) is None


def test_what_was_not_resolved_is_no_constant():
    unresolved = [row | {"bytes_per_us": None} if row.get("what") == "shared" else row for row in MEASURED]
    assert floor_gpu.constants(unresolved) is None


WEIGHTS = 4 * 512 * 512 * 2


def test_a_step_is_what_the_best_number_of_programs_takes():
    constants = floor_gpu.constants(MEASURED)
    by_programs = {
        1: WEIGHTS * 100 / (1e7 * 1),
        2: 0.5 + 0.25 + 2 * 8 * 512 * 2 / 1e6 + WEIGHTS * 100 / (1e7 * 31),  # up to 31 programs meet no faster than 2
        32: 1.0 + 0.25 + 32 * 8 * 512 * 2 / 1e6 + WEIGHTS * 100 / (1e7 * 100),
    }
    assert floor_gpu.floor(ROW, constants) == pytest.approx(min(by_programs.values()))
    assert min(by_programs, key=by_programs.get) == 2
    slow = [row | {"us": 0.99} if row.get("programs") == 2 else row for row in MEASURED]  # then many are as good
    assert floor_gpu.floor(ROW, floor_gpu.constants(slow)) == pytest.approx(min(by_programs[32], by_programs[2] + 0.49))


def test_it_knows_no_plan():
    constants = floor_gpu.constants(MEASURED)
    assert floor_gpu.floor(ROW | {"programs": 1, "groups": 8, "barriers": 7}, constants) == floor_gpu.floor(ROW, constants)
    peers = {name: ROW[name] for name in ("cell", "H", "B", "T", "dtype", "us")} | {"part": "peers"}
    assert floor_gpu.floor(peers, constants) == floor_gpu.floor(ROW, constants)


def test_one_program_has_no_barrier():
    found = floor_gpu.floor(ROW | {"H": 64}, floor_gpu.constants(MEASURED))
    assert found == pytest.approx(4 * 64 * 64 * 2 / (1e7 / 100))


def test_many_rows_are_bound_by_products():
    rows = 10_000
    found = floor_gpu.floor(ROW | {"H": 64, "B": rows}, floor_gpu.constants(MEASURED))
    assert found == pytest.approx(rows * 4 * 64 * 64 / 1e8)


def test_a_decode_meets_twice_and_has_the_projection_too():
    decode = ROW | {"part": "decode", "model": "lstm", "V": 1000, "steps": 5, "who": "persistent"}
    del decode["cell"]
    constants = floor_gpu.constants(MEASURED)
    extra = 0.75 + 1000 * 512 * 2 * 100 / (1e7 * 31)
    assert floor_gpu.floor(decode, constants) == pytest.approx(floor_gpu.floor(ROW, constants) + extra)
    assert floor_gpu.floor(decode | {"who": "stepwise"}, constants) is None
    assert floor_gpu.microseconds(decode) == 2.0


def test_what_has_no_floor():
    constants = floor_gpu.constants(MEASURED)
    assert floor_gpu.floor({"part": "barrier", "programs": 2, "us": 1.0}, constants) is None
    assert floor_gpu.floor({"part": "decode", "model": "g2p", "programs": 2}, constants) is None


def test_the_command_reads_lines_of_a_gpu(tmp_path, capsys):
    path = tmp_path / "gpu.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*MEASURED, ROW]))
    assert command.run(argparse.Namespace(results=path, constants=None)) == 0
    bound = floor_gpu.floor(ROW, floor_gpu.constants(MEASURED))
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("sequence lstm H=512 B=8 bfloat16")
    assert line.split()[-5:] == ["10.00", f"{10 / bound:.1f}", "LSTM", "20.00", f"{20 / bound:.1f}"]
    path.write_text(json.dumps(ROW))
    assert command.run(argparse.Namespace(results=path, constants=None)) == 2
    assert "python -m bench gpu" in capsys.readouterr().err
