"""Everything that a GPU can tell, in one command: correctness, barrier, peers, tests, tables, as far as the time allows."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from . import measure, parts, workers
from .parts import PARTS, Row, Where

_CASE = 90.0  # seconds for one case, compiling included


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--budget", type=float, default=480, metavar="S", help="seconds for everything (default 480)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where results are appended as they come, to gpu.jsonl (default gpu-results)"
    )
    parser.add_argument("--only", choices=list(PARTS), metavar="PART", help=f"one part of {', '.join(PARTS)}")
    parser.add_argument(
        "--dry", action="store_true",
        help="no GPU: tiny sizes on CPU tensors, emulated (FUSEDRNN_EMULATE=1), to see that all of it runs; its rows say so, no results",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Go through the parts; 1 where something is wrong, 2 where nothing can be measured."""
    refused = refusal(args.dry)
    if refused is not None:
        print(f"bench gpu: {refused}", file=sys.stderr)
        return 2
    where, until = Where(args.dry), time.monotonic() + args.budget
    out = _Rows(args.out, args.dry)
    out.add("machine", {}, _machine(where))
    wrong: list[str] = []
    for part, most in PARTS.items():
        if args.only in (None, part):
            wrong += _part(part, where, min(until, time.monotonic() + most * (20 if args.dry else 1)), out)
    print(f"{out.count} rows{f' in {out.path}' if out.path else ''}; {'nothing is wrong' if not wrong else 'WRONG:'}")
    for line in wrong:
        print(f"  {line}")
    return 1 if wrong else 0


def refusal(dry: bool) -> str | None:
    """Why nothing can be measured here; None where it can."""
    emulated = os.environ.get("FUSEDRNN_EMULATE") == "1"
    if dry:
        return None if emulated else "--dry emulates kernels: set FUSEDRNN_EMULATE=1"
    if emulated:
        return "FUSEDRNN_EMULATE=1 emulates kernels on the CPU: unset it, or add --dry"
    if not torch.cuda.is_available():
        return f"there is no CUDA device (torch {torch.__version__}); FUSEDRNN_EMULATE=1 python -m bench gpu --dry runs without one"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    return None


def _part(part: str, where: Where, until: float, out: _Rows) -> list[str]:
    """What is wrong in a part: a wrong number; in correctness also a case without a result, in others that is only told."""

    def left() -> float:
        return min(until - time.monotonic(), _CASE * (20 if where.dry else 1))

    wrong = []
    try:
        cases = parts.cases(part, where)
    except ImportError as error:
        out.add(part, {}, {"skipped": str(error)})
        return [f"{part}: {error}"] if part == "correctness" else []
    calls = [(part, case, where, _CASE) for case in cases]
    for place, found in workers.results(parts.measured, calls, 1, left):
        case = cases[place]
        for row in [{"error": str(found)}] if isinstance(found, workers.Failure) else found:
            out.add(part, case, row)
            faults = row.get("faults", [])
            if "error" in row and part == "correctness":
                faults = [row["error"]]
            wrong += [f"{part} {_text(case)}: {fault}" for fault in faults]
    return wrong


class _Rows:
    """The results: lines on standard output and in a file, as they come."""

    def __init__(self, folder: Path | None, dry: bool) -> None:
        self.dry, self.count = dry, 0
        self.path: Path | None = None
        if folder is not None or not dry:
            folder = folder or Path("gpu-results")
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / ("emulated.jsonl" if dry else "gpu.jsonl")

    def add(self, part: str, case: Row, row: Row) -> None:
        self.count += 1
        line = json.dumps({"part": part, **({"emulated": True} if self.dry else {}), **case, **row})
        print(line, flush=True)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(line + "\n")


def _machine(where: Where) -> dict[str, Any]:
    found = measure.circumstances()
    try:
        import triton

        found["versions"]["triton"] = triton.__version__
    except ImportError:
        pass
    if not where.dry:
        properties = torch.cuda.get_device_properties(0)
        found["device"] = {
            "name": properties.name, "capability": f"{properties.major}.{properties.minor}", "sms": properties.multi_processor_count,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    return found


def _text(case: Row) -> str:
    return " ".join(f"{name}={value}" for name, value in case.items())
