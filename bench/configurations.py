"""What fusedrnn ships kernels for. In: nothing; out: a list of cells, sizes and dtypes, and the loop of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

import fusedrnn
from fusedrnn import feedback

MEMORY = 50  # places that attention goes over
STEPS = 12  # of a sequence, or at most of a decode: no kernel depends on it


@dataclass(frozen=True)
class Configuration:
    """One loop.

    Attributes:
        cell: "lstm", "gru" (reset after the product, torch's), "gru before" (TensorFlow's), "rnn", "layer norm lstm", "2 layer lstm",
            "peephole lstm", "bahdanau gru" or "luong gru" (attention over `MEMORY` places), "g2p encoder" or "g2p decoder"; "int8 lstm",
            "float8 lstm" and so on with weights of one byte.
        H: hidden size; inputs are as wide.
        B: rows.
        dtype: of weights, inputs and state.
        V: size of the vocabulary that tokens are fed back from; None: inputs are read from a sequence.
        picks: how a token is taken: "greedy", "sampled" or "top 40"; "forced": it is given, as in training (teacher forcing).
        precision: of float32 products: "hilo" (in full) or "tf32".
        part: of training: "forward with gradients", the loop that keeps what its derivative reads, or "backward", that derivative; "loop":
            the loop alone.
    """

    cell: str
    H: int
    B: int
    dtype: str = "bfloat16"
    V: int | None = None
    precision: str = "hilo"
    picks: str = "greedy"
    part: str = "loop"

    @property
    def feedback(self) -> str:
        return self.picks if self.V or self.cell == "g2p decoder" else "sequence"

    @property
    def is_half(self) -> bool:
        return self.dtype in ("bfloat16", "float16")

    def __str__(self) -> str:
        dtype = "tf32" if self.dtype == "float32" and self.precision == "tf32" else self.dtype
        words = [f"V={self.V}"] if self.V else []
        words += [self.picks] if self.picks != "greedy" else []
        words += [self.part] if self.part != "loop" else []
        return " ".join([self.cell, f"H={self.H}", f"B={self.B}", *words, dtype])

    def loop(self) -> tuple[Any, Any]:
        """Its cell, with random weights, and its loop_fn, on torch's default device."""
        dtype, size, rows = getattr(torch, self.dtype), self.H, self.B
        if self.cell.startswith("g2p"):
            return _g2p(self.cell, rows, dtype)
        first, _, rest = self.cell.partition(" ")
        cell = _CELLS[rest if first in _BYTES else self.cell](size, size).to(dtype)
        if first in _BYTES:
            cell = fusedrnn.quantize(cell.requires_grad_(False), dtype=_BYTES[first])
        if isinstance(cell, fusedrnn.AttentionWrapper):
            cell = cell.bind(torch.randn(rows, MEMORY, size, dtype=dtype), torch.arange(rows) % MEMORY + 1)
        zeros = torch.zeros(rows, size, dtype=dtype)
        plain = {nn.LSTMCell: (zeros, zeros), nn.GRUCell: zeros, nn.RNNCell: zeros}
        state = next((state for kind, state in plain.items() if isinstance(cell, kind)), None)
        state = cell.zero_state(rows, dtype) if state is None else state
        if self.V is None:
            lengths = torch.arange(rows) % (STEPS + 1)
            return cell, feedback.sequence(torch.randn(STEPS, rows, size, dtype=dtype), lengths, state)
        embedding, project = nn.Embedding(self.V, size, dtype=dtype), nn.Linear(size, self.V, dtype=dtype)
        if self.picks == "greedy":
            return cell, feedback.greedy(embedding, project, 0, 1, state, STEPS)
        if self.picks == "forced":
            targets, lengths = torch.zeros(STEPS, rows, dtype=torch.int64), torch.full((rows,), STEPS)
            return cell, feedback.teacher_forcing(embedding, project, targets, lengths, 0, state)
        return cell, feedback.sample(embedding, project, 0, 1, state, STEPS, top_k=40 if self.picks == "top 40" else None, seed=0)


_BYTES = {"int8": torch.int8, "float8": torch.float8_e4m3fn}
_CELLS: dict[str, Any] = {
    "lstm": nn.LSTMCell,
    "gru": nn.GRUCell,
    "gru before": lambda inputs, hidden: fusedrnn.GRUCell(inputs, hidden, reset_after=False),
    "rnn": nn.RNNCell,
    "layer norm lstm": lambda inputs, hidden: fusedrnn.LSTMCell(inputs, hidden, layer_norm=True),
    "2 layer lstm": lambda inputs, hidden: fusedrnn.MultiRNNCell([nn.LSTMCell(inputs, hidden), nn.LSTMCell(hidden, hidden)]),
    "peephole lstm": lambda inputs, hidden: fusedrnn.LSTMCell(inputs, hidden, use_peepholes=True),
    "bahdanau gru": lambda inputs, hidden: _attentive(fusedrnn.BahdanauAttention(hidden, hidden, hidden), inputs, hidden),
    "luong gru": lambda inputs, hidden: _attentive(fusedrnn.LuongAttention(hidden, hidden), inputs, hidden),
}


def _attentive(mechanism: Any, inputs: int, hidden: int) -> Any:
    return fusedrnn.AttentionWrapper(nn.GRUCell(inputs + hidden, hidden), mechanism)


def _g2p(part: str, rows: int, dtype: torch.dtype) -> tuple[Any, Any]:
    """The loops of the model as it hands them to `raw_rnn`."""
    from fusedrnn.models import g2p

    model = g2p.G2P().to(dtype)
    with mock.patch.object(g2p, "raw_rnn", lambda cell, loop_fn, **_: (cell, loop_fn)):
        if part == "g2p decoder":
            return model._tokens(torch.zeros(rows, model.decoder.hidden_size, dtype=dtype), "auto")  # type: ignore[return-value]
        graphemes, lengths = torch.zeros(STEPS, rows, dtype=torch.int64), torch.full((rows,), STEPS)
        return model._encoded(graphemes, lengths, "auto")  # type: ignore[return-value]


_SIZES, _ROWS = (64, 128, 256, 512, 768, 1024), (1, 8, 32, 64, 256)
_G2P = {"g2p encoder": None, "g2p decoder": 74}


def shipped() -> Iterator[Configuration]:
    """Every configuration, the half precisions first."""
    for cell in ("lstm", "gru", "gru before", "rnn"):
        for size in _SIZES:
            yield from (Configuration(cell, size, rows) for rows in _ROWS)
        for size in (1536, 2048):
            yield from (Configuration(cell, size, rows) for rows in (1, 32, 256))
    for cell in ("lstm", "gru"):
        for size in (128, 512, 1024):
            yield from (Configuration(cell, size, rows, "float16") for rows in (1, 32, 256))
    for cell, words in _G2P.items():
        for dtype in ("bfloat16", "float16", "float32"):
            yield from (Configuration(cell, 256, rows, dtype, words) for rows in (1, 16, 64, 256))
    for size, words in ((512, 1000), (512, 8000), (1024, 8000)):
        for cell in ("lstm", "gru"):
            yield from (Configuration(cell, size, rows, V=words) for rows in (1, 8, 64))
    for cell in ("layer norm lstm", "2 layer lstm", "peephole lstm", "bahdanau gru", "luong gru"):
        for size in (256, 512) if "gru" in cell else (256, 512, 1024):  # attention spills from 1024 on
            yield from (Configuration(cell, size, rows) for rows in (1, 8, 64))
    for size, words in ((512, 8000), (1024, 8000)):
        yield from (Configuration("2 layer lstm", size, rows, V=words) for rows in (1, 8, 64))
    for cell in ("int8 lstm", "float8 lstm", "int8 gru"):
        for size in (1024, 2048):
            yield from (Configuration(cell, size, rows) for rows in (1, 16, 64))
    for picks in ("sampled", "top 40"):
        yield from (Configuration("gru", 512, rows, V=1000, picks=picks) for rows in (1, 8, 64))
    for cell in ("lstm", "gru", "gru before", "rnn"):
        for size in (*_SIZES, 1536, 2048):
            yield from (Configuration(cell, size, rows, "float32") for rows in (1, 32))
    for size in (128, 512, 1024):
        yield from (Configuration("lstm", size, rows, "float32", precision="tf32") for rows in (1, 32))
    yield from _training()


def _training() -> Iterator[Configuration]:
    for part in ("forward with gradients", "backward"):
        for dtype, sizes in (("bfloat16", (128, 256, 512, 1024)), ("float32", (128, 256, 512))):
            for cell in ("lstm", "gru", "layer norm lstm") if dtype == "bfloat16" else ("lstm", "gru"):
                for size in sizes:
                    yield from (Configuration(cell, size, rows, dtype, part=part) for rows in (8, 64))
        yield Configuration("bahdanau gru", 256, 8, V=1000, picks="forced", part=part)


QUICK = [  # what continuous integration can afford: (compute capability, configuration)
    (90, Configuration("lstm", 64, 8)),
    (90, Configuration("lstm", 512, 32)),
    (90, Configuration("lstm", 1024, 8)),
    (90, Configuration("gru", 512, 32, "float16")),
    (90, Configuration("gru before", 512, 8)),
    (90, Configuration("rnn", 768, 1)),
    (90, Configuration("g2p encoder", 256, 64)),
    (90, Configuration("g2p decoder", 256, 64, V=74)),
    (90, Configuration("lstm", 512, 8, V=1000)),
    (90, Configuration("gru", 256, 32, "float32")),
    (90, Configuration("layer norm lstm", 512, 8)),
    (90, Configuration("bahdanau gru", 256, 8)),
    (90, Configuration("gru", 512, 8, V=1000, picks="top 40")),
    (90, Configuration("int8 lstm", 2048, 16)),
    (90, Configuration("lstm", 512, 8, part="forward with gradients")),
    (90, Configuration("lstm", 512, 8, part="backward")),
    (90, Configuration("gru", 256, 64, part="backward")),
    (80, Configuration("lstm", 256, 8)),
    (100, Configuration("gru", 512, 8)),
]
