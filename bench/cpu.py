"""Everything that is measured on this machine's CPU: what it can do, all cases against peers, calls, warming up, memory, a timeline."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import bounds, calls, cases, machine, measure, memory, runner, timeline, warmup
from .case import Case
from .runner import Row

_PARTS: dict[str, Any] = {
    "machine": machine,
    **dict.fromkeys(cases.NAMES),
    "calls": calls,
    "warmup": warmup,
    "memory": memory,
    "timeline": timeline,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"{__doc__.splitlines()[0]}\nParts: {', '.join(_PARTS)}. Cases are files in bench/cases."
    parser.add_argument("--only", nargs="+", choices=list(_PARTS), default=list(_PARTS), metavar="PART", help="some parts (default: all)")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer shapes: under three minutes on two cores")
    parser.add_argument(
        "--guard", action="store_true", help="fail where a ratio to a peer is below its bound in bench/bounds.py; with --quick"
    )
    parser.add_argument("--pairs", type=int, help="timed pairs a peer at most, after one that is not (default 11, with --quick 5)")
    parser.add_argument(
        "--set",
        nargs="+",
        type=_axis,
        default=[],
        metavar="AXIS=V[,V]",
        help="values of a case's axes, as in H=256,512 B=1 'cell=layer norm lstm'",
    )
    parser.add_argument("--peers", default="", metavar="TEXT", help="those alone whose name holds this")
    parser.add_argument("--tensorflow", metavar="PYTHON", help="a Python that has tensorflow and tf-keras, for G2P")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and peers (default: what torch chose)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured, after every part")
    parser.add_argument("--update", action="store_true", help="in FILE, leave the parts as they are that are not measured")
    calls.add_arguments(parser)


def _axis(text: str) -> tuple[str, list[Any]]:
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise argparse.ArgumentTypeError(f"{text!r} is not AXIS=V[,V], as in H=256,512")
    return name, [int(value) if value.isdigit() else value for value in values.split(",")]


def run(args: argparse.Namespace) -> int:
    """Measure what is asked for; 1 where outputs differ or a bound is broken, 2 where an axis is no one's."""
    given = dict(args.set)
    chosen: dict[str, Case | Any] = {name: _PARTS[name] or cases.case(name) for name in _PARTS if name in args.only}
    known = {axis for part in chosen.values() if isinstance(part, Case) for axes in part.axes for axis in axes}
    if unknown := sorted(given.keys() - known):
        print(
            f"bench cpu: no case that is asked for has an axis {', '.join(unknown)}; they have {', '.join(sorted(known))}", file=sys.stderr
        )
        return 2
    torch.set_num_threads(args.threads)
    if args.tensorflow:
        os.environ["BENCH_TENSORFLOW"] = args.tensorflow
    began, rows = time.monotonic(), list[Row]()
    parts: dict[str, Any] = json.loads(args.json.read_text())["parts"] if args.update and args.json.is_file() else {}
    for name, part in chosen.items():
        about, started = measure.circumstances(), time.monotonic()
        found = _measured(part, args, given)
        rows += found
        parts[name] = about | {"load_after": os.getloadavg(), "seconds": round(time.monotonic() - started, 1), "rows": found}
        if args.json:
            args.json.write_text(_text(parts))
    faults = [f"{row['case']}: {row['peer']}: {row['fault']}" for row in rows if "fault" in row]
    faults += bounds.broken(rows) if args.guard else []
    print(f"{len(rows)} rows in {time.monotonic() - began:.0f} s")
    for fault in faults:
        print(f"  WRONG: {fault}", file=sys.stderr)
    return 1 if faults else 0


def _measured(part: Case | Any, args: argparse.Namespace, given: dict[str, Any]) -> list[Row]:
    if isinstance(part, Case):
        with torch.no_grad():
            return runner.run(part, args.pairs or (5 if args.quick else 11), args.quick, given, args.peers)
    measured: Callable[[argparse.Namespace], list[Row]] = part.measure
    return measured(args)


def _text(parts: dict[str, Any]) -> str:
    """The file of a result: each part with its circumstances, a row a line, in one order."""
    found = []
    for name in sorted(parts, key=list(_PARTS).index):
        head = json.dumps(parts[name] | {"rows": None}, indent=2).removesuffix("null\n}")
        lines = ",\n".join(f"  {json.dumps(_rounded(row))}" for row in parts[name]["rows"])
        found.append(f'"{name}": {head}[\n{lines}\n]}}')
    return '{"parts": {\n' + ",\n".join(found) + "\n}}\n"


def _rounded(value: Any) -> Any:
    """Six digits are more than a clock is worth."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
