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


def test_a_step_is_a_barrier_an_exchange_and_reading_the_weights():
    weights = 4 * 512 * 512 * 2
    expected = 1.0 + 0.25 + 50 * 8 * 512 * 2 / 1e6 + weights / (1e7 * 0.5)  # half of the multiprocessors take part
    assert floor_gpu.floor(ROW, floor_gpu.constants(MEASURED)) == pytest.approx(expected)


def test_one_program_has_no_barrier():
    found = floor_gpu.floor(ROW | {"programs": 1, "H": 64}, floor_gpu.constants(MEASURED))
    assert found == pytest.approx(4 * 64 * 64 * 2 / (1e7 / 100))


def test_a_decode_has_the_projection_too():
    decode = ROW | {"part": "decode", "model": "lstm", "V": 1000, "barriers": 2, "steps": 5}
    extra = 1.25 + 1000 * 512 * 2 / (1e7 * 0.5)
    constants = floor_gpu.constants(MEASURED)
    assert floor_gpu.floor(decode, constants) == pytest.approx(floor_gpu.floor(ROW, constants) + extra)
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
