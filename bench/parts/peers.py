"""Other people's fast LSTMs on a GPU against a persistent kernel, in turn: FlashRNN, TorchRL's Triton LSTM, haste's method, a CUDA graph,
torch.compile of the step and of `while_loop`, an eager loop.

A case is one peer at one shape, so that one that crashes or compiles for minutes costs nobody else's row. Each is left out, with a line
that says why, where it is not installed or cannot run. No GPU has run any of this;
FlashRNN's layouts were checked with its "vanilla" backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..case import Missing
from ..loops import Reads
from ..peers import eager, inductor
from . import Row, Where
from .timing import in_turn, ratio, spread


def cases(where: Where) -> list[Row]:
    if where.dry:
        shapes = [{"cell": "lstm", "H": 16, "B": 3, "T": 3, "dtype": "bfloat16"}]
    else:
        sizes = ((512, 8), (768, 16), (1024, 32), (128, 8))
        shapes = [{"cell": "lstm", "H": size, "B": rows, "T": 512, "dtype": "bfloat16"} for size, rows in sizes]
    return [shape | {"peer": name} for shape in shapes for name in _PEERS]


def measure(case: Row, where: Where, seconds: float) -> list[Row]:
    """One row. Outputs are compared first: a peer whose differ is a fault and has no time."""
    reads = Reads.made(case["cell"], case["H"], case["B"], case["T"], getattr(torch, case["dtype"]))
    try:
        if where.dry and case["peer"] in _OF_A_DEVICE:
            raise Missing("there is no CUDA device")
        theirs = _PEERS[case["peer"]](reads)
        found = theirs()
    except Exception as error:  # each has errors of its own
        said = f"{'' if isinstance(error, Missing) else type(error).__name__ + ': '}{str(error).strip()}"
        return [{"skipped": said.splitlines()[0]}]
    loop = reads.loop("persistent")
    difference = (loop().emit_ta.stack().double() - found.double()).abs().max().item()
    if not difference <= 0.05:
        return [{"largest_difference": difference, "faults": [f"outputs differ by {difference:.2g}"]}]
    times = in_turn({"mine": lambda: loop().emit_ta.stack(), "theirs": theirs}, where, 21)
    us = {"us": spread(times["mine"], case["T"]), "peer_us": spread(times["theirs"], case["T"])}
    return [{**us, "ratio": ratio(times["mine"], times["theirs"]), "largest_difference": difference}]


def _flashrnn(reads: Reads) -> Callable[[], torch.Tensor]:
    """Its fused CUDA kernel; the inputs' products are made before it, as its README has them, and counted. Time-major, so that it need not
    transpose them."""
    try:
        from flashrnn import FlashRNNConfig, flashrnn
    except ModuleNotFoundError as error:
        raise Missing(f"{error}; pip install flashrnn") from error
    cell, (steps, rows, size) = reads.cell, reads.x.shape
    recurrent = cell.weight_hh.view(4, 1, size, size)  # gate, head, to, from
    bias = (cell.bias_ih + cell.bias_hh).view(4, 1, size)
    types = {f"dtype{of}": str(reads.x.dtype).removeprefix("torch.") for of in ("", "_w", "_r", "_b")}
    config = FlashRNNConfig(
        backend="cuda_fused",
        function="lstm",
        head_dim=size,
        num_heads=1,
        batch_size=rows,
        input_shape="TBGHD",
        output_shape="STBHD",
        **types,
    )

    def run() -> Any:
        inputs = torch.nn.functional.linear(reads.x, cell.weight_ih).view(steps, rows, 4, 1, size)
        states, _ = flashrnn(inputs, recurrent, bias, config=config)
        return states[0, :, :, 0]

    return run


def _torchrl(reads: Reads) -> Callable[[], torch.Tensor]:
    """Its float32 module, the only one that its kernel has: recurrent products in bfloat16, those of the inputs in tf32."""
    try:
        from tensordict import TensorDict
        from torchrl.modules import LSTMModule
    except ModuleNotFoundError as error:
        raise Missing(f"{error}; pip install torchrl") from error
    steps, rows, size = reads.x.shape
    module = LSTMModule(
        input_size=size, hidden_size=size, in_keys=["obs", "h", "c"], out_keys=["out", ("next", "h"), ("next", "c")],
        recurrent_backend="triton", recurrent_compute_dtype=torch.bfloat16, recurrent_matmul_precision="fast", default_recurrent_mode=True,
        device=reads.x.device,
    )  # fmt: skip
    module.lstm.load_state_dict({f"{name}_l0": value for name, value in reads.to(torch.float32).cell.state_dict().items()})
    zeros = torch.zeros(rows, steps, 1, size)
    starts = torch.zeros(rows, steps, 1, dtype=torch.bool)
    x = reads.x.float().transpose(0, 1).contiguous()
    data = TensorDict({"obs": x, "h": zeros, "c": zeros, "is_init": starts}, [rows, steps])
    return lambda: module(data.copy())["out"].transpose(0, 1)


def _haste(reads: Reads) -> Callable[[], torch.Tensor]:
    """haste's method: one product over all steps for the inputs, then in each step a cuBLAS product and one pointwise kernel. Launched from
    Python, not from C++ as haste does: the CUDA graph of it is the fair one."""
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
    """haste's method with all steps in one CUDA graph."""
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
    "cuBLAS and pointwise in a CUDA graph": _graphed,
    "cuBLAS and pointwise (haste's method)": _haste,
    "eager loop": lambda reads: eager.loop(reads).call,
    "TorchRL, Triton": _torchrl,
    "FlashRNN": _flashrnn,
    "torch.compile of the step": lambda reads: eager.compiled_step(reads).call,
    "torch.compile of while_loop": lambda reads: inductor.reads(reads).call,
}
_OF_A_DEVICE = tuple(name for name in _PEERS if name != "eager loop")
