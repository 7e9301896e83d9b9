"""The floor: what a step must take at least on the machine that measured it, beside what it took. A model, not a measurement.

In: a recorded result with the constants of its machine (`bench.machine`, or the first parts of `bench gpu`); out: a line for each time.

On a CPU, a step of B rows takes at least

    max(multiply-adds / rate of products + sigmoids / rate of sigmoids, bytes of the weights / rate of reading as many bytes)

Products of inputs that wait for nothing count in the first term, since they must be made, and not in the second: made for many steps at
once, they read their weights once. Sigmoids are the cell's transcendental functions (five an LSTM's unit, three a GRU's). What all
weights of a step take together decides which cache they are read from: the rate is that of the next working set below, or a larger
one's. Nothing else counts: no call, no look-up, no traffic of the state.

That of a GPU is in `bench.floor_gpu`; a file of lines (gpu.jsonl) is one of `bench gpu`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import floor_gpu
from .case import Shape, text
from .runner import Row, rate

RESULTS = Path(__file__).with_name("results")
_GATES = {"lstm": 4, "layer norm lstm": 4, "gru": 3, "coupled": 3}
_SIGMOIDS = {"lstm": 5, "layer norm lstm": 5, "gru": 3, "coupled": 3}  # tanh counts as one; `coupled` has no tanh of c
_CELLS = {"ragged": "lstm", "layer_norm": "layer norm lstm", "custom": "coupled", "decode": "lstm", "growth": "lstm"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS / "cpu2.json", help="a recorded result (default %(default)s)")
    parser.add_argument("--constants", type=Path, metavar="FILE", help="a result whose machine's constants are taken (default: the same)")


def run(args: argparse.Namespace) -> int:
    """Print the bound and the distance of every time that has one; 2 where there are no constants."""
    of_gpu = args.results.suffix == ".jsonl"
    rows, known = _rows(args.results), _rows(args.constants or args.results)
    constants = floor_gpu.constants(known) if of_gpu else constants_of(known)
    if constants is None:
        command = "gpu" if of_gpu else "cpu --only machine"
        print(f"bench floor: {args.constants or args.results} has no constants: python -m bench {command} measures them", file=sys.stderr)
        return 2
    print(_line("microseconds a step", "floor", "bound by", "fusedrnn", "distance", "peer", "took", "distance"))
    for line in _of_gpu(rows, constants) if of_gpu else _of_cpu(rows, constants):
        print(line)
    return 0


def _rows(path: Path) -> list[Row]:
    lines = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in lines.splitlines()]
    return [row for part in json.loads(lines)["parts"].values() for row in part["rows"]]


def _of_cpu(rows: Sequence[Row], constants: Row) -> Iterator[str]:
    for row in rows:
        found = floor(row["case"], row["shape"], constants) if "ratio" in row else None
        if found is not None:
            bound, by = found
            times = [microseconds(row, who) for who in ("fusedrnn", "peer")]
            (ours, distance), (theirs, peer_distance) = ((f"{time:,.1f}", f"{time / bound:.1f}") for time in times)
            yield _line(f"{row['case']} {text(row['shape'])}", f"{bound:,.1f}", by, ours, distance, row["peer"], theirs, peer_distance)


def _of_gpu(rows: Sequence[Row], constants: Row) -> Iterator[str]:
    for row in rows:
        bound = floor_gpu.floor(row, constants)
        if bound is not None:
            shape = text({name: row[name] for name in ("cell", "model", "H", "V", "B", "dtype") if name in row})
            ours, peer = floor_gpu.microseconds(row), row.get("peer_us", {}).get("median")
            theirs = (f"{peer:.2f}", f"{peer / bound:.1f}") if peer else ("", "")
            yield _line(f"{row['part']} {shape}", f"{bound:.2f}", "", f"{ours:.2f}", f"{ours / bound:.1f}", row.get("peer", ""), *theirs)


def _line(what: str, *columns: str) -> str:
    bound, by, ours, distance, peer, theirs, peer_distance = columns
    return f"{what:<52}{bound:>10}{by:>12}{ours:>10}{distance:>10}  {peer:<30}{theirs:>10}{peer_distance:>10}"


def constants_of(rows: Sequence[Row]) -> Row | None:
    """Those of the machine that recorded rows."""
    return next((row for row in rows if row["case"] == "machine"), None)


def microseconds(row: Row, who: str) -> float:
    """Of a step of a row with a "T"."""
    if row["unit"] == "us/step":
        return rate(row, who)
    found: float = row[f"{who}_median_seconds"] / row["shape"]["T"] * 1e6
    return found


def floor(case: str, shape: Shape, constants: Row) -> tuple[float, str] | None:
    """Microseconds that a step takes at least, and what bounds it: "products" or "reading". None where the model knows no floor."""
    cell = shape.get("cell", _CELLS.get(case))
    if case == "training" or cell not in _GATES:
        return None
    layers, hidden, words, dtype = shape.get("layers", 1), shape["H"], shape.get("V", 0), shape.get("dtype", "float32")
    size = 2 if dtype == "bfloat16" else 4
    rows = shape["B"] * ((shape["T"] + 1) / 2 / shape["T"] if case == "ragged" else 1)  # the unfinished ones, on average
    recurrent = layers * _GATES[cell] * hidden * hidden
    inputs = (layers - 1 if words else layers) * _GATES[cell] * hidden * hidden  # with an embedding they are rows of a table
    stepwise = recurrent + (layers - 1) * _GATES[cell] * hidden * hidden + words * hidden  # which wait for something in the loop
    counted = rows * (recurrent + inputs + words * hidden)
    products = max(constants["multiply_adds_per_us"][kind] for kind in {dtype, "float32"})  # who is slower in bfloat16 may convert
    work = counted / products + rows * layers * _SIGMOIDS[cell] * hidden / constants["sigmoids_per_us"]
    reading = stepwise * size / _bytes_per_us(stepwise * size, constants["bytes_per_us"])
    return (work, "products") if work >= reading else (reading, "reading")


def _bytes_per_us(size: float, measured: Mapping[str, float]) -> float:
    """The fastest of the working set next below and all larger ones: a floor must not be above what is possible."""
    known = sorted((float(megabytes) * 2**20, rate) for megabytes, rate in measured.items())
    least = max((at for at, _ in known if at <= size), default=known[0][0])
    return max(rate for at, rate in known if at >= least)
