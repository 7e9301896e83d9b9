"""``python -m bench COMMAND``: one subcommand a place to measure."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from . import calls, g2p, lstm, measure

_PARTS = {"g2p": g2p, "lstm": lstm, "calls": calls}


def main() -> int:
    """Measure what is asked for; 1 where outputs differ."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure fusedrnn against what one would use without it.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    about = "On this machine's CPU:\n" + "\n".join(f"  {name}: {part.__doc__.splitlines()[0]}" for name, part in _PARTS.items())
    cpu = commands.add_parser("cpu", help="on this machine's CPU", description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    cpu.add_argument("--only", choices=list(_PARTS), help="one part (default: all)")
    cpu.add_argument("--pairs", type=int, default=11, help="timed pairs a peer, after one that is not (default 11)")
    cpu.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: what torch chose)")
    cpu.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    for part in _PARTS.values():
        part.add_arguments(cpu)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    measured = {}
    for name, part in _PARTS.items():
        if args.only in (None, name):
            try:
                measured[name] = part.measure(args)
            except ValueError as error:
                print(error, file=sys.stderr)
                return 1
    if args.json:
        arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        args.json.write_text(json.dumps({**measure.circumstances(), "arguments": arguments, "measured": measured}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
