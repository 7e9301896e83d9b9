"""The floor on a GPU. In: the rows of `bench gpu`, the constants that its first parts measured among them; out: microseconds of a step.

A step of a persistent kernel goes through its barriers, each with a read of what the others published, and between them through products.
It takes at least

    barriers * (a barrier of as many programs + latency of the level-2 cache)
    + bytes that all programs read of the state / rate of the level-2 cache
    + max(multiply-adds / rate of the tensor cores, bytes of the weights / rate of shared memory), of the multiprocessors that take part

A kernel of one program has no barrier and exchanges nothing. No GPU has measured the constants yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
_GATES = {"lstm": 4, "gru": 4, "gru before": 3, "rnn": 1}  # a GRU's three are padded to four


def constants(rows: Sequence[Row]) -> Row | None:
    """What a device can do at best; None where a part has not measured it."""
    what = {row["what"]: row for row in rows if row["part"] == "constants" and "error" not in row}
    barriers = {row["programs"]: row["us"] for row in rows if row["part"] == "barrier" and "us" in row and row.get("groups", 1) == 1}
    sms = next((row["device"]["sms"] for row in rows if row["part"] == "machine" and "device" in row), None)
    if not ({"l2", "latency", "products", "shared"} <= what.keys() and barriers and sms):
        return None
    return {
        "l2": what["l2"]["bytes_per_us"], "latency": what["latency"]["us"], "shared": what["shared"]["bytes_per_us"],
        "tensor": what["products"]["multiply_adds_per_us"], "barriers": barriers, "sms": sms,
    }  # fmt: skip


def floor(row: Row, found: Row) -> float | None:
    """Microseconds of a step of a row that tells its plan; None of one that does not."""
    cell = row.get("cell", row.get("model"))
    if cell not in _GATES or "programs" not in row or row["part"] not in ("sequence", "tables", "decode"):
        return None
    hidden, rows, size = row["H"], row["B"], 4 if row["dtype"] == "float32" else 2
    weights = _GATES[cell] * hidden * hidden + row.get("V", 0) * hidden
    programs, groups = row["programs"], row["groups"]
    share = min(1.0, programs * groups / found["sms"])
    products = max(rows * weights / found["tensor"], groups * weights * size / found["shared"]) / share
    if programs == 1:
        return products
    barrier = min(us for count, us in found["barriers"].items() if count > 1)
    nearest = max((count for count in found["barriers"] if count <= programs), default=None)
    barrier = found["barriers"][nearest] if nearest and nearest > 1 else barrier
    exchanged = programs * rows * hidden * size / found["l2"]  # each program of a group reads the state of the group's rows
    return float(row["barriers"] * (barrier + found["latency"]) + exchanged + products)


def microseconds(row: Row) -> float:
    """Of a step, as measured."""
    return float(row["us"]["median"]) / (row["steps"] if row["part"] == "decode" else 1)
