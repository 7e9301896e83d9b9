"""The command `fusedrnn train`. In: arguments; out: a model in a directory, a line on standard output, progress on standard error."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from ..arguments import count, fraction, positive, whole
from ..errors import CommandError

_ATTENTIONS = ("none", "bahdanau", "luong")


def add_parser(commands: Any) -> None:
    """Add the command to argparse's subparsers. Options are None where they are not given: a run that is resumed has its own."""
    train = commands.add_parser("train", help="train a model", description=train_command.__doc__)
    train.add_argument("model", choices=["g2p", "chars"], help="g2p: grapheme to phoneme; chars: a language model of words")
    train.add_argument("--out", required=True, metavar="DIR", help="where the model, its checkpoint and its loss curve go")
    train.add_argument("--resume", action="store_true", help="go on with the run in DIR, exactly where it was")
    train.add_argument("--attention", choices=_ATTENTIONS, help="of the decoder (default bahdanau)")
    length = train.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=positive, metavar="M", help="how long to train by the clock (default 55)")
    length.add_argument(
        "--epochs", type=count, metavar="N", help="how long to train, instead; such a run can be repeated to the bit (chars: default 3)"
    )
    train.add_argument(
        "--batch-size", type=count, metavar="N", help="the most words in a step (default 256; chars: texts of 64 characters, 64)"
    )
    train.add_argument("--hidden", type=count, metavar="N", help="units of each GRU (default 256), or of the LSTM (192)")
    train.add_argument("--embedding", type=count, metavar="N", help="width of the embeddings (default 128; chars: 32)")
    train.add_argument("--learning-rate", type=positive, metavar="R", help="the greatest (default 0.002; chars: 0.006)")
    train.add_argument("--dropout", type=fraction, metavar="P", help="of embeddings, memory and the decoder's outputs (default 0.3)")
    train.add_argument("--sampling", type=fraction, metavar="P", help="feed drawn phonemes up to this often at the end (default 0.1)")
    train.add_argument("--smoothing", type=fraction, metavar="P", help="label smoothing (default 0.1)")
    train.add_argument("--seed", type=whole, metavar="N", help="of weights, order, dropout and draws (default 0)")
    train.add_argument("--words", type=count, metavar="N", help="of CMUdict, for a trial (default all)")
    train.add_argument("--backend", default="auto", metavar="B", help="auto, persistent, stepwise, native or reference (default auto)")
    train.set_defaults(run=train_command)


_RECIPE = (
    "attention", "minutes", "epochs", "batch_size", "hidden", "embedding", "learning_rate", "dropout", "sampling", "smoothing", "seed",
    "words",
)  # fmt: skip


def train_command(args: argparse.Namespace) -> None:
    """Train a model on CMUdict and print how well it does on words that it has never seen. g2p, interrupted by Ctrl-C, finishes the step
    in hand, saves, and says how to go on; chars is done in a minute."""
    if args.model == "chars":
        _train_characters(args)
        return
    from .. import executors
    from . import run

    out = Path(args.out)
    given = {name: value for name in _RECIPE if (value := getattr(args, name)) is not None}
    if args.epochs is not None:
        given["minutes"] = None
    try:
        executors.choose(args.backend)
        recipe, state = run.opened(out, given, resume=args.resume)
        found, trainer = run.train(out, recipe, state, backend=args.backend, tell=lambda line: print(line, file=sys.stderr, flush=True))
    except run.Interrupted as stopped:
        options = "" if args.backend == "auto" else f" --backend {args.backend}"
        print(f"{stopped}; go on with: fusedrnn train g2p --out {shlex.quote(args.out)} --resume{options}", file=sys.stderr)
        raise KeyboardInterrupt from stopped
    except (FileExistsError, FileNotFoundError, FloatingPointError, ModuleNotFoundError, ValueError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error.strerror or error}") from error
    minutes = trainer.progress.seconds / 60
    print(f"{found.words} held-out words: {found}; {trainer.progress.epoch} epochs in {minutes:.1f} minutes")
    print(f"try it: fusedrnn g2p --model {shlex.quote(args.out)} hello world", file=sys.stderr)


_CHARACTERS = ("epochs", "batch_size", "hidden", "embedding", "learning_rate", "seed", "words")


def _train_characters(args: argparse.Namespace) -> None:
    from .. import executors
    from .characters import CharacterRecipe, train

    for name in _RECIPE:
        if name not in _CHARACTERS and getattr(args, name) is not None:
            raise CommandError(f"--{name.replace('_', '-')} is not for chars: leave it out")
    if args.resume:
        raise CommandError("chars is trained in one go: leave --resume out")
    recipe = CharacterRecipe(**{name: value for name in _CHARACTERS if (value := getattr(args, name)) is not None})
    out = Path(args.out)
    try:
        backend = "native" if executors.checked_backend(args.backend) == "auto" else args.backend
        executors.choose(backend)
        found = train(out, recipe, backend=backend, tell=lambda line: print(line, file=sys.stderr, flush=True))
    except (ModuleNotFoundError, ValueError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error.strerror or error}") from error
    print(f"{found.words} held-out words: {found}")
