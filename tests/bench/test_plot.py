"""Plots: each is drawn from the recorded result, small, and on nothing."""

import argparse
import sys

import pytest

from bench import plot
from bench.report import _README


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # matplotlib's own
def test_every_plot_is_drawn_transparent_and_stands_in_readme(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    assert plot.run(argparse.Namespace(only=list(plot.PLOTS), out=tmp_path)) == 0
    for name in plot.PLOTS:
        path = tmp_path / f"{name}.png"
        assert path.stat().st_size < 120_000
        with image.open(path) as drawn:
            alpha = drawn.convert("RGBA").getchannel("A")
            assert alpha.getpixel((0, 0)) == 0
            assert alpha.getextrema()[1] == 255
        assert f"(bench/results/{name}.png)" in _README.read_text()
        assert (plot.RESULTS / f"{name}.png").is_file()


def test_without_matplotlib_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.run(argparse.Namespace(only=["batch"], out=tmp_path)) == 2
    assert "pip install 'fusedrnn[bench]'" in capsys.readouterr().err
