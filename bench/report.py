"""README's tables, written from bench/results. In: README with markers; out: README, or whether it says what the results say.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``, each a line of its own; `TABLES` has the names.
With ``--results FILE`` README stays as it is: what another machine measured is printed, as the same tables or beside the recorded ratios.
With ``--gpu FILE.jsonl`` it stays too, and what `bench gpu` wrote is printed as tables of its own (`bench.tables_gpu`).
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path

from . import tables, tables_gpu, tables_serve

TABLES = {**tables.TABLES, "serve": tables_serve.serve}
_README = Path(__file__).parents[1] / "README.md"
_PLACE = re.compile(r"(<!-- table: (?P<name>\S+) -->\n)(?P<text>.*?)(<!-- end -->)", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--check", action="store_true", help="write nothing; fail where README differs from the results")
    parser.add_argument("--readme", type=Path, default=_README, metavar="FILE", help="default: README.md")
    parser.add_argument("--results", type=Path, metavar="FILE", help="print the tables of what `bench cpu --json FILE` wrote; README stays")
    parser.add_argument("--beside", action="store_true", help="with --results: its ratios beside the recorded ones, and if spreads overlap")
    parser.add_argument("--gpu", type=Path, metavar="FILE.jsonl", help="print the tables of what `bench gpu` wrote; README stays")


def run(args: argparse.Namespace) -> int:
    """Write the tables, or say where README differs (1); 2 where a marker names no table, or is not closed."""
    if args.gpu:
        if args.check or args.results or args.beside:
            print("bench report: --gpu FILE.jsonl goes alone: without --check, --results, --beside", file=sys.stderr)
            return 2
        try:
            print(tables_gpu.markdown(args.gpu), end="")
        except LookupError as error:
            print(f"bench report: {error}", file=sys.stderr)
            return 2
        return 0
    if args.beside and not args.results:
        print("bench report: --beside needs --results FILE", file=sys.stderr)
        return 2
    if args.results:
        print("\n".join(beside(args.results) if args.beside else of(args.results)))
        return 0
    old = args.readme.read_text()
    try:
        new = written(old)
    except ValueError as error:
        print(f"bench report: {args.readme}: {error}", file=sys.stderr)
        return 2
    if not args.check:
        args.readme.write_text(new)
        print(f"{args.readme}: {len(_PLACE.findall(old))} tables, {'changed' if new != old else 'as they were'}")
        return 0
    if new != old:
        sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), str(args.readme), "bench/results"))
        print(f"bench report: {args.readme} is not what bench/results says: python -m bench report writes it", file=sys.stderr)
    return int(new != old)


def of(path: Path) -> list[str]:
    """The tables of a result; those are left out whose parts it does not have."""
    found = []
    with tables.reading(path):
        for name, made in TABLES.items():
            if name in ("kernels", "training-kernels", "serve"):  # they are of other commands
                continue
            try:
                found.append(f"{name}\n\n{made()}\n")
            except LookupError as error:
                found.append(f"{name} is left out: {error}\n")
    return found


def beside(path: Path) -> list[str]:
    """A line for each ratio that a result and the recorded one have, and in the last how many spreads overlap."""
    lines, together = [f"recorded: {tables.machine(tables.CPU)}", f"there: {tables.machine(path)}", ""], 0
    lines.append(f"{'':<76}{'recorded':>22}{'there':>24}")
    found = tables.beside(path)
    for what, recorded, other in found:
        overlap = min(recorded["ratios"]) <= max(other["ratios"]) and min(other["ratios"]) <= max(recorded["ratios"])
        together += overlap
        lines.append(f"{what:<76}{tables.spread(recorded):>22}{tables.spread(other):>24}{'' if overlap else '  apart'}")
    return [*lines, f"{together} of {len(found)} spreads overlap"]


def written(text: str) -> str:
    """The text with every table as the results have it.

    Raises:
        ValueError: a marker names no table, or a table has no end.
    """
    if text.count("<!-- table: ") != len(_PLACE.findall(text)):
        raise ValueError("a '<!-- table: NAME -->' has no '<!-- end -->' of its own behind it")

    def place(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in TABLES:
            raise ValueError(f"no table is called {name}; there are {', '.join(TABLES)}")
        return f"{found[1]}{TABLES[name]()}\n{found[4]}"

    return _PLACE.sub(place, text)
