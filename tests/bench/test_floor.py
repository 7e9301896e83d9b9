"""The floor of a CPU: its arithmetic, what it knows none of, and the command."""

import argparse
import json

import pytest

from bench import floor as command
from bench.floor import floor

CONSTANTS = {
    "case": "machine", "sigmoids_per_us": 100.0, "multiply_adds_per_us": {"float32": 1000.0, "bfloat16": 500.0},
    "bytes_per_us": {"1": 4096.0, "4": 1024.0, "64": 512.0},
}  # fmt: skip
READS = {"cell": "lstm", "H": 512, "B": 1, "T": 8, "dtype": "float32"}


def test_one_row_is_bound_by_reading_the_weights():
    weights = 4 * 512 * 512 * 4  # 4 MiB: they are read at the rate of 4 MiB
    assert floor("sequence", READS, CONSTANTS | {"multiply_adds_per_us": {"float32": 1e9, "bfloat16": 1e9}}) == (weights / 1024, "reading")


def test_many_rows_are_bound_by_products_and_sigmoids():
    products = 64 * (4 + 4) * 512 * 512 / 1000  # of the state, and of inputs that are as wide
    assert floor("sequence", READS | {"B": 64}, CONSTANTS) == (pytest.approx(products + 64 * 5 * 512 / 100), "products")


def test_a_decode_adds_the_projection_and_reads_inputs_from_a_table():
    shape = {"layers": 1, "H": 64, "V": 1000, "B": 64, "T": 8}
    products = 64 * (4 * 64 * 64 + 1000 * 64) / 1000
    assert floor("decode", shape, CONSTANTS)[0] == pytest.approx(products + 64 * 5 * 64 / 100)
    assert floor("decode", shape | {"layers": 2}, CONSTANTS)[0] == pytest.approx(
        products + 64 * 2 * 4 * 64 * 64 / 1000 + 64 * 2 * 5 * 64 / 100
    )


def test_rows_that_are_finished_do_not_count():
    every, ragged = (floor(case, {"cell": "lstm", "H": 64, "B": 32, "T": 9}, CONSTANTS)[0] for case in ("sequence", "ragged"))
    assert ragged == pytest.approx(every * 5 / 9)


@pytest.mark.parametrize(("megabytes", "rate"), [(0.5, 4096.0), (1, 4096.0), (3, 4096.0), (4, 1024.0), (100, 512.0)])
def test_weights_are_read_at_the_rate_of_the_next_lesser_set(megabytes, rate):
    assert command._bytes_per_us(megabytes * 2**20, CONSTANTS["bytes_per_us"]) == rate


def test_a_larger_set_that_was_read_faster_counts():
    assert command._bytes_per_us(2**20, {"0.25": 100.0, "1": 90.0, "2": 120.0}) == 120.0


def test_what_has_no_floor():
    assert floor("training", READS, CONSTANTS) is None
    assert floor("g2p", {"words": 8, "B": 1, "order": "sorted"}, CONSTANTS) is None


def test_the_command_prints_bound_and_distance(tmp_path, capsys):
    row = {"case": "sequence", "shape": READS | {"B": 64}, "peer": "nn.LSTM", "unit": "us/step", "count": 8, "ratio": 2.0}
    bound = floor("sequence", row["shape"], CONSTANTS)[0]
    row |= {"fusedrnn_median_seconds": bound * 16e-6, "peer_median_seconds": bound * 32e-6}
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"parts": {"machine": {"rows": [CONSTANTS]}, "sequence": {"rows": [row]}}}))
    assert command.run(argparse.Namespace(results=path, constants=None)) == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[:7] == ["sequence", "lstm", "H=512", "B=64", "T=8", "float32", f"{bound:,.1f}"]
    assert (line[9], line[-1]) == ("2.0", "4.0")


def test_without_constants_it_says_what_measures_them(tmp_path, capsys):
    path = tmp_path / "result.json"
    path.write_text('{"parts": {"sequence": {"rows": []}}}')
    assert command.run(argparse.Namespace(results=path, constants=None)) == 2
    assert "python -m bench cpu --only machine" in capsys.readouterr().err
