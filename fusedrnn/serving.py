"""The command `fusedrnn serve`. In: arguments; out: a server, whose address it says on standard error.

Outside of `fusedrnn.serve`, whose import takes a second that other commands need not wait for.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from .arguments import count, positive, whole
from .errors import CommandError
from .extras import needed

if TYPE_CHECKING:
    from .serve import Engine

TOKEN = "FUSEDRNN_TOKEN"


def add_parser(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    serve = commands.add_parser("serve", help="models behind HTTP, with continuous batching", description=serve_command.__doc__)
    serve.add_argument(
        "models", nargs="+", choices=["g2p", "chars"], metavar="MODEL", help="g2p: words to phonemes; chars: a language model"
    )
    serve.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen at (default 127.0.0.1)")
    serve.add_argument("--port", type=whole, default=8000, metavar="P", help="port to listen at; 0: a free one (default 8000)")
    serve.add_argument("--slots", type=count, default=64, metavar="N", help="requests that run at once, of each model (default 64)")
    serve.add_argument("--queue", type=whole, default=1024, metavar="N", help="requests that may wait (default 1024)")
    serve.add_argument("--threads", type=count, metavar="N", help="of a launch (default: as many as torch takes)")
    serve.add_argument("--deadline", type=positive, default=60.0, metavar="S", help="seconds that a request may take (default 60)")
    serve.add_argument("--step-limit", type=count, metavar="N", help="steps that a request may take (default: as the model has it)")
    serve.add_argument("--body-limit", type=count, default=2**20, metavar="N", help="bytes of a request (default 1048576)")
    serve.add_argument(
        "--linger", type=positive, metavar="S", help="seconds to answer `not ready` for, at least, before stopping (default 0)"
    )
    serve.add_argument("--tls-cert", metavar="FILE", help="certificate in PEM, with those above it: serve HTTPS; needs --tls-key")
    serve.add_argument("--tls-key", metavar="FILE", help="the certificate's private key in PEM")
    serve.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="a name by which clients may address a server without a token, beside addresses and localhost; '*': any; may be repeated",
    )  # fmt: skip
    serve.add_argument("--open-to-all", action="store_true", help="listen at an address that others reach, and ask for no token")
    serve.add_argument("--backend", default="auto", metavar="B", help="auto, persistent or native (default auto)")
    serve.set_defaults(run=serve_command)


def serve_command(args: argparse.Namespace) -> None:
    """Serve models until SIGTERM or Ctrl-C; then finish what was accepted, and stop. If the environment variable FUSEDRNN_TOKEN is set,
    clients must show it as a bearer token; without it the server listens at addresses of this machine only, unless --open-to-all."""
    try:
        for module in ("starlette", "uvicorn", "prometheus_client"):
            needed(module, "serve")
    except ModuleNotFoundError as error:
        raise CommandError(str(error)) from error
    from .serve.http.limits import Limits
    from .serve.http.server import Certificate, listener, serve

    token = os.environ.get(TOKEN)
    if token == "":
        raise CommandError(f"{TOKEN} is empty: unset it, or give it a token")
    if len(set(args.models)) < len(args.models):
        raise CommandError(f"each model once, got {' '.join(args.models)}")
    if (args.tls_cert is None) != (args.tls_key is None):
        raise CommandError("give --tls-cert and --tls-key together")
    try:
        tls = None if args.tls_cert is None else Certificate(args.tls_cert, args.tls_key)
    except ValueError as error:
        raise CommandError(str(error)) from error
    try:
        sock = listener(args.host, args.port, token=token, open_to_all=args.open_to_all)
    except ValueError as error:
        raise CommandError(f"{error} ({TOKEN}, --open-to-all)") from error
    except OSError as error:
        raise CommandError(str(error)) from error
    with sock:
        host, port = sock.getsockname()[:2]
        engines = [_engine(name, args) for name in args.models]
        shown = f"[{host}]" if ":" in host else host
        address = f"{'http' if tls is None else 'https'}://{shown}:{port}"
        print(f"fusedrnn serve: {', '.join(args.models)} at {address}", file=sys.stderr, flush=True)
        limits = Limits(body=args.body_limit, deadline=args.deadline)
        hosts = ["*"] if args.open_to_all else args.allow_host
        serve(engines, sock, token=token, limits=limits, hosts=hosts, tls=tls, linger=args.linger or 0.0)


def _engine(name: str, args: argparse.Namespace) -> Engine:
    from .models import G2P, Characters
    from .serve import CharactersModel, Engine, G2PModel

    try:
        model = G2PModel(G2P.pretrained()) if name == "g2p" else CharactersModel(Characters.pretrained())
        return Engine(
            model, args.slots, threads=args.threads, queue=args.queue, step_limit=args.step_limit, backend=args.backend
        )  # fmt: skip
    except (ValueError, ModuleNotFoundError, FileNotFoundError) as error:
        raise CommandError(str(error)) from error
