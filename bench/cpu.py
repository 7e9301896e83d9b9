"""Everything that is measured on this machine's CPU: grapheme to phoneme, an LSTM over sequences, training, and what a call adds."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from . import calls, g2p, lstm, measure, training

_PARTS = {"g2p": g2p, "lstm": lstm, "training": training, "calls": calls}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "On this machine's CPU:\n" + "\n".join(
        f"  {name}: {part.__doc__.splitlines()[0]}" for name, part in _PARTS.items()
    )
    parser.add_argument("--only", choices=list(_PARTS), help="one part (default: all)")
    parser.add_argument("--pairs", type=int, default=11, help="timed pairs a peer, after one that is not (default 11)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: what torch chose)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    for part in _PARTS.values():
        part.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure what is asked for; 1 where outputs differ."""
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
