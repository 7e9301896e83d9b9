"""README's table of serving. In: recorded results of `bench serve`; out: Markdown: requests a second at the same p99, and their ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .floor import RESULTS
from .tables import number, result, table

_GROUPS = {"process": "", "http": ", over HTTP"}


def serve() -> str:
    """A line for each model, peer and limit that either server holds, and the machine and command of each file."""
    files = sorted(RESULTS.glob("serve-lstm*.json"), key=lambda path: int(path.stem.removeprefix("serve-lstm")))
    body = [line for path in files for line in _lines(result(path))]
    head = ["", "peer", "p99 within", "whole answer: peer", "continuous", "ratio", "first chunk: peer", "continuous", "ratio"]
    return f"{table(head, body)}\n\n<sub>{'<br>'.join(_source(path, result(path)) for path in files)}</sub>"


def _lines(measured: dict[str, Any]) -> list[list[str]]:
    hidden = measured["arguments"]["hidden"]
    model = f"{hidden} units" if hidden else "192 units (shipped)"
    lines = []
    for group, where in _GROUPS.items():
        if group not in measured["measured"]:
            continue
        found = measured["measured"][group]
        mine, *peers = found["loads"]
        most = {name: max(load["served"] for load in loads) for name, loads in found["loads"].items()}
        for peer in peers:
            by_limit = {(row["of"], row["limit_times_alone"]): row for row in found["served"]}
            for times in sorted({limit for _, limit in by_limit}):
                cells = [_cells(by_limit.get((of, times)), mine, peer, most) for of in ("total", "first")]
                if any(any(cell) for cell in cells):
                    limit = f"{by_limit['total', times]['limit_seconds'] * 1e3:,.0f} ms ({times:g} x)"
                    lines.append([model, f"{peer.removesuffix(', HTTP')}{where}", limit, *cells[0], *cells[1]])
    return lines


def _cells(row: dict[str, Any] | None, mine: str, peer: str, most: dict[str, float]) -> list[str]:
    """The peer's rate, continuous batching's and the ratio; "at least" where every load that was offered was within the limit."""
    if row is None:
        return ["", "", ""]
    rates = {name: row["served"][name] for name in (peer, mine)}
    least = {name: "≥ " if rate is not None and rate >= most[name] else "" for name, rate in rates.items()}
    ratio = row["ratios"][peer]
    said = "" if ratio is None or least[peer] else f"{least[mine]}{ratio:.2f}"
    return [*("none" if rate is None else f"{least[name]}{number(rate)}" for name, rate in rates.items()), said]


def _source(path: Path, measured: dict[str, Any]) -> str:
    machine, versions = measured["machine"], measured["versions"]
    return (
        f"{machine['cpu'].strip()}, {machine['cpus']} CPUs, load {machine['load'][0]:.1f} before; torch {versions['torch']}; "
        f"{measured['date'][:10]}, commit {measured['commit'][:7]}; `{measured['command'].partition(' --json')[0]}`: "
        f"[{path.name}](bench/results/{path.name})"
    )
