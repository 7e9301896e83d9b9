"""The floor on a GPU. In: the rows of `bench gpu`, the constants that its first parts measured among them; out: microseconds of a step.

Whoever runs a step on some programs, a multiprocessor each, has them meet between products that need a vector whole: an LSTM, a GRU and a
plain cell once, a GRU that resets before its product twice, a greedy decode once more for the argmax. With P programs a row, that takes

    meetings * (a barrier of P programs + latency of the level-2 cache)
    + bytes of the state that P programs read / rate of the level-2 cache
    + max(multiply-adds / rate of the tensor cores of all multiprocessors, bytes of the weights / rate of shared memory of P)

and nothing but the last line where P is 1. The floor is the least over all P, between two that were measured at the better end of each
term: it knows no plan, so that fusedrnn and peers have one and the same. Products of inputs, sigmoids, weights that do not fit on-chip and
launches are not counted. A kernel that meets within a cluster of thread blocks, not through the level-2 cache, may go below.

Barriers, level-2 cache, shared memory and tensor cores are measured (`bench.parts.barrier`, `bench.parts.constants`). No GPU has measured
the constants yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
_GATES = {"lstm": 4, "gru": 3, "gru before": 3, "rnn": 1}
_PARTS = ("sequence", "tables", "peers", "decode")


def constants(rows: Sequence[Row]) -> Row | None:
    """What a device can do at best; None where a part has not measured it."""
    what = {
        row["what"]: row for row in rows if row["part"] == "constants" and "error" not in row and row.get("bytes_per_us", 1) is not None
    }
    barriers = {row["programs"]: row["us"] for row in rows if row["part"] == "barrier" and "us" in row and row.get("groups", 1) == 1}
    sms = next((row["device"]["sms"] for row in rows if row["part"] == "machine" and "device" in row), None)
    if not ({"l2", "latency", "products", "shared"} <= what.keys() and barriers and sms):
        return None
    return {
        "l2": what["l2"]["bytes_per_us"], "latency": what["latency"]["us"], "shared": what["shared"]["bytes_per_us"],
        "tensor": what["products"]["multiply_adds_per_us"], "barriers": barriers, "sms": sms,
    }  # fmt: skip


def floor(row: Row, found: Row) -> float | None:
    """Microseconds of a step; None of a row that has no time of fusedrnn's or whose cell the model does not know."""
    cell = row.get("cell", row.get("model"))
    if cell not in _GATES or "us" not in row or row["part"] not in _PARTS or row.get("who", "persistent") != "persistent":
        return None
    hidden, rows, size = row["H"], row["B"], 4 if row["dtype"] == "float32" else 2
    weights = _GATES[cell] * hidden * hidden + row.get("V", 0) * hidden
    meetings = 1 + (cell == "gru before") + ("V" in row)
    barriers, sms = {1: 0.0} | found["barriers"], found["sms"]
    counts = sorted(count for count in barriers if count <= sms)

    def least(count: int, most: int) -> float:
        products = max(rows * weights / found["tensor"], weights * size * sms / (found["shared"] * most))
        meeting = meetings * (barriers[count] + found["latency"]) + count * rows * hidden * size / found["l2"]
        return float(products + (meeting if count > 1 else 0.0))

    return min(least(count, after - 1) for count, after in zip(counts, [*counts[1:], sms + 1], strict=True))


def microseconds(row: Row) -> float:
    """Of a step, as measured."""
    return float(row["us"]["median"]) / (row["steps"] if row["part"] == "decode" else 1)
