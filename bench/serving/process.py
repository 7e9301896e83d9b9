"""``python -m bench.serving.process WHO PORT``: the model behind a server of its own process, for loads over HTTP."""

from __future__ import annotations

import argparse
import sys

import torch

from fusedrnn.serve import Engine
from fusedrnn.serve.http import listener, serve

from .characters import model


def main(argv: list[str]) -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("who", choices=["fusedrnn", "litserve"])
    parser.add_argument("port", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--most", type=int, default=1024)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wait", type=float, default=0.0)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.who == "litserve":
        from . import litserve_server

        litserve_server.serve(args)
    else:
        engine = Engine(model(args.hidden, args.most), args.slots, queue=1 << 20, threads=args.threads)
        serve([engine], listener("127.0.0.1", args.port, token=None))


if __name__ == "__main__":
    main(sys.argv[1:])
