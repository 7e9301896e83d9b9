"""Plots of a GPU's lines, of a made-up device and of emulated rows."""

import argparse

import pytest

from bench import plot, plot_gpu

from .test_tables_gpu import MACHINE, MEASURED, decode_rows, read_row, written

GRID = [read_row("tables", us=size / 100, H=size, B=count) for size in (128, 512, 1024) for count in (1, 8)]


def drawn(path, folder=None, only=None):
    return plot.run(argparse.Namespace(only=only, out=folder, results=plot.CPU, gpu=path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # matplotlib's own
def test_plots_are_drawn_small_and_transparent(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    peers = [read_row("peers", "eager loop", H=size) for size in (128, 512)]
    decode = {"part": "timeline", "model": "lstm", "H": 512, "V": 1000, "B": 1, "T": 8, "dtype": "bfloat16", "who": "fusedrnn", "us": 9.0}
    decode |= {"operators": [["gemm", 0.0, 9.0]], "launches": 1}
    path = written(tmp_path / "gpu.jsonl", MACHINE, *MEASURED[1:], *GRID, *peers, *decode_rows(1), *decode_rows(64), decode)
    assert drawn(path) == 0
    assert "left out" not in capsys.readouterr().out
    for name in plot_gpu.plots(path):
        assert (tmp_path / f"{name}.png").stat().st_size < 120_000
        with image.open(tmp_path / f"{name}.png") as png:
            alpha = png.convert("RGBA").getchannel("A")
            assert alpha.getpixel((0, 0)) == 0
            assert alpha.getextrema()[1] == 255


def test_lines_of_the_hidden_size(tmp_path):
    pytest.importorskip("matplotlib")
    path = written(tmp_path / "gpu.jsonl", MACHINE, *MEASURED[1:], *GRID)
    figure, made_on = plot_gpu.plots(path)["gpu-hidden"]()
    assert made_on == "Made-up GPU, torch 2.13"
    assert [axis.get_title() for axis in figure.axes] == ["LSTM, bfloat16, B = 1", "LSTM, bfloat16, B = 8"]
    own, peer, floor = figure.axes[0].lines
    assert [line.get_label() for line in (own, peer, floor)] == ["fusedrnn", "nn.LSTM", "floor (a model)"]
    assert list(own.get_xdata()) == [128, 512, 1024]
    assert list(own.get_ydata()) == [1.28, 5.12, 10.24]
    assert all(bound > 0 for bound in floor.get_ydata())


def test_tokens_against_the_batch(tmp_path):
    pytest.importorskip("matplotlib")
    path = written(tmp_path / "gpu.jsonl", MACHINE, *decode_rows(1), *decode_rows(64))
    figure, _ = plot_gpu.plots(path)["gpu-batch"]()
    own, peer = figure.axes[0].lines
    assert list(own.get_ydata()) == [10_000, 640_000]
    assert list(peer.get_ydata()) == [2_500, 160_000]


def test_emulated_plots_say_so(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"part": row["part"], "emulated": True} | row for row in (MACHINE, *MEASURED[1:], *GRID)]
    figure, made_on = plot_gpu.plots(written(tmp_path / "emulated.jsonl", *rows))["gpu-hidden"]()
    assert made_on == "EMULATED on a CPU: no GPU has given any of this"
    assert "floor (a model)" not in [line.get_label() for line in figure.axes[0].lines]


def test_what_is_not_there_is_told(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = written(tmp_path / "gpu.jsonl", MACHINE, read_row(), *decode_rows())
    assert drawn(path) == 0
    assert drawn(path, only=["steps"]) == 0
    said = capsys.readouterr().out
    assert "gpu-hidden is left out: no batch size of an LSTM" in said
    assert "gpu-batch is left out: no decode has several batch sizes" in said
    assert "gpu-steps is left out: there are gpu-hidden, " in said
    assert list(tmp_path.glob("*.png")) == []
    assert drawn(written(tmp_path / "none.jsonl", read_row())) == 2
