"""Tables of a GPU's lines: of a made-up device, and of rows that were emulated, which must never look like a GPU's."""

import argparse
import json

import pytest

from bench import floor_gpu, gpu_rows, parts, report, tables_gpu
from bench.parts import Where

from .test_floor_gpu import MEASURED

MACHINE = {
    "part": "machine", "date": "2027-01-02T03:04:05", "command": "python -m bench gpu", "commit": "0123456789",
    "uncommitted_changes": False, "machine": {"cpu": "A CPU"}, "versions": {"torch": "2.13", "triton": "3.9", "fusedrnn": "0.2"},
    "device": {"name": "Made-up GPU", "capability": "9.0", "sms": 100, "cuda": "13.0", "cudnn": 91000},
}  # fmt: skip


def figure(median, low=None, high=None):
    return {"median": median, "quartiles": [low or median, high or median], "runs": 11}


def read_row(part="sequence", peer="LSTM", us=2.0, peer_us=5.0, **changes):
    case = {"part": part, "cell": "lstm", "H": 512, "B": 8, "T": 512, "dtype": "bfloat16"} | changes
    times = {"us": figure(us), "peer_us": figure(peer_us), "ratio": figure(peer_us / us, peer_us / us - 0.1, peer_us / us + 0.1)}
    return case | {"peer": peer} | times


def decode_rows(rows=8, us=1000.0, peer_us=4000.0):
    case = {"part": "decode", "model": "lstm", "H": 512, "V": 1000, "B": rows, "T": 10, "dtype": "bfloat16"}
    about = {"weights": "random", "tokens": 10 * rows, "steps": 10}
    per_second = {"tokens_per_second": round(10 * rows / us * 1e6)}
    theirs = {"tokens_per_second": round(10 * rows / peer_us * 1e6), "ratio": figure(peer_us / us), "rows_equal": 0.75, "faults": []}
    return [
        case | {"who": "persistent", "us": figure(us)} | per_second | about,
        case | {"who": "graphed by hand", "us": figure(peer_us)} | theirs,
    ]


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sections(path):
    return dict(part.split("\n\n", 1) for part in tables_gpu.markdown(path).removeprefix("### ").split("\n\n### "))


def test_every_table_of_a_device(tmp_path):
    right = {"part": "correctness", "feedback": "sequence", "cell": "gru", "H": 16, "B": 3, "T": 4, "dtype": "float16"}
    right |= {"largest_error": 0.001, "allowed": 0.002, "alone_equal": True, "faults": []}
    peer = read_row("peers", "eager loop", 2.0, 1.0)
    skipped = {
        "part": "peers",
        "cell": "lstm",
        "H": 512,
        "B": 8,
        "T": 512,
        "dtype": "bfloat16",
        "peer": "FlashRNN",
        "skipped": "no flashrnn",
    }
    rows = [MACHINE, right, *MEASURED[1:], read_row(), read_row("tables", us=20.0, peer_us=10.0, H=64), peer, skipped, *decode_rows()]
    found = sections(written(tmp_path / "gpu.jsonl", *rows))
    machine = (
        "Made-up GPU (sm_90, 100 multiprocessors), CUDA 13.0, cuDNN 91000; torch 2.13, triton 3.9, fusedrnn 0.2; 2027-01-02, commit 0123456"
    )
    assert all(text.strip().endswith(f"<sub>{machine}; `python -m bench gpu`: gpu.jsonl</sub>") for text in found.values())
    assert list(found) == [
        "What is wrong", "Correctness", "Barrier", "Constants", "Sequences", "Greedy decoding", "What fusedrnn loses", "What has no figure",
    ]  # fmt: skip
    assert found["What is wrong"].startswith("Nothing, in 15 rows, 1 of them of correctness.")
    assert "| 2 | 1 | 0.50 |\n| 32 | 1 | 1.00 |\n| 64 | 2 | 9.00 |" in found["Barrier"]
    bound = floor_gpu.floor(read_row(), floor_gpu.constants([MACHINE, *MEASURED[1:]]))
    distances = f"{bound:.2f} | {2 / bound:.1f} / {5 / bound:.1f} |"
    assert f"| lstm H=512 B=8 T=512 bfloat16 | nn.LSTM (cuDNN) | 2.00 | 5.00 | 2.50 (2.40 to 2.60) | | {distances}" in found["Sequences"]
    wanted = "| lstm H=512 V=1000 B=8 T=10 bfloat16 random weights | graphed by hand | 80,000 | 20,000 | 4.00 (4.00 to 4.00) | 75% |"
    assert wanted in found["Greedy decoding"]
    lost = found["What fusedrnn loses"].splitlines()
    assert lost[0] == "2 of 4 comparisons:"
    assert [line.split(" | ")[:3] for line in lost[4:6]] == [
        ["| tables", "lstm H=64 B=8 T=512 bfloat16", "nn.LSTM (cuDNN)"], ["| peers", "lstm H=512 B=8 T=512 bfloat16", "eager loop"],
    ]  # fmt: skip
    assert "- no flashrnn: peers lstm H=512 B=8 T=512 bfloat16 FlashRNN" in found["What has no figure"]
    assert "mulated" not in tables_gpu.markdown(tmp_path / "gpu.jsonl").lower()


def test_launches_and_gpu_tests_are_told(tmp_path):
    launches = {"part": "barrier", "launches": 10_000, "steps": 16, "programs": 132, "faults": []}
    tests = {"part": "tests", "command": "pytest -m gpu", "said": "12 passed in 9 s", "faults": []}
    found = sections(written(tmp_path / "gpu.jsonl", MACHINE, launches, tests))
    assert found["Barrier"].startswith("10,000 launches of 132 programs and 16 barriers: none hung.")
    assert found["Correctness"].startswith("`pytest -m gpu`: 12 passed in 9 s")
    hung = sections(written(tmp_path / "gpu.jsonl", MACHINE, launches | {"faults": ["1 launches had a program that waited in vain"]}))
    assert "Barrier" not in hung
    assert "waited in vain" in hung["What is wrong"]


def test_the_timeline_in_numbers(tmp_path):
    case = {"part": "timeline", "model": "lstm", "H": 512, "V": 1000, "B": 1, "T": 8, "dtype": "bfloat16", "who": "eager loop"}
    row = case | {"us": 30.0, "operators": [["gemm", 0.0, 4.0], ["sum", 28.0, 2.0]], "launches": 2}
    found = sections(written(tmp_path / "gpu.jsonl", MACHINE, row))["One decode, profiled"]
    assert found.splitlines()[2] == "| lstm H=512 V=1000 B=1 T=8 bfloat16 | eager loop | 2 | 6.00 | 30.00 |"


def test_what_is_wrong_comes_first(tmp_path):
    wrong = {"part": "correctness", "cell": "gru", "H": 16, "faults": ["two runs differ in their bits"]}
    crashed = {"part": "correctness", "cell": "lstm", "H": 16, "error": "the process crashed: SIGSEGV"}
    slow = {"part": "barrier", "programs": 8, "groups": 1, "steps": 5, "error": "no end in 50 s"}
    text = tables_gpu.markdown(written(tmp_path / "gpu.jsonl", MACHINE, read_row(), wrong, crashed, slow))
    lines = ["- correctness gru H=16: two runs differ in their bits", "- correctness lstm H=16: the process crashed: SIGSEGV"]
    assert text.split("\n\n")[:2] == ["### What is wrong", "\n".join(lines)]
    assert "- no end in 50 s: barrier programs=8 groups=1 steps=5" in sections(tmp_path / "gpu.jsonl")["What has no figure"]


def test_without_correctness_nothing_is_called_right(tmp_path):
    assert sections(written(tmp_path / "gpu.jsonl", MACHINE, read_row()))["What is wrong"].startswith("Correctness was not checked.")


def test_the_latest_run_counts_and_other_devices_do_not(tmp_path):
    other = MACHINE | {"device": MACHINE["device"] | {"name": "Another GPU"}}
    failed = {"part": "sequence", "cell": "lstm", "H": 512, "B": 8, "T": 512, "dtype": "bfloat16", "error": "no time left"}
    rows = [MACHINE, read_row(us=9.0), failed, other, read_row(us=1.0), read_row(us=1.0, H=64), MACHINE, read_row(us=2.5)]
    found = gpu_rows.read(written(tmp_path / "gpu.jsonl", *rows))
    assert [pair.ours for pair in gpu_rows.pairs(found, "sequence")] == [2.5]
    assert not any("error" in row for row in found.rows)
    assert "<br>2 rows of other devices in the file are left out: gpu.jsonl" in tables_gpu.source(found, tmp_path / "gpu.jsonl")


def test_a_failure_after_a_figure_is_told(tmp_path):
    failed = {"part": "tables", "cell": "lstm", "H": 512, "B": 8, "T": 512, "dtype": "bfloat16", "error": "the process crashed: SIGSEGV"}
    found = sections(written(tmp_path / "gpu.jsonl", MACHINE, read_row("tables"), MACHINE, failed))
    assert "SIGSEGV: tables lstm H=512" in found["What has no figure"]


def test_emulated_rows_say_so_beside_every_figure(tmp_path):
    """Rows as the dry run makes them, one of them for real."""
    pytest.importorskip("triton")
    (case, *_) = [case for case in parts.cases("peers", Where(True)) if case["peer"] == "eager loop"]
    (measured,) = parts.measured("peers", case, Where(True), 60.0)
    machine = {name: value for name, value in MACHINE.items() if name != "device"}
    rows = [machine, {"part": "peers"} | case | measured, *MEASURED[1:], *decode_rows()]
    path = written(tmp_path / "emulated.jsonl", *({"part": row["part"], "emulated": True} | row for row in rows))
    found = sections(path)
    assert "Sequences (emulated)" in found
    assert "Greedy decoding (emulated)" in found
    for title, text in found.items():
        assert title.endswith(" (emulated)")
        assert text.startswith("**EMULATED on a CPU: no GPU has given any figure of this table.**")
        assert "<sub>EMULATED, no GPU: A CPU; " in text
    assert gpu_rows.read(path).constants is None
    assert "cuDNN" not in tables_gpu.markdown(path)


def asked(path, **changes):
    return report.run(
        argparse.Namespace(**{"check": False, "readme": report._README, "results": None, "beside": False, "gpu": path} | changes)
    )


def test_the_command_prints_them(tmp_path, capsys):
    before = report._README.read_text()
    assert asked(written(tmp_path / "gpu.jsonl", MACHINE, read_row())) == 0
    assert capsys.readouterr().out == tables_gpu.markdown(tmp_path / "gpu.jsonl")
    assert report._README.read_text() == before
    assert asked(tmp_path / "gpu.jsonl", check=True) == 2
    assert "goes alone" in capsys.readouterr().err


@pytest.mark.parametrize(("rows", "said"), [([read_row()], "not of the machine"), ([], "has no row")])
def test_other_files_are_refused(tmp_path, capsys, rows, said):
    assert asked(written(tmp_path / "x.jsonl", *rows)) == 2
    assert said in capsys.readouterr().err
