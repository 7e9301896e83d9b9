"""README's tables. In: recorded results; out: Markdown, every figure with its machine and the command that measured it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from .case import text
from .floor import RESULTS, constants_of, floor, microseconds
from .runner import Row, rate

CPU = RESULTS / "cpu2.json"
_file = CPU
_SEQUENCES = ("layer_norm", "custom", "ragged")
_COMPARED = ("g2p", "sequence", *_SEQUENCES, "decode", "training")
_RATIOS = (*_COMPARED, "growth")
_TITLES = {
    "layer_norm": "layer-norm LSTM",
    "custom": "a cell of one's own",
    "ragged": "LSTM, lengths 1 to T",
    "sequence": "",
    "decode": "decode",
}


@cache
def result(path: Path) -> dict[str, Any]:
    """A recorded result."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tables and plots within are those of another file of `bench cpu`."""
    global _file
    before, _file = _file, path
    try:
        yield
    finally:
        _file = before


def measured(*names: str) -> list[Row]:
    """The rows of those of some parts that the file has.

    Raises:
        LookupError: it has none of them.
    """
    parts = result(_file)["parts"]
    if not any(name in parts for name in names):
        raise LookupError(f"{_file} has no part {' or '.join(names)}")
    return [row for name in names if name in parts for row in parts[name]["rows"]]


def rows(*names: str) -> list[Row]:
    """Those that were timed against a peer."""
    return [row for row in measured(*names) if "ratio" in row]


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(line)} |".replace("  ", " ") for line in (head, *body)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def source(*names: str) -> str:
    """The machine, the versions and the command of some parts, in a line; more where they were measured at several times."""
    lines, parts = {}, result(_file)["parts"]
    for name in names:
        if name not in parts:
            continue
        about = parts[name]
        machine, versions = about["machine"], about["versions"]
        here = [other for other in names if parts.get(other, {}).get("command") == about["command"]]
        lines[about["command"], about["commit"]] = (
            f"{machine['cpu'].strip()}, {machine['cpus']} CPUs, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, "
            f"load {machine['load'][0]:.1f} to {about['load_after'][0]:.1f}; torch {versions['torch']}; {about['date'][:10]}, "
            f"commit {about['commit'][:7]}; `{alone(about['command'], here)}`"
        )
    where = f"[{_file.name}](bench/results/{_file.name})" if _file.parent == RESULTS else _file.name
    return f"<sub>{'<br>'.join(lines.values())}: {where}</sub>"


def alone(command: str, parts: Sequence[str]) -> str:
    """What measures some parts as a recorded command did that may have measured more, and wrote them."""
    words, kept = iter([*command.split(), "--"]), []
    word = next(words)
    while word != "--":
        option, values = word, list[str]()
        while not (word := next(words)).startswith("--"):
            values.append(word)
        if option == "--tensorflow" and "g2p" in parts:
            kept += [option, "PYTHON"]
        elif option not in ("--tensorflow", "--only", "--json", "--update"):
            kept += [option, *values]
    return " ".join([*kept, "--only", *parts])


def machine(path: Path, part: str | None = None) -> str:
    """The machine of a part of a file, of its first one if none is named."""
    parts = result(path)["parts"]
    about = parts[part or next(iter(parts))]["machine"]
    return f"{about['cpu'].strip()}, {about['cpus']} CPUs, {about['threads']} thread{'s' if about['threads'] > 1 else ''}"


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
    """Every shape and peer where fusedrnn is slower, and what keeps less in training than the native loop."""
    found = [row for row in rows(*_COMPARED) if row["ratio"] < 1 and row["peer"] != "itself"]
    return "\n\n".join([_outcomes(sorted(found, key=lambda row: float(row["ratio"]))), *_memory_lost()])


def _memory_lost() -> list[str]:
    """A line where the file has peaks of memory, whether or not a peer keeps less."""
    if "memory" not in result(_file)["parts"]:
        return []
    found = [row for row in measured("memory") if "bytes" in row]
    native = {(row["H"], row["B"], row["T"]): row["bytes"] for row in found if row["how"] == "native"}
    said = []
    for row in found:
        ours = native.get((row["H"], row["B"], row["T"]))
        if ours is not None and not row["how"].startswith("native") and row["bytes"] < ours:
            said.append(f"{row['how']} {_mebibytes(row['bytes'])} at H={row['H']} B={row['B']} T={row['T']} (native {_mebibytes(ours)})")
    return [f"MiB that a step of training keeps, where a peer keeps less than the native loop: {'; '.join(said) or 'nowhere'}."]


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.0f}"


def _fastest() -> list[Row]:
    """Of each shape the row of the peer that fusedrnn's ratio is the least to."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows(*_COMPARED):
        key = row["case"], text(row["shape"])
        if row["peer"] != "itself" and (key not in best or row["ratio"] < best[key]["ratio"]):
            best[key] = row
    return list(best.values())


def _outcomes(found: Sequence[Row]) -> str:
    best = constants()
    body = []
    for row in found:
        bound = None if best is None else floor(row["case"], row["shape"], best)
        distances = [f"{microseconds(row, who) / bound[0]:.1f}" if bound else "" for who in ("fusedrnn", "peer")]
        ours, theirs = (f"{number(rate(row, who))} {row['unit']}" for who in ("fusedrnn", "peer"))
        body.append([row["case"], text(row["shape"]), row["peer"], ours, theirs, spread(row), " / ".join(distances).strip(" /")])
    return table(["", "", "peer", "fusedrnn", "peer", "ratio", "distances to the floor"], body)


def beside(path: Path) -> list[tuple[str, Row, Row]]:
    """Where another file and the recorded one have a ratio of the same case, shape and peer: what it is of, the recorded row, the other."""
    with reading(CPU):
        recorded = {(row["case"], text(row["shape"]), row["peer"]): row for row in rows(*_RATIOS)}
    with reading(path):
        others = {(row["case"], text(row["shape"]), row["peer"]): row for row in rows(*_RATIOS)}
    return [(" ".join(key), recorded[key], row) for key, row in others.items() if key in recorded]


def constants() -> Row | None:
    """Those of the machine, where the file has them."""
    return constants_of(measured("machine")) if "machine" in result(_file)["parts"] else None


def growth() -> str:
    """The fitted power, and the factor by which a time is off it at most, where that is recorded."""
    found = [row for row in measured("growth") if "exponent" in row]
    body = []
    for row in found:
        off = f" (off by {row['off']:.2f} at most)" if "off" in row else ""
        body.append([f"{row['axis']} from {row['values'][0]} to {row['values'][-1]}", row["who"], f"{row['exponent']:.2f}{off}"])
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
    sizes = {(row["how"], row["T"]): _mebibytes(row["bytes"]) for row in found}
    body = [[way, *(sizes.get((way, steps), "") for steps in lengths)] for way in ways]
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
        row = _kernel("loop", cell, size, words)
        title = f"{titles[cell]} H={size}{f', greedy, V={words}' if words else ''}".replace(",,", ",")
        numbers = [row["registers"], row["spill_bytes"], row["shared_bytes"] // 1024, row["barriers_per_step"]]
        body.append([title, f"{row['programs']} x {row['groups']}", _where(row), *map(str, numbers)])
    return table(["", "programs x groups", "weights", "registers", "spilled", "shared KiB", "barriers a step"], body)


def kernels_of_training() -> str:
    """Some of those of training, with microseconds a step by the planner's model."""
    wanted = [("lstm", 128, "bfloat16"), ("lstm", 512, "bfloat16"), ("lstm", 1024, "bfloat16"), ("gru", 512, "bfloat16")]
    wanted += [("gru", 1024, "bfloat16"), *(("layer norm lstm", size, "bfloat16") for size in (256, 512, 1024)), ("lstm", 512, "float32")]
    body = []
    for cell, size, dtype in wanted:
        cells = []
        for part in ("forward with gradients", "backward"):
            row = _kernel(part, cell, size, None, dtype)
            numbers = [row["barriers_per_step"], f"{row['microseconds']:.1f}", row["spill_bytes"]]
            cells += [f"{row['programs']}, {_where(row)}", *map(str, numbers)]
        title = f"{'layer-norm LSTM' if ' ' in cell else cell.upper()} H={size}{'' if dtype == 'bfloat16' else f', {dtype}'}"
        body.append([title, *cells])
    head = ["programs, weights", "barriers", "us", "spilled"]
    return table(["", *(f"forward that keeps: {head[0]}", *head[1:]), *(f"backward: {head[0]}", *head[1:])], body)


def _kernel(part: str, cell: str, size: int, words: int | None, dtype: str = "bfloat16") -> Row:
    """The kernel of a cell over 8 rows."""
    wanted = (part, cell, size, words, 8, dtype)
    names = ("part", "cell", "H", "V", "B", "dtype")
    return next(
        row for row in result(LAYER_NORMS if cell == "layer norm lstm" else KERNELS)["rows"] if tuple(row[name] for name in names) == wanted
    )


def _where(row: Row) -> str:
    stays = {tile["resident"] for tile in row["tiles"]}
    return "resident" if stays == {True} else "streamed" if stays == {False} else "partly streamed"


KERNELS, LAYER_NORMS = RESULTS / "compile-triton-3.9.0.json", RESULTS / "compile-layer-norm-triton-3.9.0.json"


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
    "losses": _timed(losses, parts=[*_COMPARED, "memory"]),
    "growth": _timed(growth, parts=["growth"]),
    "warmup": _timed(warmup, parts=["warmup"]),
    "memory": _timed(memory, parts=["memory"]),
    "calls": _timed(calls, parts=["calls"]),
    "kernels": kernels,
    "training-kernels": kernels_of_training,
}
