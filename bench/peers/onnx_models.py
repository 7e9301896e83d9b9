"""onnxruntime on the CPU: its LSTM and GRU operators over sequences, its Loop operator around a step for decodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import fusedrnn

from ..case import Missing, Run
from ..loops import Greedy, Reads

_GATES = {nn.LSTMCell: ("LSTM", [0, 3, 1, 2]), nn.GRUCell: ("GRU", [1, 0, 2])}  # torch: i f g o, r z n; ONNX: i o f c, z r h


def _modules() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError as error:
        raise Missing(f"{error}; pip install onnx onnxruntime") from error
    return onnx, onnxruntime


def _session(onnx: Any, onnxruntime: Any, graph: Any) -> Any:
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _node(onnx: Any, cell: Any, prefix: str, inputs: list[str], outputs: list[str]) -> tuple[Any, list[Any]]:
    """The operator of a cell, and its weights."""
    kind, order = _GATES[type(cell)]
    count, hidden = len(order), cell.hidden_size

    def reordered(weight: torch.Tensor) -> Any:
        return weight.detach().reshape(count, hidden, -1)[order].reshape(1, count * hidden, -1).numpy()

    bias = torch.cat([cell.bias_ih, cell.bias_hh]).detach().reshape(2, count, -1)[:, order].reshape(1, -1).numpy()
    weights = {f"{prefix}W": reordered(cell.weight_ih), f"{prefix}R": reordered(cell.weight_hh), f"{prefix}B": bias}
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    node = onnx.helper.make_node(kind, [inputs[0], *weights, "", *inputs[1:]], outputs, hidden_size=hidden, **more)
    return node, [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]


def layer(work: Reads) -> Run:
    """The operator over the whole sequence."""
    onnx, onnxruntime = _modules()
    helper = onnx.helper
    node, initial = _node(onnx, work.cell, "", ["X"], ["Y"])
    initial.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "axes"))
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [node, helper.make_node("Squeeze", ["Y", "axes"], ["out"])], "layer",
        [helper.make_tensor_value_info("X", kind, list(work.x.shape))], [helper.make_tensor_value_info("out", kind, None)], initial,
    )  # fmt: skip
    session, feed = _session(onnx, onnxruntime, graph), {"X": work.x.numpy()}
    return Run(lambda: session.run(None, feed), lambda: [torch.from_numpy(session.run(None, feed)[0])])


def greedy(work: Greedy) -> Run:
    """Loop: the body is Gather, the operators at one step, Gemm and ArgMax; it ends at the last step, or when every row has ended."""
    onnx, onnxruntime = _modules()
    helper, of_array, kinds = onnx.helper, onnx.numpy_helper.from_array, onnx.TensorProto
    cells = list(work.cell.cells) if isinstance(work.cell, fusedrnn.MultiRNNCell) else [work.cell]
    states = work.state if len(cells) > 1 else (work.state,)
    rows, size = work.rows, cells[0].hidden_size
    flat = [part for state in states for part in (state if isinstance(state, tuple) else (state,))]
    per_cell = len(flat) // len(cells)
    initial = [
        of_array(work.embedding.weight.detach().numpy(), "table"), of_array(work.project.weight.detach().numpy(), "projection"),
        of_array(work.project.bias.detach().numpy(), "bias"), of_array(np.array([0], np.int64), "first"),
        of_array(np.array([1], np.int64), "second"), of_array(np.array(work.end, np.int64), "end"),
    ]  # fmt: skip
    nodes = [helper.make_node("Gather", ["table", "token"], ["x"]), helper.make_node("Unsqueeze", ["x", "first"], ["in0"])]
    for place, cell in enumerate(cells):
        before = [f"state{place * per_cell + part}" for part in range(per_cell)]
        after = [f"new{place * per_cell + part}" for part in range(per_cell)]
        node, weights = _node(onnx, cell, f"cell{place}", [f"in{place}", *before], [f"Y{place}", *after])
        nodes += [node, helper.make_node("Squeeze", [f"Y{place}", "second"], [f"in{place + 1}"])]
        initial += weights
    nodes += [
        helper.make_node("Squeeze", [f"in{len(cells)}", "first"], ["h"]),
        helper.make_node("Gemm", ["h", "projection", "bias"], ["logits"], transB=1),
        helper.make_node("ArgMax", ["logits"], ["picked"], axis=-1, keepdims=0),
        helper.make_node("Equal", ["picked", "end"], ["ends"]), helper.make_node("Or", ["done", "ends"], ["done_out"]),
        helper.make_node("Cast", ["done_out"], ["as_int"], to=kinds.INT32),
        helper.make_node("ReduceMin", ["as_int"], ["least"], keepdims=0),
        helper.make_node("Cast", ["least"], ["all_done"], to=kinds.BOOL), helper.make_node("Not", ["all_done"], ["going"]),
        helper.make_node("Identity", ["picked"], ["emitted"]),
    ]  # fmt: skip

    def value(name: str, kind: int, shape: list[int]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    state_shape = [1, rows, size]
    carried = [value("done", kinds.BOOL, [rows]), value("token", kinds.INT64, [rows])]
    carried += [value(f"state{place}", kinds.FLOAT, state_shape) for place in range(len(flat))]
    produced = [value("going", kinds.BOOL, []), value("done_out", kinds.BOOL, [rows]), value("picked", kinds.INT64, [rows])]
    produced += [value(f"new{place}", kinds.FLOAT, state_shape) for place in range(len(flat))]
    produced += [value("emitted", kinds.INT64, [rows])]
    body = helper.make_graph(nodes, "body", [value("time", kinds.INT64, []), value("go", kinds.BOOL, []), *carried], produced)
    starts = [f"start{place}" for place in range(len(flat))]
    constants = {"most": np.array(work.steps, np.int64), "true": np.array(True), "undone": np.zeros(rows, bool)}
    constants["begin"] = np.full(rows, work.start, np.int64)
    initial += [of_array(array, name) for name, array in constants.items()]
    ends = [f"last{place}" for place in range(len(flat))]
    loop = helper.make_node("Loop", ["most", "true", "undone", "begin", *starts], ["_done", "_token", *ends, "tokens"], body=body)
    given = [value(name, kinds.FLOAT, state_shape) for name in starts]
    graph = helper.make_graph([loop], "greedy", given, [value("tokens", kinds.INT64, ["T", rows])], initial)
    session = _session(onnx, onnxruntime, graph)
    feed = {name: part.unsqueeze(0).numpy() for name, part in zip(starts, flat, strict=True)}
    return Run(lambda: session.run(None, feed), lambda: [torch.from_numpy(session.run(None, feed)[0])])
