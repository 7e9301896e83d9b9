"""Wide tables over hidden size and rows: microseconds a step of a persistent LSTM and GRU and of cuDNN's, bf16."""

from __future__ import annotations

from . import Row, Where, sequence


def cases(where: Where) -> list[Row]:
    """A coarse grid first, so that whenever time ends the table has all corners."""
    if where.dry:
        return [{"cell": "lstm", "H": 16, "B": rows, "T": 2, "dtype": "bfloat16"} for rows in (1, 2)]
    sizes, rows = (128, 512, 1024, 256, 768, 64, 1536, 2048), (1, 64, 8, 256, 32, 128)
    grid = [(size, count) for size in sizes for count in rows]
    coarse = {(size, count) for size in sizes[:3] for count in rows[:2]}
    ordered = sorted(grid, key=lambda pair: pair not in coarse)
    found = [{"cell": "lstm", "H": size, "B": count, "T": 256, "dtype": "bfloat16"} for size, count in ordered]
    return found + [case | {"cell": "gru"} for case in found]


def measure(case: Row, where: Where, seconds: float) -> list[Row]:
    return sequence.measure(case, where, seconds, rounds=7)
