"""Plots of a recorded result, for README. In: bench/results; out: small PNGs, mid-tones on nothing, to be read on white and on black."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import Shape
from .floor import RESULTS, constants_of, floor, microseconds
from .runner import Row, rate
from .tables import measured, rows

_GREY = "#8a8a8a"
_COLOURS = {"fusedrnn": "#e0633a", "floor": _GREY}
_OTHERS = ("#4a8fd0", "#45a36f", "#a67bd4", "#c9a13b", "#3fa7ad", "#d0709a")
_EAGER = "eager loop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--only", nargs="+", choices=list(PLOTS), default=list(PLOTS), metavar="PLOT", help=f"some of {', '.join(PLOTS)}")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where NAME.png is written (default: bench/results)")


def run(args: argparse.Namespace) -> int:
    """Draw them; 2 without matplotlib."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        print(f"bench plot: {error}; pip install 'fusedrnn[bench]'", file=sys.stderr)
        return 2
    mpl.use("Agg")
    parts = {"text.color": _GREY, "axes.edgecolor": _GREY, "axes.labelcolor": _GREY, "xtick.color": _GREY, "ytick.color": _GREY}
    sizes = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "fusedrnn"}
    with mpl.rc_context({**parts, **sizes}):
        for name in args.only:
            figure = PLOTS[name]()
            path = args.out / f"{name}.png"
            figure.savefig(path, dpi=110, transparent=True, bbox_inches="tight", metadata={"Software": None})
            print(f"{path}: {path.stat().st_size // 1024} KiB")
    return 0


def _figure(columns: int = 1, height: float = 3.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, height))
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _colour(peer: str, peers: list[str]) -> str:
    return _COLOURS.get(peer) or _OTHERS[peers.index(peer) % len(_OTHERS)]


def _rows(case: str, keep: Callable[[Shape], bool]) -> list[Row]:
    return [row for row in rows(case) if keep(row["shape"])]


def _lines(axis: Any, found: list[Row], along: str, value: Callable[[Row, str], float], peers: list[str]) -> None:
    """fusedrnn and each peer along an axis of the shape; for fusedrnn the median over its peers' pairs."""
    from matplotlib.ticker import LogLocator

    places = sorted({row["shape"][along] for row in found})
    ours = [statistics.median(value(row, "fusedrnn") for row in found if row["shape"][along] == place) for place in places]
    axis.plot(places, ours, color=_COLOURS["fusedrnn"], marker="o", linewidth=2.4, label="fusedrnn", zorder=3)
    for peer in peers:
        points = sorted((row["shape"][along], value(row, "peer")) for row in found if row["peer"] == peer)
        if points:
            axis.plot(*zip(*points, strict=True), color=_colour(peer, peers), marker="o", markersize=4, linewidth=1.3, label=peer)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(places, [str(place) for place in places])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, place: f"{value:,.6g}")
    axis.minorticks_off()
    axis.grid(color=_GREY, alpha=0.25, linewidth=0.6)


def _peers(found: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["peer"] for row in found))


def _legend(figure: Any, axis: Any) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    figure.tight_layout()


def hidden() -> Any:
    """Microseconds a step of an LSTM against its hidden size, for each batch size, with the floor."""
    found = _rows("sequence", lambda shape: shape["cell"] == "lstm" and shape["dtype"] == "float32")
    constants, peers = constants_of(measured("machine")), _peers(found)
    sizes = {
        count: {row["shape"]["H"] for row in found if row["shape"]["B"] == count} for count in sorted({row["shape"]["B"] for row in found})
    }
    batches = [count for count, several in sizes.items() if len(several) > 1]
    figure, axes = _figure(len(batches), 3.4)
    for axis, count in zip(axes, batches, strict=True):
        here = [row for row in found if row["shape"]["B"] == count]
        _lines(axis, here, "H", microseconds, peers)
        if constants is not None:
            bounds = {row["shape"]["H"]: floor("sequence", row["shape"], constants) for row in here}
            points = sorted((size, bound[0]) for size, bound in bounds.items() if bound is not None)
            axis.plot(*zip(*points, strict=True), color=_GREY, linestyle="--", linewidth=1.3, label="floor (a model)")
        axis.set_title(f"LSTM over a sequence, B = {count}", fontsize=9)
        axis.set_xlabel("hidden size")
    axes[0].set_ylabel("microseconds a step")
    _legend(figure, axes[-1])
    return figure


def batch() -> Any:
    """Tokens a second of a greedy decode against the batch size."""
    found = _rows("decode", lambda shape: (shape["layers"], shape["H"], shape["V"]) == (1, 512, 1000))
    figure, (axis,) = _figure()
    _lines(axis, found, "B", rate, _peers(found))
    axis.set_title("greedy decoding, LSTM H = 512, V = 1,000", fontsize=9)
    axis.set_xlabel("rows")
    axis.set_ylabel("tokens a second")
    _legend(figure, axis)
    return figure


def steps() -> Any:
    """Milliseconds of a whole decode against the number of steps."""
    first = rows("growth")[0]["shape"]
    found = _rows("growth", lambda shape: all(shape[name] == first[name] for name in ("B", "H", "V")))
    figure, (axis,) = _figure()
    _lines(axis, found, "T", lambda row, who: float(row[f"{who}_median_seconds"]) * 1e3, _peers(found))
    axis.set_title(f"a greedy decode, LSTM H = {first['H']}, V = {first['V']}, {first['B']} rows", fontsize=9)
    axis.set_xlabel("steps")
    axis.set_ylabel("milliseconds")
    _legend(figure, axis)
    return figure


def timeline() -> Any:
    """When which operators run in one decode."""
    found = measured("timeline")
    figure, (axis,) = _figure(height=1.9)
    names = list(dict.fromkeys(name for row in found for name, _, took in row["operators"] if took > 8 and name != "compiled loop"))
    for place, row in enumerate(reversed(found)):
        axis.barh(place, row["us"], height=0.62, color=_GREY, alpha=0.22)
        for name, start, took in row["operators"]:
            colour = (
                _COLOURS["fusedrnn"] if name == "compiled loop" else _OTHERS[names.index(name) % len(_OTHERS)] if name in names else _GREY
            )
            axis.barh(place, took, left=start, height=0.62, color=colour, edgecolor="none", label=name.removeprefix("aten::"))
        axis.text(row["us"], place, f"  {row['us']:,.0f} us", va="center", color=_GREY)
    axis.set_yticks(range(len(found)), [row["who"] for row in reversed(found)])
    axis.set_xlabel("microseconds (profiled); grey is Python between the operators")
    axis.set_xlim(0, max(row["us"] for row in found) * 1.12)
    shape = found[0]["shape"]
    axis.set_title(f"one greedy decode of {shape['T']} tokens, LSTM H = {shape['H']}, V = {shape['V']}, B = {shape['B']}", fontsize=9)
    handles, labels = axis.get_legend_handles_labels()
    shown = {label: handle for handle, label in zip(handles, labels, strict=True) if label == "compiled loop" or f"aten::{label}" in names}
    figure.legend(list(shown.values()), list(shown), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=6)
    figure.tight_layout()
    return figure


PLOTS: dict[str, Callable[[], Any]] = {"hidden": hidden, "batch": batch, "steps": steps, "timeline": timeline}
