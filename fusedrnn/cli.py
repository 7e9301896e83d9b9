"""The command line. In: arguments and standard input; out: text or JSON lines on standard output, everything else on standard error.

Exit codes: 0 done, 2 bad arguments, input or installation (one line says which), 130 interrupted, 141 the reader of the output left.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

from ._version import __version__
from .arguments import count
from .errors import CommandError, PlanError
from .serving import add_parser as add_serve
from .training.command import add_parser as add_train

if TYPE_CHECKING:
    from .models.phonemizer import Batch, Phonemizer

_CHUNK = 2048  # words read, sorted by length and written at a time: memory stays flat, and batches still hold words of one length
_FEW = 32  # words that cost less on `reference`, 10 to 20 ms each, than to import what captures a loop, which takes over a second
_STAGES = ("captured", "simplified", "hoisted", "lowered")
_ENVIRONMENT = ("FUSEDRNN_BACKEND", "FUSEDRNN_EMULATE", "FUSEDRNN_CACHE_DIR", "CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET", "OMP_NUM_THREADS")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments without the program's name; None takes those of the process.

    Raises:
        SystemExit: from argparse, on ``--help``, ``--version`` and arguments it does not know.
    """
    args = _parser().parse_args(argv)
    if sys.stdout is None or sys.stderr is None:
        if sys.stderr is not None:
            print("fusedrnn: standard output is closed", file=sys.stderr)
        return 2  # closed by whoever started us; with standard error closed there is nowhere to say so
    try:
        for stream in (sys.stdout, sys.stderr):
            _utf8(stream)
        args.run(args)
        sys.stdout.flush()
    except (CommandError, PlanError) as error:
        print(f"fusedrnn {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:
        _discard_output()
        print(f"fusedrnn {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _discard_output() -> None:
    """What is left in the buffer must not meet the broken output again when Python flushes it on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fusedrnn", description="raw_rnn for PyTorch.")
    parser.add_argument("--version", action="version", version=f"fusedrnn {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    info = commands.add_parser("info", help="versions, devices, and which executors can run here", description=info_command.__doc__)
    info.add_argument("--json", action="store_true", help="one JSON object")
    info.set_defaults(run=info_command)

    g2p = commands.add_parser("g2p", help="the pronunciation of English words", description=g2p_command.__doc__)
    g2p.add_argument("words", nargs="*", metavar="WORD", help="words; without any, and without --file, the lines of standard input")
    g2p.add_argument("--file", "-f", metavar="F", help="a UTF-8 file of one word a line; - is standard input")
    g2p.add_argument("--model", metavar="DIR", help="what `fusedrnn train g2p --out DIR` trained (default the weights of g2p-en)")
    g2p.add_argument("--batch-size", type=count, default=256, metavar="N", help="the most words to decode at once (default 256)")
    g2p.add_argument(
        "--backend",
        default="auto",
        metavar="B",
        help=f"auto, persistent, stepwise, native or reference (default auto: for up to {_FEW} words reference, which needs no compiler)",
    )
    g2p.add_argument("--stats", action="store_true", help="words, words/s, steps and the executor, on standard error")
    g2p.add_argument("--json", action="store_true", help='one {"word": ..., "phonemes": [...]} a line')
    g2p.set_defaults(run=g2p_command)

    explain = commands.add_parser("explain", help="what fusedrnn makes of a loop, and why", description=explain_command.__doc__)
    explain.add_argument("target", metavar="LOOP", help="g2p, or path/to/file.py:function, which returns (cell, loop_fn)")
    explain.add_argument("--backend", default="auto", metavar="B", help="auto, persistent, stepwise, native or reference (default auto)")
    explain.add_argument("--json", action="store_true", help="one JSON object, by the loops' names")
    explain.add_argument("--graph", choices=_STAGES, metavar="STAGE", help=f"the graph of a step instead: {', '.join(_STAGES)}")
    explain.set_defaults(run=explain_command)
    add_train(commands)
    add_serve(commands)
    return parser


def _utf8(stream: Any) -> None:
    """Write UTF-8 whatever the locale says."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8")


def info_command(args: argparse.Namespace) -> None:
    """Print versions, devices, which executors can run on this machine or why not, and the environment variables in force."""
    found = info()
    print(json.dumps(found, indent=2) if args.json else _info_text(found))


def info() -> dict[str, Any]:
    """What ``fusedrnn info`` prints, as plain data: sizes in bytes, a missing thing as None with a ``..._reason`` beside it."""
    import numpy as np
    import torch

    from . import executors
    from .kernels import device

    triton = device.triton()
    try:
        auto, auto_reason = executors.choose("auto"), None
    except (ValueError, PlanError) as error:  # FUSEDRNN_BACKEND may name anything
        auto, auto_reason = None, str(error)
    return {
        "fusedrnn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "triton": triton.version,
        "triton_reason": triton.reason,
        "numpy": np.__version__,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [asdict(found) for found in device.devices()],
        "executors": {name: executors.unavailable(name) for name in executors.BACKENDS if name != "auto"},
        "auto": auto,
        "auto_reason": auto_reason,
        "environment": {name: os.environ.get(name) for name in _ENVIRONMENT},
    }


def _info_text(found: dict[str, Any]) -> str:
    lines = [f"{name:<9} {found[name]}" for name in ("fusedrnn", "python", "torch")]
    lines.append(f"{'triton':<9} {found['triton'] or 'cannot be imported: ' + found['triton_reason']}")
    lines.append(f"{'numpy':<9} {found['numpy']}")
    lines.append(f"{'platform':<9} {found['platform']}")
    lines.append(f"{'cpu':<9} {found['cpus']} CPUs, torch uses {found['threads']} threads")
    for device in found["devices"]:
        major, minor = device["capability"]
        lines.append(
            f"{'cuda:' + str(device['index']):<9} {device['name']}: compute capability {major}.{minor}, {device['sms']} SMs, "
            f"{device['shared_memory_per_block'] / 2**10:.0f} KiB shared memory a block, {device['registers_per_sm']} registers an SM, "
            f"{device['l2_bytes'] / 2**20:.0f} MiB L2, {device['memory_bytes'] / 2**30:.0f} GiB"
        )
    if not found["devices"]:
        built = f"built for CUDA {found['cuda']}, finds no device" if found["cuda"] else "built without CUDA"
        lines.append(f"{'cuda':<9} none: this torch is {built}")
    lines.append("executors")
    lines += [
        f"  {name:<11} {'available' if reason is None else 'not available: ' + reason}" for name, reason in found["executors"].items()
    ]
    auto = "the first of these that can run a loop, weighed against the cost of compiling it" if found["auto"] == "auto" else found["auto"]
    lines.append(f"  {'auto':<11} {auto or found['auto_reason']}")
    lines.append("environment")
    lines += [f"  {name:<22} {'not set' if value is None else value}" for name, value in found["environment"].items()]
    return "\n".join(lines)


def g2p_command(args: argparse.Namespace) -> None:
    """Print each word, a tab, and its phonemes separated by spaces, in the order of the input. Words are lines without the white space
    around them; a line without any word is reported with its number and skipped. Input is taken in chunks of 2,048 words (from a
    terminal: word by word)."""
    model = _model(args)
    words = _words(args)
    stats = _Stats()
    with _progress(args) as progress:
        size = 1 if _typed(args) else max(_CHUNK, args.batch_size)
        while chunk := list(islice(words, size)):
            progress.start(len(chunk) == size)
            began = time.perf_counter()
            phonemes: list[list[str]] = [[] for _ in chunk]
            backend = _backend(args.backend, stats.words + len(chunk))
            for batch in model.batches(chunk, batch_size=args.batch_size, backend=backend):
                for row, found in zip(batch.rows, batch.phonemes, strict=True):
                    phonemes[row] = found
                stats.add(batch)
                progress.advance(len(batch.rows))
            stats.seconds += time.perf_counter() - began
            shape = _json_line if args.json else _text_line
            progress.write("".join(shape(word, found) for word, found in zip(chunk, phonemes, strict=True)))
    if args.stats:
        print(stats, file=sys.stderr)


def explain_command(args: argparse.Namespace) -> None:
    """Print what fusedrnn makes of a loop: which executor runs it and why not another, what a step reads and feeds back, how rows finish,
    what is computed before the loop, and what a step costs. The loop does not run. g2p stands for both loops of the model for a few
    words, as raw_rnn runs them: the command g2p itself takes `reference` for as few, to answer sooner."""
    import torch

    from .explanation import explain
    from .explanation.loops import loops

    try:
        with torch.no_grad():
            found = {
                name: explain(cell, loop_fn, backend=args.backend) for name, (cell, loop_fn) in loops(args.target).items()
            }  # fmt: skip
    except PlanError:
        raise
    except (ValueError, TypeError, IndexError, RuntimeError, ModuleNotFoundError, FileNotFoundError) as error:  # of the loop at time 0
        raise CommandError((str(error).splitlines() or [type(error).__name__])[0]) from error
    if args.graph is not None:
        shown: dict[str, Any] = {name: explanation.graph(args.graph) for name, explanation in found.items()}
    elif args.json:
        shown = {name: explanation.as_dict() for name, explanation in found.items()}
    else:
        shown = {name: str(explanation) for name, explanation in found.items()}
    print(json.dumps(shown, indent=2) if args.json else "\n\n".join(f"{name}\n\n{text}" for name, text in shown.items()))


@dataclass
class _Stats:
    words: int = 0
    batches: int = 0
    encoder_steps: int = 0
    decoder_steps: int = 0
    seconds: float = 0.0  # decoding, without reading, writing and loading the model
    executors: Counter[str] = field(default_factory=Counter)  # how many loops each ran

    def add(self, batch: Batch) -> None:
        self.words += len(batch.rows)
        self.batches += 1
        self.encoder_steps += batch.encoder_steps
        self.decoder_steps += batch.decoder_steps
        self.executors.update(batch.executors)

    def __str__(self) -> str:
        rate = self.words / self.seconds if self.seconds else 0.0
        return (
            f"{self.words} words in {self.seconds:.3f} s, {rate:.0f} words/s; {self.encoder_steps + self.decoder_steps} steps "
            f"(encoder {self.encoder_steps}, decoder {self.decoder_steps}) in {self.batches} batches; "
            f"loops: {', '.join(f'{count} {name}' for name, count in self.executors.items()) or 'none'}"
        )


def _text_line(word: str, phonemes: list[str]) -> str:
    return f"{word}\t{' '.join(phonemes)}\n"


def _json_line(word: str, phonemes: list[str]) -> str:
    return json.dumps({"word": word, "phonemes": phonemes}, ensure_ascii=False) + "\n"


def _model(args: argparse.Namespace) -> Phonemizer:
    """The model, if the backend is there."""
    from . import executors
    from .models import G2P, EncoderDecoder

    try:
        executors.choose(args.backend)
        return G2P.pretrained() if args.model is None else EncoderDecoder.load(args.model)
    except (ValueError, ModuleNotFoundError, FileNotFoundError) as error:
        raise CommandError(str(error)) from error


def _backend(named: str, words: int) -> str:
    """The backend for so many words: for a few of them "auto" is `reference`, where nothing has captured a loop before."""
    from . import executors

    return "reference" if words <= _FEW and "torch._dynamo" not in sys.modules and executors.checked_backend(named) == "auto" else named


def _words(args: argparse.Namespace) -> Iterator[str]:
    """The words asked for. A file is opened at once and read as words are taken."""
    if args.words and args.file is not None:
        raise CommandError("give words or --file, not both")
    if args.words:
        return _stripped(enumerate(args.words, 1), "word")
    if args.file in (None, "-"):
        if sys.stdin is None:
            raise CommandError("standard input is closed; give words or --file")
        return _stripped(_lines(sys.stdin.buffer, "standard input"), "line")
    try:
        return _stripped(_lines(open(args.file, "rb"), args.file), "line")
    except OSError as error:
        raise CommandError(f"cannot read {args.file}: {error.strerror}") from error


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """The numbered lines of a stream, decoded one by one so that an error can say which."""
    with stream:
        lines = enumerate(stream, 1)
        while True:
            try:
                number, raw = next(lines)
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")  # Windows editors begin a file with a mark
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise CommandError(f"{name}, line {number} is not UTF-8: {error.reason} at byte {error.start + 1}") from error
            except OSError as error:
                raise CommandError(f"cannot read {name}: {error.strerror}") from error


def _stripped(numbered: Iterator[tuple[int, str]] | enumerate[str], unit: str) -> Iterator[str]:
    for number, text in numbered:
        word = text.strip()
        if not word:
            print(f"fusedrnn g2p: {unit} {number} is empty, skipped", file=sys.stderr)
            continue
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:  # the bytes of an argument that the locale could not decode
            try:
                word = os.fsencode(word).decode("utf-8")
            except UnicodeError as error:
                raise CommandError(f"{unit} {number} is not UTF-8: {word!a}") from error
        yield word


def _typed(args: argparse.Namespace) -> bool:
    """Whether someone types the words in and waits for each answer."""
    return not args.words and args.file in (None, "-") and sys.stdin.isatty()


class _Output:
    """Standard output, with a progress bar on standard error once `start` was asked for one and standard error is a terminal."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._bar: Any = None

    def start(self, long: bool) -> None:
        if self._bar is None and long and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ModuleNotFoundError:  # it comes with the demo extra; the work can do without
                return
            self._bar = tqdm(total=self._total, unit=" words", file=sys.stderr, dynamic_ncols=True)

    def advance(self, words: int) -> None:
        if self._bar is not None:
            self._bar.update(words)

    def write(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()  # both may share one terminal
        sys.stdout.write(text)
        sys.stdout.flush()
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def _progress(args: argparse.Namespace) -> Iterator[_Output]:
    output = _Output(_count(args) if sys.stderr.isatty() else None)
    try:
        yield output
    finally:
        output.close()


def _count(args: argparse.Namespace) -> int | None:
    """How many words there are at most, where that can be known before they are read."""
    if args.words:
        return len(args.words)
    if args.file is None or not os.path.isfile(args.file):
        return None
    with open(args.file, "rb") as lines:
        return sum(1 for _ in lines)
