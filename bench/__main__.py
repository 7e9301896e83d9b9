"""``python -m bench COMMAND``: one subcommand a place to measure. A command's module is imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys

_COMMANDS = {
    "cpu": "on this machine's CPU, against what one would use without fusedrnn",
    "compile": "compile every shipped kernel, with no GPU, and check it",
    "memory": "what a training step keeps, on the CPU: peaks of processes of their own",
    "serve": "continuous batching against batch-and-wait and LitServe under open-loop load, on the CPU",
    "gpu": "on a GPU: correctness first, then barriers, peers, tests and tables",
    "floor": "the least that a step can take, beside what it took",
    "report": "write README's tables from the recorded results, or check them",
    "plot": "draw the recorded results",
}


def main(argv: list[str]) -> int:
    """The command's exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure fusedrnn against what one would use without it.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    named = next((word for word in argv if word in _COMMANDS), None)  # the packages that one command needs, another does without
    for name, what in _COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        if name == named:
            importlib.import_module(f".{name}", __package__).add_arguments(command)
    args = parser.parse_args(argv)
    code: int = importlib.import_module(f".{args.command}", __package__).run(args)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
