"""``python -m bench COMMAND``: one subcommand a place to measure."""

from __future__ import annotations

import argparse
import sys

from . import g2p

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure fusedrnn against what one would use without it.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    g2p.add_arguments(commands.add_parser("cpu", help=g2p.__doc__.splitlines()[0], description=g2p.__doc__))
    sys.exit(g2p.main(parser.parse_args()))
