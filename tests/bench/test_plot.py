"""Plots: each is drawn from the recorded result, small, and on nothing."""

import argparse
import json
import sys

import pytest

from bench import plot
from bench.report import _README


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # matplotlib's own
def test_every_plot_is_drawn_transparent_and_stands_in_readme(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    assert plot.run(argparse.Namespace(only=list(plot.PLOTS), out=tmp_path, results=plot.CPU, gpu=None)) == 0
    for name in plot.PLOTS:
        path = tmp_path / f"{name}.png"
        assert path.stat().st_size < 120_000
        with image.open(path) as drawn:
            alpha = drawn.convert("RGBA").getchannel("A")
            assert alpha.getpixel((0, 0)) == 0
            assert alpha.getextrema()[1] == 255
        assert f"(bench/results/{name}.png)" in _README.read_text()
        assert (plot.CPU.parent / f"{name}.png").is_file()


def test_without_matplotlib_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.run(argparse.Namespace(only=["batch"], out=tmp_path, results=plot.CPU, gpu=None)) == 2
    assert "pip install 'fusedrnn[bench]'" in capsys.readouterr().err


def test_what_a_result_has_not_is_told(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "result.json"
    shape = {"cell": "lstm", "H": 256, "B": 1, "T": 64, "dtype": "float32"}
    row = {"case": "sequence", "shape": shape, "peer": "eager loop", "ratio": 1.0}
    path.write_text(json.dumps({"parts": {"calls": {"rows": []}, "growth": {"rows": []}, "sequence": {"rows": [row]}}}))
    assert plot.run(argparse.Namespace(only=list(plot.PLOTS), out=None, results=path, gpu=None)) == 0
    said = capsys.readouterr().out
    for name in plot.PLOTS:
        assert f"{name} is left out: " in said
    assert list(tmp_path.iterdir()) == [path]
