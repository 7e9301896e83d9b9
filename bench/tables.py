"""README's tables. In: recorded results; out: Markdown, every figure with its machine and the command that measured it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from .case import text
from .floor import RESULTS, constants_of, floor, microseconds
from .runner import Row, rate

CPU = "cpu2.json"
_SEQUENCES = ("layer_norm", "custom", "ragged")
_COMPARED = ("g2p", "sequence", *_SEQUENCES, "decode", "training")
_TITLES = {
    "layer_norm": "layer-norm LSTM",
    "custom": "a cell of one's own",
    "ragged": "LSTM, lengths 1 to T",
    "sequence": "",
    "decode": "decode",
}


@cache
def result(name: str) -> dict[str, Any]:
    """A recorded result."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def measured(*names: str) -> list[Row]:
    """The rows of some parts."""
    return [row for name in names for row in result(CPU)["parts"][name]["rows"]]


def rows(*names: str) -> list[Row]:
    """Those that were timed against a peer."""
    return [row for row in measured(*names) if "ratio" in row]


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(line)} |".replace("  ", " ") for line in (head, *body)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def source(*names: str) -> str:
    """The machine, the versions and the command of some parts, in a line; more where they were measured at several times."""
    lines = {}
    for name in names:
        about = result(CPU)["parts"][name]
        machine, versions = about["machine"], about["versions"]
        lines[about["command"], about["commit"]] = (
            f"{machine['cpu'].strip()}, {machine['cpus']} CPUs, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, "
            f"load {machine['load'][0]:.1f} to {about['load_after'][0]:.1f}; torch {versions['torch']}; {about['date'][:10]}, "
            f"commit {about['commit'][:7]}; `{about['command']}`"
        )
    return f"<sub>{'<br>'.join(lines.values())}: [{CPU}](bench/results/{CPU})</sub>"


def spread(row: Row) -> str:
    """A ratio with the least and the most of its pairs."""
    return f"{row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def against(*names: str) -> str:
    """A line for each shape: fusedrnn's rate, then the ratio to each peer."""
    chosen = rows(*names)
    peers = list(dict.fromkeys(row["peer"] for row in chosen))
    shapes = list(dict.fromkeys((row["case"], text(row["shape"])) for row in chosen))
    unit = chosen[0]["unit"]
    body = []
    for case, shape in shapes:
        here = {row["peer"]: row for row in chosen if (row["case"], text(row["shape"])) == (case, shape)}
        ours = statistics.median(rate(row, "fusedrnn") for row in here.values())
        title = f"{_TITLES[case]}, {shape}" if len(names) > 1 else shape
        body.append([title, number(ours), *(spread(here[peer]) if peer in here else "" for peer in peers)])
    return table(["", f"fusedrnn {unit}", *peers], body)


def wins() -> str:
    """Every shape where fusedrnn won each pair against the fastest peer there."""
    return _outcomes([row for row in _fastest() if min(row["ratios"]) >= 1])


def ties() -> str:
    """Every shape where it was not slower than the fastest peer there, but did not win each pair."""
    return _outcomes([row for row in _fastest() if row["ratio"] >= 1 > min(row["ratios"])])


def losses() -> str:
    """Every shape and peer where fusedrnn is slower."""
    found = [row for row in rows(*_COMPARED) if row["ratio"] < 1 and row["peer"] != "itself"]
    return _outcomes(sorted(found, key=lambda row: float(row["ratio"])))


def _fastest() -> list[Row]:
    """Of each shape the row of the peer that fusedrnn's ratio is the least to."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows(*_COMPARED):
        key = row["case"], text(row["shape"])
        if row["peer"] != "itself" and (key not in best or row["ratio"] < best[key]["ratio"]):
            best[key] = row
    return list(best.values())


def _outcomes(found: Sequence[Row]) -> str:
    constants = constants_of(measured("machine"))
    body = []
    for row in found:
        bound = None if constants is None else floor(row["case"], row["shape"], constants)
        distances = [f"{microseconds(row, who) / bound[0]:.1f}" if bound else "" for who in ("fusedrnn", "peer")]
        ours, theirs = (f"{number(rate(row, who))} {row['unit']}" for who in ("fusedrnn", "peer"))
        body.append([row["case"], text(row["shape"]), row["peer"], ours, theirs, spread(row), " / ".join(distances).strip(" /")])
    return table(["", "", "peer", "fusedrnn", "peer", "ratio", "distances to the floor"], body)


def growth() -> str:
    found = [row for row in measured("growth") if "exponent" in row]
    body = [[f"{row['axis']} from {row['values'][0]} to {row['values'][-1]}", row["who"], f"{row['exponent']:.2f}"] for row in found]
    return table(["axis", "", "exponent"], body)


def warmup() -> str:
    found = measured("warmup")
    body = []
    for who in dict.fromkeys(row["who"] for row in found):
        first, again = ({row["cached"]: row for row in found if row["who"] == who}[cached] for cached in (False, True))
        if "first_seconds" in first and "first_seconds" in again:
            body.append([who, f"{first['first_seconds']:.2f}", f"{again['first_seconds']:.2f}", f"{again['seconds'] * 1e3:.1f}"])
    return table([text(found[0]["shape"]), "first, s", "with what that cached, s", "a call after it, ms"], body)


def memory() -> str:
    found = [row for row in measured("memory") if "bytes" in row]
    ways = list(dict.fromkeys(row["how"] for row in found))
    lengths = list(dict.fromkeys(row["T"] for row in found))
    sizes = {(row["how"], row["T"]): row["bytes"] / 2**20 for row in found}
    body = [[way, *(f"{sizes[way, steps]:,.0f}" if (way, steps) in sizes else "" for steps in lengths)] for way in ways]
    return table([f"LSTM H={found[0]['H']} B={found[0]['B']}, MiB", *(f"T={steps}" for steps in lengths)], body)


def calls() -> str:
    found = measured("calls")
    body = []
    for row in found:
        low, high = row["python_quartiles_us"]
        body.append(
            [row["loop"], row["inputs"], f"{row['native_median_us']:.0f}", f"{row['python_median_us']:.0f} ({low:.0f} to {high:.0f})"]
        )
    return table(["", "inputs", "us in C++", "us in Python (quartiles)"], body)


def kernels() -> str:
    """Some of the kernels that are compiled with no GPU."""
    wanted = [("lstm", size, None) for size in (64, 256, 512, 768, 1024)]
    wanted += [("gru", 1024, None), ("gru before", 1024, None), ("lstm", 512, 1000), ("lstm", 1024, 8000)]
    titles = {"lstm": "LSTM", "gru": "GRU", "gru before": "GRU, reset before the product,"}
    body = []
    for cell, size, words in wanted:
        row = next(
            row
            for row in result(KERNELS)["rows"]
            if (row["cell"], row["H"], row["V"], row["B"], row["dtype"]) == (cell, size, words, 8, "bfloat16")
        )
        stays = {tile["resident"] for tile in row["tiles"]}
        where = "resident" if stays == {True} else "streamed" if stays == {False} else "partly streamed"
        title = f"{titles[cell]} H={size}{f', greedy, V={words}' if words else ''}".replace(",,", ",")
        numbers = [row["registers"], row["spill_bytes"], row["shared_bytes"] // 1024, row["barriers_per_step"]]
        body.append([title, f"{row['programs']} x {row['groups']}", where, *map(str, numbers)])
    return table(["", "programs x groups", "weights", "registers", "spilled", "shared KiB", "barriers a step"], body)


KERNELS = "compile-triton-3.9.0.json"


def _timed(make: Callable[..., str], *names: str, parts: Sequence[str] = ()) -> Callable[[], str]:
    return lambda: f"{make(*names)}\n\n{source(*names, *parts)}"


TABLES: dict[str, Callable[[], str]] = {
    "g2p": _timed(against, "g2p"),
    "sequence": _timed(against, "sequence"),
    "sequences": _timed(against, *_SEQUENCES),
    "decode": _timed(against, "decode"),
    "training": _timed(against, "training"),
    "wins": _timed(wins, parts=_COMPARED),
    "ties": _timed(ties, parts=_COMPARED),
    "losses": _timed(losses, parts=_COMPARED),
    "growth": _timed(growth, parts=["growth"]),
    "warmup": _timed(warmup, parts=["warmup"]),
    "memory": _timed(memory, parts=["memory"]),
    "calls": _timed(calls, parts=["calls"]),
    "kernels": kernels,
}
