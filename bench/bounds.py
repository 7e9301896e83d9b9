"""What must not become slower. In: rows of `bench cpu --quick`; out: those whose ratio to a peer in the same run is below its bound.

Never absolute times: those are a machine's, and a busy one's at that. A bound is about half of the ratio that was measured when it was
set, so that noise does not cross it and a loop that fell back to Python does.
"""

from __future__ import annotations

from collections.abc import Sequence

from .case import text
from .runner import Row

# (case, shape of --quick, peer): the least median of peer's time over fusedrnn's.
LEAST = {
    ("sequence", "lstm H=256 B=1 T=64 float32", "eager loop"): 2.5,
    ("sequence", "lstm H=256 B=1 T=64 float32", "nn.LSTM / nn.GRU"): 0.5,
    ("sequence", "lstm H=256 B=32 T=64 float32", "nn.LSTM / nn.GRU"): 0.45,
    ("ragged", "H=256 B=8 T=64", "eager loop with masks"): 2.0,
    ("layer_norm", "H=256 B=1 T=64", "eager loop"): 4.0,
    ("custom", "H=256 B=1 T=64", "eager loop"): 3.0,
    ("decode", "layers=1 H=256 V=1000 B=1 T=32", "eager loop"): 1.8,
    ("training", "layer norm lstm H=256 B=8 T=64", "the cell in a loop"): 1.3,
    ("g2p", "words=512 B=64 sorted", "eager loop"): 1.4,
}


def broken(rows: Sequence[Row]) -> list[str]:
    """A line for each bound that is broken, or that no row tells of though its case ran and its peer is there."""
    told = {(row["case"], text(row["shape"]), row["peer"]): row["ratio"] for row in rows if "ratio" in row}
    ran = {row["case"] for row in rows}
    found = []
    for (case, shape, peer), least in LEAST.items():
        if case not in ran:
            continue
        ratio = told.get((case, shape, peer))
        if ratio is None:
            found.append(f"{case} {shape}: no ratio to {peer}, at least {least} is asked for")
        elif ratio < least:
            found.append(f"{case} {shape}: {ratio:.2f} times as fast as {peer}, at least {least} is asked for")
    return found
