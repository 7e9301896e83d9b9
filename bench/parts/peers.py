"""Other people's fast LSTMs on a GPU against a persistent kernel, in turn: FlashRNN, TorchRL's Triton LSTM, haste's method, a CUDA graph.

Each is left out, with a line that says why, where it is not installed or cannot run. No GPU has run any of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..case import Missing
from ..loops import Reads
from . import Row, Where
from .timing import in_turn, ratio, spread


def cases(where: Where) -> list[Row]:
    if where.dry:
        return [{"cell": "lstm", "H": 16, "B": 3, "T": 3, "dtype": "bfloat16"}]
    return [
        {"cell": "lstm", "H": size, "B": rows, "T": 512, "dtype": "bfloat16"} for size, rows in ((512, 8), (768, 16), (1024, 32), (128, 8))
    ]


def measure(case: Row, where: Where, seconds: float) -> list[Row]:
    """A row for each peer. Outputs are compared first: one that differs has a "fault" of its own and no time."""
    reads = Reads.made(case["cell"], case["H"], case["B"], case["T"], getattr(torch, case["dtype"]))
    loop = reads.loop("persistent")
    ours = loop().emit_ta.stack()
    rows = []
    for name, make in _PEERS.items():
        try:
            if where.dry:
                raise Missing("there is no CUDA device")
            theirs = make(reads)
            found = theirs()
        except Exception as error:  # each has errors of its own
            rows.append(
                {"peer": name, "skipped": f"{'' if isinstance(error, Missing) else type(error).__name__ + ': '}{error}".splitlines()[0]}
            )
            continue
        difference = (ours.double() - found.double()).abs().max().item()
        if not difference <= 0.05:
            rows.append({"peer": name, "skipped": f"its outputs differ by {difference:.2g}"})
            continue
        times = in_turn({"mine": lambda: loop().emit_ta.stack(), "theirs": theirs}, where, 21)
        us = {"us": spread(times["mine"], case["T"]), "peer_us": spread(times["theirs"], case["T"])}
        rows.append({"peer": name, **us, "ratio": ratio(times["mine"], times["theirs"]), "largest_difference": difference})
    return rows


def _flashrnn(reads: Reads) -> Callable[[], torch.Tensor]:
    """Its fused CUDA kernel; the inputs' products are made before it, as its README has them, and counted."""
    try:
        from flashrnn import flashrnn
    except ModuleNotFoundError as error:
        raise Missing(f"{error}; pip install flashrnn") from error
    cell, (steps, rows, size) = reads.cell, reads.x.shape
    recurrent = cell.weight_hh.view(4, 1, size, size)  # gate, head, to, from
    bias = (cell.bias_ih + cell.bias_hh).view(4, 1, size)
    x = reads.x.transpose(0, 1).contiguous()

    def run() -> Any:
        inputs = torch.nn.functional.linear(x, cell.weight_ih).view(rows, steps, 4, 1, size)
        states, _ = flashrnn(inputs, recurrent, bias, function="lstm", backend="cuda_fused", dtype="bfloat16")
        return states[0, :, :, 0].transpose(0, 1)

    return run


def _torchrl(reads: Reads) -> Callable[[], torch.Tensor]:
    try:
        from tensordict import TensorDict
        from torchrl.modules import LSTMModule
    except ModuleNotFoundError as error:
        raise Missing(f"{error}; pip install torchrl") from error
    steps, rows, size = reads.x.shape
    module = LSTMModule(
        input_size=size, hidden_size=size, in_keys=["obs", "h", "c"], out_keys=["out", ("next", "h"), ("next", "c")],
        recurrent_backend="triton", recurrent_compute_dtype=torch.bfloat16, default_recurrent_mode=True, device=reads.x.device,
    )  # fmt: skip
    module.lstm.load_state_dict({f"{name}_l0": value for name, value in reads.to(torch.float32).cell.state_dict().items()})
    zeros = torch.zeros(rows, steps, 1, size)
    starts = torch.zeros(rows, steps, 1, dtype=torch.bool)
    x = reads.x.float().transpose(0, 1).contiguous()
    data = TensorDict({"obs": x, "h": zeros, "c": zeros, "is_init": starts}, [rows, steps])
    return lambda: module(data.copy())["out"].transpose(0, 1)


def _haste(reads: Reads) -> Callable[[], torch.Tensor]:
    """haste's method: one product over all steps for the inputs, then in each step a cuBLAS product and one pointwise kernel."""
    cell = reads.cell
    recurrent = cell.weight_hh.t().contiguous()
    bias = cell.bias_ih + cell.bias_hh

    def run() -> torch.Tensor:
        gates = torch.nn.functional.linear(reads.x, cell.weight_ih, bias)
        (h, c), outputs = reads.state, []
        for one in gates:
            h, c, _ = torch.ops.aten._thnn_fused_lstm_cell(one, h @ recurrent, c)
            outputs.append(h)
        return torch.stack(outputs)

    return run


def _graphed(reads: Reads) -> Callable[[], torch.Tensor]:
    """The same, all steps in one CUDA graph."""
    run = _haste(reads)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay


_PEERS: dict[str, Callable[[Reads], Callable[[], torch.Tensor]]] = {
    "FlashRNN": _flashrnn,
    "TorchRL, Triton": _torchrl,
    "cuBLAS and pointwise (haste's method)": _haste,
    "the same in a CUDA graph": _graphed,
}
