"""Every shipped kernel, compiled with no GPU: registers, spills, shared memory and loads of weights, a row each."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from . import compiled_row, workers
from .configurations import QUICK, Configuration, shipped

_LIMIT = 600.0  # seconds for one row
_INTERPRETING = ("FUSEDRNN_EMULATE", "TRITON_INTERPRET")  # with these a process would not compile
KEYS = (
    "cell", "H", "B", "dtype", "arch", "registers", "spill_bytes", "shared_bytes", "resident", "in_loop_weight_loads", "barriers_per_step",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--arch", type=_archs, default=[80, 90, 100], help="compute capabilities, by commas (default 80,90,100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows, after every one")
    parser.add_argument("--quick", action="store_true", help="the few rows that continuous integration compiles")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="rows whose name holds one of these, as in 'lstm H=512'")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at once (default 2)")


def _archs(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if unknown := sorted(set(found) - {80, 90, 100}):
        raise argparse.ArgumentTypeError(f"no limits are known for {unknown}: known are 80, 90, 100")
    return found


def run(args: argparse.Namespace) -> int:
    """Compile what is asked for and print a line for each row; 1 where one fails its checks, 2 where nothing can be compiled."""
    try:
        import triton
    except ImportError as error:
        print(f"bench compile needs Triton: {error}", file=sys.stderr)
        return 2
    wanted = QUICK if args.quick else [(arch, configuration) for arch in args.arch for configuration in shipped()]
    calls = [
        (configuration, arch)
        for arch, configuration in wanted
        if arch in args.arch and any(text in f"{configuration} sm_{arch} " for text in args.only)
    ]  # fmt: skip
    if not calls:
        print(f"no row is called {' or '.join(args.only)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    rows: dict[int, dict[str, Any]] = {}
    for place, found in workers.results(compiled_row.row, calls, args.jobs, lambda: _LIMIT, _INTERPRETING):
        if isinstance(found, workers.Failure):
            found = compiled_row.identity(*calls[place]) | {"error": str(found)}
        rows[place] = found | {"triton": triton.__version__, "faults": faults(found)}
        print(f"[{len(rows)}/{len(calls)}] {line(calls[place][0], rows[place])}", flush=True)
        if args.json:
            _write(args.json, [rows[at] for at in sorted(rows)])
    failed = {place: row for place, row in sorted(rows.items()) if row["faults"]}
    print(f"{len(rows)} rows with Triton {triton.__version__} in {time.monotonic() - began:.0f} s, {len(failed)} fail", flush=True)
    for place, row in failed.items():
        print(f"  {calls[place][0]} sm_{row['arch']}: {'; '.join(row['faults'])}")
    return 1 if failed else 0


def faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row, in one line each."""
    if "error" in row:
        return [f"does not compile: {row['error']}"]
    found = []
    if row["spill_bytes"] and row["dtype"] in ("bfloat16", "float16"):
        found.append(f"spills {row['spill_bytes']} bytes a thread")
    if row["resident_weight_loads"]:
        found.append(f"{row['resident_weight_loads']} loads in the step loop from weights that are planned to stay on-chip")
    if row["resident"] and row["in_loop_weight_loads"] > row["resident_weight_loads"]:
        found.append(f"calls itself resident and loads weights {row['in_loop_weight_loads']} times in the step loop")
    if row["shared_bytes"] > row["shared_limit"]:
        found.append(f"needs {row['shared_bytes']} bytes of shared memory, there are {row['shared_limit']}")
    if row["barriers_per_step"] != row["planned_barriers"]:
        found.append(f"{row['barriers_per_step']} barriers stand in the step loop, planned are {row['planned_barriers']}")
    return found


def line(configuration: Configuration, row: dict[str, Any]) -> str:
    """A row as text."""
    name = f"{configuration!s:<34} sm_{row['arch']:<4}"
    if "error" in row:
        return f"{name}{row['error']}"
    where = "resident" if row["resident"] else "streamed"
    return (
        f"{name}{row['programs']:>4} x {row['groups']:<3} of {row['batch_tile']:>3} rows, {row['warps']} warps, {where}, "
        f"{row['registers']:>3} registers, {row['spill_bytes']} spilled, {row['shared_bytes']:>6} shared, "
        f"{row['barriers_per_step']} barriers, choice {row['choice']}, {row['seconds']} s{'  FAILS' if row['faults'] else ''}"
    )


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """All rows so far, in the order of the list, one a line."""
    from .measure import circumstances

    head = json.dumps(circumstances(), indent=2)[:-2]
    text = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(f'{head},\n  "rows": [\n{text}\n  ]\n}}\n')
    temporary.replace(path)
