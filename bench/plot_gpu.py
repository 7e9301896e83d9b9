"""Plots of what `bench gpu` wrote. In: its file of lines; out: figures, drawn as those of a CPU are, each with what it was made on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .floor_gpu import Row
from .gpu_rows import Found, Pair, pairs, read, shape_of
from .parts.timeline import FUSED
from .plot import GREY, figure_of, legend, lines, peers_of, timeline_of
from .tables_gpu import OURS

_MOST = 4  # batch sizes that are drawn beside one another


def plots(path: Path) -> dict[str, Callable[[], tuple[Any, str]]]:
    """A function for each plot, which raises LookupError where the file has no rows for it.

    Raises:
        LookupError: it is not what `bench gpu` wrote.
    """
    found = read(path)
    made_on = _made_on(found)
    return {name: partial(lambda make: (make(found), made_on), make) for name, make in _PLOTS.items()}


def _made_on(found: Found) -> str:
    row = found.machines[-1]
    return (
        "EMULATED on a CPU: no GPU has given any of this"
        if found.emulated
        else f"{row['device']['name']}, torch {row['versions']['torch']}"
    )


def _row(pair: Pair) -> Row:
    """As `bench.plot.lines` reads it."""
    peer = f"fusedrnn's {pair.peer}" if pair.peer in OURS else f"nn.{pair.peer}" if pair.part in ("sequence", "tables") else pair.peer
    return {"shape": pair.shape, "peer": peer, "pair": pair}


def _step(row: Row, who: str) -> float:
    pair: Pair = row["pair"]
    return pair.ours if who == "fusedrnn" else pair.theirs


def _rate(row: Row, who: str) -> float:
    tokens: tuple[float, float] = row["pair"].tokens
    return tokens[who != "fusedrnn"]


def _most(rows: list[Row], *names: str) -> list[Row]:
    """Of the values of some names of the shape, those that most rows have."""
    kinds = Counter(tuple(row["shape"].get(name) for name in names) for row in rows)
    if not kinds:
        return []
    most = kinds.most_common(1)[0][0]
    return [row for row in rows if tuple(row["shape"].get(name) for name in names) == most]


def hidden(found: Found) -> Any:
    """Microseconds a step of an LSTM against its hidden size, for each batch size, with the floor."""
    rows = [_row(pair) for pair in pairs(found, "tables", "sequence", "peers") if pair.shape["cell"] == "lstm"]
    rows = [row for row in rows if row["shape"]["dtype"] == "bfloat16"]
    sizes = {count: {row["shape"]["H"] for row in rows if row["shape"]["B"] == count} for count in {row["shape"]["B"] for row in rows}}
    telling = sorted((count for count, several in sizes.items() if len(several) > 1), key=lambda count: (-len(sizes[count]), count))
    batches = sorted(telling[:_MOST])
    if not batches:
        raise LookupError("no batch size of an LSTM in bfloat16 has several hidden sizes")
    figure, axes = figure_of(len(batches), 3.4)
    for axis, count in zip(axes, batches, strict=True):
        here = _one_each([row for row in rows if row["shape"]["B"] == count])
        lines(axis, here, "H", _step, peers_of(here))
        bounds = sorted((row["shape"]["H"], row["pair"].bound) for row in here if row["pair"].bound is not None)
        if bounds:
            axis.plot(*zip(*bounds, strict=True), color=GREY, linestyle="--", linewidth=1.3, label="floor (a model)")
        axis.set_title(f"LSTM, bfloat16, B = {count}", fontsize=9)
        axis.set_xlabel("hidden size")
    axes[0].set_ylabel("microseconds a step")
    legend(figure, *axes)
    return figure


def _one_each(rows: list[Row]) -> list[Row]:
    """One row for each size and peer, the longest sequence's: launch and what comes before the loop weigh least there."""
    best: dict[tuple[int, str], Row] = {}
    for row in rows:
        key = row["shape"]["H"], row["peer"]
        if key not in best or row["shape"]["T"] > best[key]["shape"]["T"]:
            best[key] = row
    return list(best.values())


def batch(found: Found) -> Any:
    """Tokens a second of a greedy decode against the batch size."""
    rows = _most([_row(pair) for pair in pairs(found, "decode")], "model", "H", "V", "T", "dtype", "weights")
    if len({row["shape"]["B"] for row in rows}) < 2:
        raise LookupError("no decode has several batch sizes")
    figure, (axis,) = figure_of()
    lines(axis, rows, "B", _rate, peers_of(rows))
    shape = rows[0]["shape"]
    size = f", H = {shape['H']}, V = {shape['V']:,}" if "H" in shape else ""
    axis.set_title(f"greedy decoding, {shape['model']}{size}, {shape['dtype']}, {shape['weights']}", fontsize=9)
    axis.set_xlabel("rows")
    axis.set_ylabel("tokens a second")
    legend(figure, axis)
    return figure


def timeline(found: Found) -> Any:
    """When which kernels run in one decode."""
    rows = [row | {"shape": shape_of(row)} for row in found.rows if row["part"] == "timeline" and "operators" in row]
    if not rows:
        raise LookupError("there is no timeline")
    shape = rows[0]["shape"]
    rows = [row | {"who": f"{row['who']}, {_launches(row)}"} for row in rows if row["shape"] == shape]
    label = "microseconds, profiled on the CPU" if found.emulated else "microseconds, profiled; grey is an idle GPU"
    return timeline_of(rows, label, FUSED)


def _launches(row: Row) -> str:
    what = "operator" if row.get("emulated") else "launch"
    return f"{row['launches']} {what}{'' if row['launches'] == 1 else 'es' if what == 'launch' else 's'}"


_PLOTS: dict[str, Callable[[Found], Any]] = {"gpu-hidden": hidden, "gpu-batch": batch, "gpu-timeline": timeline}
