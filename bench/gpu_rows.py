"""Rows of `bench gpu`. In: its file of lines, to which every run appends; out: the latest rows of one device, and their comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import floor_gpu
from .case import text
from .floor_gpu import Row

_MEASURED = ("us", "error", "skipped", "faults")  # with the first of these, what a case found begins
_SHAPE = ("cell", "model", "H", "V", "B", "T", "dtype")


@dataclass(frozen=True)
class Found:
    """What is known of one device.

    Attributes:
        machines: a row for each run on it, the latest last.
        rows: the latest of each case.
        emulated: no GPU gave any of them.
        elsewhere: how many rows of other devices are left out.
    """

    machines: list[Row]
    rows: list[Row]
    emulated: bool
    elsewhere: int

    @property
    def constants(self) -> Row | None:
        """What the device can do at best; never of emulated rows."""
        return None if self.emulated else floor_gpu.constants([self.machines[-1], *self.rows])


@dataclass(frozen=True)
class Pair:
    """fusedrnn's persistent kernel and a peer, timed in turn.

    Attributes:
        ours, theirs: microseconds of a step, medians.
        ratio: the peer's time over fusedrnn's, of each pair: "median", "quartiles", "runs".
        bound: microseconds that a step takes at least, by the model; None where there is none.
        tokens: a second, fusedrnn's and the peer's, of a decode.
        row: where it was read.
    """

    part: str
    shape: Row
    peer: str
    ours: float
    theirs: float
    ratio: Row
    bound: float | None
    tokens: tuple[float, float] | None
    row: Row

    @property
    def key(self) -> str:
        return text(self.shape)


def read(path: Path) -> Found:
    """The latest rows of the device that the last run was on.

    Raises:
        LookupError: it is no file of `bench gpu`: rows come before the first that tells the machine.
    """
    runs: list[list[Row]] = []
    for line in path.read_text().splitlines():
        row: Row = json.loads(line)
        if row["part"] == "machine":
            runs.append([])
        elif not runs:
            raise LookupError(f"{path} begins with a row of {row['part']}, not of the machine: it is not what bench gpu wrote")
        runs[-1].append(row)
    if not runs:
        raise LookupError(f"{path} has no row")
    here = _device(runs[-1][0])
    chosen = [run for run in runs if _device(run[0]) == here]
    latest = {_identity(row): row for run in chosen for row in run[1:]}
    latest = {key: row for key, row in latest.items() if "error" not in row or not _told_later(row, chosen)}
    emulated = "emulated" in runs[-1][0]
    elsewhere = sum(len(run) - 1 for run in runs) - sum(len(run) - 1 for run in chosen)
    return Found([run[0] for run in chosen], list(latest.values()), emulated, elsewhere)


def pairs(found: Found, *parts: str) -> list[Pair]:
    """The comparisons of some parts, in their order in the file."""
    return [pair for row in found.rows if row["part"] in parts and "ratio" in row for pair in _pair(row, found)]


def _pair(row: Row, found: Found) -> list[Pair]:
    shape = shape_of(row)
    mine = row
    if row["part"] == "decode":  # a row for each who decodes
        key = _identity(row | {"who": "persistent"})
        same = [other for other in found.rows if _identity(other) == key and "us" in other]
        if not same:
            return []
        mine = same[-1]
    best = found.constants
    bound = floor_gpu.floor(mine, best) if best else None
    if row["part"] != "decode":
        ours, theirs = row["us"]["median"], row["peer_us"]["median"]
        return [Pair(row["part"], shape, row["peer"], ours, theirs, row["ratio"], bound, None, row)]
    ours, theirs = floor_gpu.microseconds(mine), row["us"]["median"] / mine["steps"]
    tokens = (mine["tokens_per_second"], row["tokens_per_second"])
    shape["weights"] = f"{mine['weights'].split(':')[0]} weights"
    return [Pair("decode", shape, row["who"], ours, theirs, row["ratio"], bound, tokens, row)]


def shape_of(row: Row) -> Row:
    """What a row was measured at."""
    return {name: row[name] for name in _SHAPE if name in row}


def case_of(row: Row) -> str:
    """What a row is of, as text."""
    named = _named(row)
    return f"{named.pop('part')} {text(named)}".strip()


def _named(row: Row) -> Row:
    """What identifies a row: all that stands before its figures; a decode has a row for each who decodes."""
    wanted = ("part", "feedback", *_SHAPE, "peer", "who", "programs", "groups", "launches", "steps", "what", "size", "command", "seed")
    before: Row = {}
    for name, value in row.items():
        if name in _MEASURED:
            break
        if name in wanted:
            before[name] = value
    return before


def _told_later(failed: Row, runs: Sequence[list[Row]]) -> bool:
    """Whether a case that gave nothing has given a row since: rows of one case may name more than the case does."""
    rows = [row for run in runs for row in run]
    later = rows[max(place for place, row in enumerate(rows) if row is failed) + 1 :]
    return any("error" not in row and _named(failed).items() <= _named(row).items() for row in later)


def _identity(row: Row) -> str:
    return json.dumps(_named(row), sort_keys=True)


def _device(machine: Row) -> str:
    return "emulated" if machine.get("emulated") else str(machine["device"]["name"])
