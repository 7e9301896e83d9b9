"""Plots of a recorded result, for README. In: bench/results; out: small PNGs, mid-tones on nothing, to be read on white and on black."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .case import Shape
from .floor import floor, microseconds
from .runner import Row, rate
from .tables import CPU, machine, measured, reading, rows
from .tables import constants as constants_of_machine

GREY = "#8a8a8a"
_OTHERS = ("#4a8fd0", "#45a36f", "#a67bd4", "#c9a13b", "#3fa7ad", "#d0709a")
FUSEDRNN = "#e0633a"
_COLOURS = {  # by how names begin: a peer has one colour in every plot
    "nn.LSTM": "#4a8fd0", "eager": "#45a36f", "JAX": "#a67bd4", "onnxruntime": "#c9a13b", "torch.compile of the step": "#3fa7ad",
    "torch.compile of while_loop": "#d0709a", "FlashRNN": "#a67bd4", "TorchRL": "#c9a13b", "cuBLAS and pointwise in": "#7f9a2f",
    "cuBLAS": "#b5794f", "graphed": "#7f9a2f", "fusedrnn's stepwise": "#4a8fd0", "fusedrnn's reference": "#45a36f",
}  # fmt: skip
_LOOP = "compiled loop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--only", nargs="+", choices=list(PLOTS), metavar="PLOT", help=f"some of {', '.join(PLOTS)}")
    parser.add_argument("--results", type=Path, default=CPU, metavar="FILE", help="what bench cpu --json wrote (default: what is recorded)")
    parser.add_argument("--gpu", type=Path, metavar="FILE.jsonl", help="draw what bench gpu wrote instead, as gpu-NAME.png")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where NAME.png is written (default: bench/results, or where FILE is)")


def run(args: argparse.Namespace) -> int:
    """Draw them; 2 without matplotlib."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        print(f"bench plot: {error}; pip install 'fusedrnn[bench]'", file=sys.stderr)
        return 2
    mpl.use("Agg")
    parts = {"text.color": GREY, "axes.edgecolor": GREY, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY}
    sizes = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "fusedrnn"}
    folder = args.out or (args.gpu or args.results).parent
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({**parts, **sizes}):
        if args.gpu:
            from . import plot_gpu

            try:
                plots = plot_gpu.plots(args.gpu)
            except LookupError as error:
                print(f"bench plot: {error}", file=sys.stderr)
                return 2
            _draw(plots, args.only, folder)
            return 0
        with reading(args.results):
            named = {name: lambda make=make, part=_DRAWN[name]: (make(), machine(args.results, part)) for name, make in PLOTS.items()}
            _draw(named, args.only, folder)
    return 0


def _draw(plots: Mapping[str, Callable[[], tuple[Any, str]]], only: Sequence[str] | None, folder: Path) -> None:
    """Each that there are rows for: a function gives the figure and what it was made on. A name of ``only`` may leave out a prefix."""
    for name in only or [name.removeprefix("gpu-") for name in plots]:
        full = name if name in plots else f"gpu-{name}"
        try:
            if full not in plots:
                raise LookupError(f"there are {', '.join(plots)}")
            figure, made_on = plots[full]()
        except LookupError as error:
            print(f"{full} is left out: {error}")
            continue
        figure.text(0.995, 1.0, made_on, ha="right", va="bottom", fontsize=7, color=GREY)
        path = folder / f"{full}.png"
        figure.savefig(path, dpi=125, transparent=True, bbox_inches="tight", metadata={"Software": None})
        print(f"{path}: {path.stat().st_size // 1024} KiB")


def figure_of(columns: int = 1, height: float = 3.2) -> tuple[Any, Any]:
    """A figure as wide as README, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, height))
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _colour(peer: str) -> str:
    return next((colour for start, colour in _COLOURS.items() if peer.startswith(start)), GREY)


def _rows(case: str, keep: Callable[[Shape], bool]) -> list[Row]:
    found = [row for row in rows(case) if keep(row["shape"])]
    if not found:
        raise LookupError(f"no row of {case} has a shape that is drawn")
    return found


def lines(axis: Any, found: list[Row], along: str, value: Callable[[Row, str], float], peers: list[str]) -> None:
    """fusedrnn and each peer along an axis of the shape; for fusedrnn the median over its peers' pairs."""
    from matplotlib.ticker import LogLocator

    places = sorted({row["shape"][along] for row in found})
    ours = [statistics.median(value(row, "fusedrnn") for row in found if row["shape"][along] == place) for place in places]
    axis.plot(places, ours, color=FUSEDRNN, marker="o", linewidth=2.4, label="fusedrnn", zorder=3)
    for peer in peers:
        points = sorted((row["shape"][along], value(row, "peer")) for row in found if row["peer"] == peer)
        if points:
            axis.plot(*zip(*points, strict=True), color=_colour(peer), marker="o", markersize=4, linewidth=1.3, label=peer)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(places, [str(place) for place in places])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, place: f"{value:,.6g}")
    axis.minorticks_off()
    axis.grid(color=GREY, alpha=0.25, linewidth=0.6)


def peers_of(found: list[Row]) -> list[str]:
    """Their names, in the order of rows."""
    return list(dict.fromkeys(row["peer"] for row in found))


def legend(figure: Any, *axes: Any) -> None:
    """One for all axes, whose lines of a name have one colour."""
    named = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3)
    figure.tight_layout()


def hidden() -> Any:
    """Microseconds a step of an LSTM against its hidden size, for each batch size, with the floor."""
    found = _rows("sequence", lambda shape: (shape["cell"], shape["dtype"], shape["T"]) == ("lstm", "float32", 128))
    constants, peers = constants_of_machine(), peers_of(found)
    sizes = {
        count: {row["shape"]["H"] for row in found if row["shape"]["B"] == count} for count in sorted({row["shape"]["B"] for row in found})
    }
    batches = [count for count, several in sizes.items() if len(several) > 1]
    if not batches:
        raise LookupError("no batch size of sequence has several hidden sizes")
    figure, axes = figure_of(len(batches), 3.4)
    for axis, count in zip(axes, batches, strict=True):
        here = [row for row in found if row["shape"]["B"] == count]
        lines(axis, here, "H", microseconds, peers)
        if constants is not None:
            bounds = {row["shape"]["H"]: floor("sequence", row["shape"], constants) for row in here}
            points = sorted((size, bound[0]) for size, bound in bounds.items() if bound is not None)
            axis.plot(*zip(*points, strict=True), color=GREY, linestyle="--", linewidth=1.3, label="floor (a model)")
        axis.set_title(f"LSTM over a sequence, B = {count}", fontsize=9)
        axis.set_xlabel("hidden size")
    axes[0].set_ylabel("microseconds a step")
    legend(figure, axes[-1])
    return figure


def batch() -> Any:
    """Tokens a second of a greedy decode against the batch size."""
    found = _rows(
        "decode", lambda shape: (shape["layers"], shape["H"], shape["V"], shape.get("dtype", "float32")) == (1, 512, 1000, "float32")
    )
    figure, (axis,) = figure_of()
    lines(axis, found, "B", rate, peers_of(found))
    axis.set_title("greedy decoding, LSTM H = 512, V = 1,000", fontsize=9)
    axis.set_xlabel("rows")
    axis.set_ylabel("tokens a second")
    legend(figure, axis)
    return figure


def steps() -> Any:
    """Milliseconds of a whole decode against the number of steps."""
    first = _rows("growth", lambda shape: True)[0]["shape"]
    found = _rows("growth", lambda shape: all(shape[name] == first[name] for name in ("B", "H", "V")))
    figure, (axis,) = figure_of()
    lines(axis, found, "T", lambda row, who: float(row[f"{who}_median_seconds"]) * 1e3, peers_of(found))
    axis.set_title(f"a greedy decode, LSTM H = {first['H']}, V = {first['V']:,}, {first['B']} rows", fontsize=9)
    axis.set_xlabel("steps")
    axis.set_ylabel("milliseconds")
    legend(figure, axis)
    return figure


def timeline() -> Any:
    """When which operators run in one decode."""
    return timeline_of(measured("timeline"), "microseconds (profiled); grey is Python between the operators")


def timeline_of(found: Sequence[Row], label: str, fused: str = _LOOP) -> Any:
    """A bar for each who decodes. ``fused`` is what fusedrnn's own operator is called; the longest of the others have colours."""
    figure, (axis,) = figure_of(height=0.7 + 0.6 * len(found))
    taken: Counter[str] = Counter()
    for row in found:
        for name, _, took in row["operators"]:
            taken[name] += took * (name != fused)
    names = [name for name, _ in taken.most_common(len(_OTHERS))]
    for place, row in enumerate(reversed(found)):
        axis.barh(place, row["us"], height=0.62, color=GREY, alpha=0.22)
        for name, start, took in row["operators"]:
            colour = FUSEDRNN if name == fused else _OTHERS[names.index(name) % len(_OTHERS)] if name in names else GREY
            axis.barh(place, took, left=start, height=0.62, color=colour, edgecolor="none", label=name.removeprefix("aten::"))
        axis.text(row["us"], place, f"  {row['us']:,.0f} us", va="center", color=GREY)
    axis.set_yticks(range(len(found)), [row["who"] for row in reversed(found)])
    axis.set_xlabel(label)
    axis.xaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
    axis.set_xlim(0, max(row["us"] for row in found) * 1.12)
    shape = found[0]["shape"]
    axis.set_title(f"one greedy decode of {shape['T']} tokens, LSTM H = {shape['H']}, V = {shape['V']:,}, B = {shape['B']}", fontsize=9)
    handles, labels = axis.get_legend_handles_labels()
    shown = {label: handle for handle, label in zip(handles, labels, strict=True) if label == fused or {label, f"aten::{label}"} & {*names}}
    figure.legend(list(shown.values()), list(shown), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=6)
    figure.tight_layout()
    return figure


_DRAWN = {"hidden": "sequence", "batch": "decode", "steps": "growth", "timeline": "timeline"}  # the part of each
PLOTS: dict[str, Callable[[], Any]] = {"hidden": hidden, "batch": batch, "steps": steps, "timeline": timeline}
