"""An LSTM over sequences on the CPU: a compiled fusedrnn loop against torch.nn.LSTM, onnxruntime and a loop of LSTMCell calls."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fusedrnn
from fusedrnn.feedback import sequence

from .measure import compared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the measurement takes."""
    parser.add_argument("--hidden", type=int, nargs="+", default=[512], help="hidden sizes, inputs as wide (default 512)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32], help="batch sizes (default 1 32)")
    parser.add_argument("--steps", type=int, default=128, help="length of the sequences (default 128)")


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times of each shape against each peer; prints a line for each. Raises ValueError where outputs differ."""
    found: dict[str, Any] = {}
    print(f"{'LSTM, float32':<24}{'against':<20}{'fusedrnn us/step':>18}{'peer us/step':>14}{'ratio':>8}{'(least to most)':>18}")
    for hidden in args.hidden:
        for rows in args.rows:
            shape = f"H={hidden} B={rows} T={args.steps}"
            x = torch.randn(args.steps, rows, hidden)
            layer = nn.LSTM(hidden, hidden)
            ours, outputs = fused(layer, x)
            for name, (theirs, other) in peers(layer, x).items():
                worst = (outputs - other).abs().max().item()
                if worst > 1e-4:
                    raise ValueError(f"{shape}: {name} differs from fusedrnn by {worst}")
                result = compared(ours, theirs, args.pairs)
                found[f"{shape} {name}"] = result
                mine, peer = (result[f"{who}_median_seconds"] / args.steps * 1e6 for who in ("fusedrnn", "peer"))
                spread = f"{min(result['ratios']):.2f} to {max(result['ratios']):.2f}"
                print(f"{shape:<24}{name:<20}{mine:>18,.0f}{peer:>14,.0f}{result['ratio']:>8.2f}{spread:>18}", flush=True)
    return found


def fused(layer: nn.LSTM, x: torch.Tensor) -> tuple[Callable[[], Any], torch.Tensor]:
    """The loop, compiled, and its outputs."""
    cell = nn.LSTMCell(layer.input_size, layer.hidden_size)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    zeros = torch.zeros(x.shape[1], layer.hidden_size)
    loop = fusedrnn.compile(cell, sequence(x, None, (zeros, zeros)), backend="native").warmup()
    return lambda: loop()[0].stack(), loop()[0].stack()


def peers(layer: nn.LSTM, x: torch.Tensor) -> dict[str, tuple[Callable[[], Any], torch.Tensor]]:
    """Each peer and its outputs."""
    found: dict[str, tuple[Callable[[], Any], torch.Tensor]] = {"nn.LSTM": (lambda: layer(x), layer(x)[0])}
    cell = nn.LSTMCell(layer.input_size, layer.hidden_size)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})

    def eager() -> torch.Tensor:
        state, outputs = None, []
        for step in x:
            state = cell(step, state)
            outputs.append(state[0])
        return torch.stack(outputs)

    found["LSTMCell loop"] = (eager, eager())
    runner = _onnxruntime(layer, x)
    if runner is not None:
        found["onnxruntime"] = (runner, torch.from_numpy(runner()))
    return found


def _onnxruntime(layer: nn.LSTM, x: torch.Tensor) -> Callable[[], Any] | None:
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError as error:
        print(f"onnxruntime is left out: {error}; pip install onnx onnxruntime")
        return None
    gates = [0, 3, 1, 2]  # torch: i f g o; ONNX: i o f c

    def reordered(weight: torch.Tensor) -> Any:
        return weight.detach().reshape(4, layer.hidden_size, -1)[gates].reshape(1, 4 * layer.hidden_size, -1).numpy()

    bias = torch.cat([layer.bias_ih_l0, layer.bias_hh_l0]).detach().reshape(2, 4, -1)[:, gates].reshape(1, -1).numpy()
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    weights = {"W": reordered(layer.weight_ih_l0), "R": reordered(layer.weight_hh_l0), "B": bias}
    node = helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=layer.hidden_size)
    squeeze = helper.make_node("Squeeze", ["Y", "axes"], ["out"])
    initial = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    import numpy as np

    initial.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node, squeeze],
        "lstm",
        [helper.make_tensor_value_info("X", kind, list(x.shape))],
        [helper.make_tensor_value_info("out", kind, None)],
        initial,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {"X": x.numpy()}
    return lambda: session.run(None, feed)[0]
