"""An LSTM or GRU over sequences: one persistent kernel against torch.nn.LSTM and torch.nn.GRU (cuDNN), in turn. Microseconds a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..loops import Reads, plan_of
from . import Row, Where
from .timing import in_turn, marginal, profiled, ratio, spread

_LAYERS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU}


def cases(where: Where) -> list[Row]:
    if where.dry:
        return [
            {"cell": "lstm", "H": 16, "B": 3, "T": 3, "dtype": "bfloat16"},
            {"cell": "gru", "H": 16, "B": 3, "T": 3, "dtype": "float32"},
        ]
    found = [{"cell": "lstm", "H": 768, "B": 16, "T": 1024, "dtype": dtype} for dtype in ("float16", "bfloat16")]
    for size, rows in ((512, 8), (1024, 32), (256, 8), (128, 8), (512, 64), (1024, 64)):
        found.append({"cell": "lstm", "H": size, "B": rows, "T": 512, "dtype": "bfloat16"})
    found += [
        {"cell": "gru", "H": 512, "B": 8, "T": 512, "dtype": "bfloat16"},
        {"cell": "lstm", "H": 512, "B": 8, "T": 512, "dtype": "float32"},
    ]
    return found


def measure(case: Row, where: Where, seconds: float, rounds: int = 21) -> list[Row]:
    """Both peers at T and at 2 T steps: ``us`` is a whole call's over its T steps, ``marginal_us`` what each step beyond T adds."""
    steps, dtype = case["T"], getattr(torch, case["dtype"])
    long = Reads.made(case["cell"], case["H"], case["B"], 2 * steps, dtype)
    short = Reads(long.cell, long.x[:steps], None, long.state)
    layer = _LAYERS[case["cell"]](case["H"], case["H"]).to(dtype)
    layer.load_state_dict({f"{name}_l0": value for name, value in long.cell.state_dict().items()})
    loops = {name: reads.loop("persistent") for name, reads in (("short", short), ("long", long))}
    difference = (loops["short"]().emit_ta.stack().double() - layer(short.x)[0].double()).abs().max().item()
    times = in_turn(
        {
            "mine": lambda: loops["short"]().emit_ta.stack(), "theirs": lambda: layer(short.x),
            "mine long": lambda: loops["long"]().emit_ta.stack(), "theirs long": lambda: layer(long.x),
        },
        where, rounds,
    )  # fmt: skip
    return [
        {
            "peer": type(layer).__name__,
            "us": spread(times["mine"], steps), "peer_us": spread(times["theirs"], steps), "ratio": ratio(times["mine"], times["theirs"]),
            "marginal_us": marginal(times["mine"], times["mine long"], steps),
            "peer_marginal_us": marginal(times["theirs"], times["theirs long"], steps),
            "largest_difference": difference, **plan_of(loops["short"]), **profiled(loops["short"], where),
        }
    ]  # fmt: skip
