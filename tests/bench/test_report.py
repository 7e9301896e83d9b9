"""README's tables: where they are put, what is refused, and that README is what the results say."""

import argparse
import json

import pytest

from bench import report, tables

PLACED = "before\n<!-- table: one -->\nold\n<!-- end -->\nbetween\n<!-- table: two -->\n<!-- end -->\nafter\n"


@pytest.fixture(autouse=True)
def two(monkeypatch, request):
    if "made" in request.node.name or "marker" in request.node.name:
        monkeypatch.setattr(report, "TABLES", {"one": lambda: "| 1 |", "two": lambda: "| 2 |\\1"})


def run(path, *, check):
    return report.run(argparse.Namespace(check=check, readme=path, results=None, beside=False, gpu=None))


def test_readme_is_what_the_results_say():
    assert run(report._README, check=True) == 0


def result(path, *ratios):
    """A file of another machine."""
    shape = {"layers": 1, "H": 512, "V": 1000, "B": 1, "T": 32, "dtype": "float32"}
    row = {"case": "decode", "shape": shape, "peer": "eager loop", "unit": "tokens/s", "count": 32, "ratio": ratios[1], "ratios": ratios}
    machine = {"cpu": "Another CPU", "cpus": 4, "threads": 4, "load": [0.5, 0, 0]}
    about = {"machine": machine, "load_after": [1, 0, 0], "versions": {"torch": "2.14"}, "date": "2027-01-01", "commit": "0123456789"}
    rows = [row | {"fusedrnn_median_seconds": 0.01, "peer_median_seconds": 0.02}]
    path.write_text(json.dumps({"parts": {"decode": about | {"command": "python -m bench cpu --only decode", "rows": rows}}}))
    return path


def test_another_result_is_printed_and_readme_stays(tmp_path, capsys):
    before = report._README.read_text()
    path = result(tmp_path / "other.json", 1.5, 2.0, 2.5)
    assert report.run(argparse.Namespace(check=False, readme=report._README, results=path, beside=False, gpu=None)) == 0
    said = capsys.readouterr().out
    assert "decode\n\n| | fusedrnn tokens/s | eager loop |\n" in said
    assert "| layers=1 H=512 V=1000 B=1 T=32 float32 | 3,200 | 2.00 (1.50 to 2.50) |" in said
    assert "`python -m bench cpu --only decode`: other.json</sub>" in said
    assert "g2p is left out: " in said
    assert report._README.read_text() == before
    assert run(report._README, check=True) == 0  # it is the recorded one that README is held to


def test_ratios_stand_beside_the_recorded_ones(tmp_path, capsys):
    (recorded,) = [one for what, one, _ in tables.beside(tables.CPU) if what == "decode layers=1 H=512 V=1000 B=1 T=32 float32 eager loop"]
    most = max(recorded["ratios"])
    for ratios, said in (((most, most + 1, most + 2), "1 of 1 spreads overlap"), ((most + 1,) * 3, "0 of 1 spreads overlap")):
        path = result(tmp_path / f"{ratios[0]}.json", *ratios)
        assert report.run(argparse.Namespace(check=False, readme=report._README, results=path, beside=True, gpu=None)) == 0
        out = capsys.readouterr().out
        assert "there: Another CPU, 4 CPUs, 4 threads" in out
        assert out.splitlines()[-1] == said
        assert out.splitlines()[-2].endswith("apart") == said.startswith("0")


def test_beside_needs_a_result(capsys):
    assert report.run(argparse.Namespace(check=False, readme=report._README, results=None, beside=True, gpu=None)) == 2
    assert "--results FILE" in capsys.readouterr().err


def test_made_up_tables_are_written_between_their_markers(tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(PLACED)
    assert run(path, check=True) == 1
    assert path.read_text() == PLACED
    said = capsys.readouterr()
    assert "-old\n" in said.out
    assert "python -m bench report writes it" in said.err
    assert run(path, check=False) == 0
    assert path.read_text() == PLACED.replace("old\n", "| 1 |\n").replace("two -->\n", "two -->\n| 2 |\\1\n")
    assert run(path, check=True) == 0


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<!-- table: three -->\n<!-- end -->\n", "no table is called three; there are one, two"),
        ("<!-- table: one -->\n| 1 |\n", "no '<!-- end -->' of its own"),
        ("<!-- table: one -->\n<!-- table: two -->\n<!-- end -->\n", "no '<!-- end -->' of its own"),
    ],
)
def test_bad_markers_are_refused(tmp_path, capsys, text, fault):
    path = tmp_path / "README.md"
    path.write_text(text)
    assert run(path, check=False) == 2
    assert fault in capsys.readouterr().err
    assert path.read_text() == text


def test_every_table_is_in_readme():
    assert {name for name in tables.TABLES if f"<!-- table: {name} -->" in report._README.read_text()} == set(tables.TABLES)
