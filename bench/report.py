"""README's tables, written from bench/results. In: README with markers; out: README, or whether it says what the results say.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``, each a line of its own; `bench.tables.TABLES` has the names.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path

from .tables import TABLES

_README = Path(__file__).parents[1] / "README.md"
_PLACE = re.compile(r"(<!-- table: (?P<name>\S+) -->\n)(?P<text>.*?)(<!-- end -->)", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--check", action="store_true", help="write nothing; fail where README differs from the results")
    parser.add_argument("--readme", type=Path, default=_README, metavar="FILE", help="default: README.md")


def run(args: argparse.Namespace) -> int:
    """Write the tables, or say where README differs (1); 2 where a marker names no table, or is not closed."""
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
