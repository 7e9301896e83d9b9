"""README's tables: where they are put, what is refused, and that README is what the results say."""

import argparse

import pytest

from bench import report, tables

PLACED = "before\n<!-- table: one -->\nold\n<!-- end -->\nbetween\n<!-- table: two -->\n<!-- end -->\nafter\n"


@pytest.fixture(autouse=True)
def two(monkeypatch, request):
    if request.node.name != "test_readme_is_what_the_results_say":
        monkeypatch.setattr(report, "TABLES", {"one": lambda: "| 1 |", "two": lambda: "| 2 |\\1"})


def run(path, *, check):
    return report.run(argparse.Namespace(check=check, readme=path))


def test_readme_is_what_the_results_say():
    assert report.run(argparse.Namespace(check=True, readme=report._README)) == 0


def test_tables_are_written_between_their_markers(tmp_path, capsys):
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
