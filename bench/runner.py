"""Cases, run. In: a case, how many pairs; out: a row for each shape and peer, printed as it comes. Outputs are compared before anything
is timed; then fusedrnn and the peer run in turn, A B A B ..."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .case import Case, Missing, text
from .measure import compared

Row = dict[str, Any]
_MOST = 20.0  # seconds for the pairs of one peer at one shape; three pairs are timed however long they take


def run(case: Case, pairs: int, quick: bool = False, given: Mapping[str, Sequence[Any]] | None = None, only: str = "") -> list[Row]:
    """The rows of a case. One whose outputs differ has a "fault" and no times; a peer that is missing is told once.

    Args:
        pairs: timed for each peer, at most.
        given: values of axes that replace the case's.
        only: a part of the name of the peers that are asked; "" for all.
    """
    rows: list[Row] = []
    missing: set[str] = set()
    print(f"{case.about}: {case.unit}\n{'':<44}{'against':<32}{'fusedrnn':>12}{'peer':>12}{'ratio':>8}{'(least to most)':>18}", flush=True)
    for shape in case.shapes(quick, given):
        torch.manual_seed(0)
        torch.compiler.reset()  # after eight shapes of one function it gives up
        work = case.make(shape)
        fused = work.fused()
        ours = fused.results()
        for name, peer in case.peers.items():
            if only.lower() not in name.lower() or not peer.where(shape):
                continue
            row = {"case": case.name, "shape": shape, "peer": name, "unit": case.unit, "count": work.count}
            try:
                theirs = peer.make(work)
                fault = case.differ(work, ours, theirs.results())
            except Missing as error:
                if str(error) not in missing:
                    missing.add(str(error))
                    print(f"  {name} is left out: {error}", flush=True)
                continue
            if fault is not None:
                rows.append(row | {"fault": fault})
                print(f"{case.name} {text(shape)}: {name}: {fault}", file=sys.stderr)
                continue
            told = {"version": theirs.version} if theirs.version else {}
            rows.append(row | told | compared(fused.call, theirs.call, pairs, _MOST))
            print(line(rows[-1]), flush=True)
    return rows + [fitted(rows, case, axis, who) for axis in case.fit for who in _fitted(rows)]


def line(row: Row) -> str:
    """A row as text."""
    ours, theirs = (rate(row, who) for who in ("fusedrnn", "peer"))
    spread = f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}"
    return f"{text(row['shape']):<44}{row['peer']:<32}{ours:>12,.0f}{theirs:>12,.0f}{row['ratio']:>8.2f}{spread:>18}"


def rate(row: Row, who: str, seconds: float | None = None) -> float:
    """What a row's unit counts: microseconds of one of ``count``, or as many of them as a second has."""
    taken: float = row[f"{who}_median_seconds"] if seconds is None else seconds
    found: float = taken / row["count"] * 1e6 if row["unit"].startswith("us/") else row["count"] / taken
    return found


def _fitted(rows: Sequence[Row]) -> list[str]:
    return ["fusedrnn", *dict.fromkeys(row["peer"] for row in rows if "ratio" in row)]


def fitted(rows: Sequence[Row], case: Case, axis: str, who: str) -> Row:
    """The power of an axis that a call's time grows with, by least squares over logarithms, from rows that differ in that axis alone."""
    base = rows[0]["shape"]
    along: dict[float, float] = {}
    for row in rows:
        alone = all(value == base[name] for name, value in row["shape"].items() if name != axis)
        if alone and "ratio" in row and (who == "fusedrnn" or row["peer"] == who):
            along[row["shape"][axis]] = row[f"{'fusedrnn' if who == 'fusedrnn' else 'peer'}_median_seconds"]
    found: Row = {"case": case.name, "axis": axis, "who": who, "values": sorted(along), "seconds": [along[at] for at in sorted(along)]}
    if len(along) >= 2:
        found["exponent"] = exponent(along)
        print(f"  {who}: time grows as {axis}^{found['exponent']:.2f} from {min(along)} to {max(along)}", flush=True)
    return found


def exponent(along: Mapping[float, float]) -> float:
    """The slope of log seconds over log size."""
    xs, ys = [math.log(at) for at in along], [math.log(seconds) for seconds in along.values()]
    middle_x, middle_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True)) / sum((x - middle_x) ** 2 for x in xs)
