"""What every program is given. In: its name; out: numpy arrays, the same for TensorFlow (golden/record_programs.py) and PyTorch.

Only numpy is imported here. In `PROGRAMS` a tuple is the shape of a float64 tensor to draw, anything else is the value itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

B, T, D, H = 4, 5, 3, 4  # rows, time, input size, hidden size
S, M, V = 6, 3, 6  # memory positions, memory size, vocabulary
RAGGED = [5, 3, 0, 1]

X = (T, B, D)
TANH = {"w": (D, H), "u": (H, H), "b": (H,)}  # tanh(x w + h u + b)


def gates(n: int, inputs: int = D, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """The weights of torch's LSTMCell (4 gates), GRUCell (3) and RNNCell (1)."""
    sizes = {"weight_ih": (n * H, inputs), "weight_hh": (n * H, H), "bias_ih": (n * H,), "bias_hh": (n * H,)}
    return {prefix + name: size for name, size in sizes.items()}


FED = {"h0": (B, H), "feed": (H, D), **TANH}
TOKENS = {"h0": (B, H), "table": (V, D), "out": (H, V), **TANH}
ROWS = {"x": X, "lengths": RAGGED, **TANH}
MEMORY = {"memory": (B, S, M), "memory_lengths": [6, 4, 1, 3]}

PROGRAMS: dict[str, dict[str, Any]] = {
    # test_reads.py
    "lstm_natural": {"x": X, "lengths": RAGGED, **gates(4)},
    "gru_array": {"x": X, "lengths": RAGGED, "h0": (B, H), **gates(3)},
    "rnn_full": {"x": X, "lengths": [T] * B, **gates(1)},
    "duck_typed": ROWS,
    "all_finished": {**ROWS, "lengths": [0] * B, "h0": (B, H)},
    "no_time": {**ROWS, "x": (0, B, D), "lengths": [0] * B, "h0": (B, H)},
    "one_row": {**ROWS, "x": (T, 1, D), "lengths": [3]},
    "no_rows": {**ROWS, "x": (T, 0, D), "lengths": []},
    "previous_read": ROWS,
    "reversed_read": ROWS,
    "reversed_rows": ROWS,
    "strided_read": {**ROWS, "x": (8, B, D), "lengths": [4, 0, 3, 1]},
    "clamped_read": {**ROWS, "lengths": [7, 6, 0, 2]},
    "lookahead_read": {**ROWS, "v": (D, H)},
    "two_inputs": {**ROWS, "y": (T, B, 2), "v": (2, H)},
    "dict_inputs": {**ROWS, "ids": [[(3 * t + r) % V for r in range(B)] for t in range(T)], "table": (V, H)},
    "column_read": {**ROWS, "x": (B, T, D)},
    "pointer_read": {**ROWS, "lengths": [5, 4, 0, 2]},
    "gather_read": {**ROWS, "x": (T, B), "w": (1, H), "lengths": [4, 5, 0, 2]},
    # test_feedback.py
    "greedy": TOKENS,
    "soft_feedback": TOKENS,
    "continuous": FED,
    "scheduled": {**FED, "x": X},
    "teacher_mask": {**FED, "x": X, "lengths": RAGGED, "mask": [[(t * r + t) % 3 != 1 for r in range(B)] for t in range(T)]},
    "finish_on_value": FED,
    # test_loop_state.py
    "counter": ROWS,
    "running_sum": ROWS,
    "none_keeps": {**ROWS, "scale": (H,)},
    "nested_loop_state": ROWS,
    "array_writes": ROWS,
    "array_reads": {**ROWS, "feed": (H, D)},
    "average_feedback": {**ROWS, "feed": (H, D)},
    "decaying_scale": {**ROWS, "scale": ()},
    "visited": ROWS,
    "latest_output": {**ROWS, "feed": (H, D)},
    # test_emits.py
    "emit_none_tree": ROWS,
    "emit_tokens": {**ROWS, "out": (H, V)},
    "emit_mixed": ROWS,
    "emit_nested": ROWS,
    "emit_nothing": ROWS,
    "emit_row_scalar": ROWS,
    "emit_projection": {**ROWS, "out": (H, 2)},
    "emit_loop_state": ROWS,
    "emit_time": ROWS,
    "emit_record": ROWS,
    # test_states.py
    "state_record": ROWS,
    "state_dict": ROWS,
    "state_list": ROWS,
    "state_nested": ROWS,
    "fast_weights": {**ROWS, "h0": (B, H), "fast0": (B, H, H)},
    "scalar_leaf": ROWS,
    "int_leaf": ROWS,
    "reset_on_time": ROWS,
    "reset_rows": ROWS,
    "teacher_state": {**ROWS, "states": (T + 1, B, H)},
    "initial_state": {**ROWS, "h0": (B, H)},
    "scalar_finished": ROWS,
    "sticky": ROWS,
    "last_state": ROWS,
    # test_attention.py
    "bahdanau": {"x": X, "lengths": RAGGED, **MEMORY, "query": (H, M), "score": (M,), **gates(4, D + M)},
    "luong": {"x": X, "lengths": RAGGED, **MEMORY, "query": (H, M), "mix": (H + M, H), **gates(3, D + H)},
    "coverage": {**ROWS, **MEMORY, "w": (D + M, H), "query": (H, M), "cover": (M,), "score": (M,)},
    "monotonic": {**ROWS, **MEMORY, "w": (D + M, H), "move": (H,)},
    # test_cells.py
    "stacked": {"x": X, "lengths": RAGGED, **gates(4, D, "a_"), **gates(4, H, "b_")},
    "residual": {**ROWS, "x": (T, B, H), "w": (H, H)},
    "zoneout": {**ROWS, "keep": [[0.0, 1.0, 0.25, 0.5]] * B, "h0": (B, H)},
    "layer_norm": {**ROWS, "gain": (H,)},
    "projected": {"x": X, "lengths": RAGGED, "proj": (H, 2), "weight_ih": (4 * H, D), "weight_hh": (4 * H, 2), "bias": (4 * H,)},
    "peephole": {"x": X, "lengths": RAGGED, "peep": (3, H), **gates(4)},
    "tf_basic_lstm": {"x": X, "lengths": RAGGED, "kernel": (D + H, 4 * H), "bias": (4 * H,)},
    "tf_gru": {"x": X, "lengths": RAGGED, "kernel": (D + H, 2 * H), "bias": (2 * H,), "candidate": (D + H, H), "candidate_bias": (H,)},
    "nested_loop": {**ROWS, "x": (T, B, 3, D), "inner_lengths": [[3, 1, 0, 2], [1, 3, 2, 2], [0] * B, [3] * B, [2, 0, 1, 3]], "iu": (H, H)},
    "dynamic_rnn": {"x": (B, T, D), "lengths": RAGGED, **gates(4)},
    "dynamic_rnn_clipped": {**ROWS, "h0": (B, H), "lengths": [9, -1, 2, 3]},
    "bidirectional": {"x": X, "lengths": RAGGED, **gates(3, D, "a_"), **gates(3, D, "b_")},
    # test_numbers.py
    "float32": ROWS,
    "float16": ROWS,
    "bfloat16": ROWS,
    "infinite_rows": {"x": X, "lengths": RAGGED, **gates(4)},
}


def inputs(program: str) -> dict[str, np.ndarray]:
    """The inputs of a program by name: float64 in [-1, 1], int32 or bool."""
    found = {}
    for key, value in PROGRAMS[program].items():
        if isinstance(value, tuple):
            found[key] = draw(f"{program}/{key}", value)
        else:
            array = np.asarray(value, dtype=None if value else np.int32)
            found[key] = array.astype(np.int32) if array.dtype.kind == "i" else array
    return found


def draw(label: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1] that only the label decides, so that a new program changes no recording."""
    return np.asarray(np.random.default_rng(zlib.crc32(label.encode())).random(shape) * 2 - 1)


def loss_weights(program: str, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of one output in the loss whose gradients are recorded: the sum of output * weight over all float outputs."""
    return draw(f"{program}/loss/{path}", shape)


def named_leaves(tree: Any, path: str) -> dict[str, Any]:
    """The leaves of a tree by path (``emit.a.0``), dict keys sorted; None is no leaf."""
    if tree is None:
        return {}
    if isinstance(tree, Mapping):
        pairs = [(key, tree[key]) for key in sorted(tree)]
    elif isinstance(tree, (list, tuple)):
        pairs = list(enumerate(tree))
    else:
        return {path: tree}
    return {name: leaf for key, value in pairs for name, leaf in named_leaves(value, f"{path}.{key}").items()}
