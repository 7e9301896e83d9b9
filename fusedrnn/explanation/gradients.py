"""What becomes of a loop's gradients. In: a program and a call's tensors; out: facts about its derivative."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..capture.program import Program
from ..capture.refusal import NotCapturable
from ..contract import Call, Start
from ..executors import differentiated
from ..optimise.graph import value
from .facts import Backward, Refusal


def backward(call: Call, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> Backward | Refusal | None:
    """The derivative, or why there is none; None where nothing needs a gradient."""
    if not differentiated.needs_gradients(begun, program, tensors):
        return None
    needed = differentiated.needed(begun, program, tensors)
    try:
        made = differentiated.derived(program, needed)
    except NotCapturable as refused:
        return Refusal(refused.reason, "the backward runs the loop again, step by step", refused.location)
    keeps = {choice.again: choice.bytes_per_row for choice in made.forward.choices}
    (derivative,) = list(made.backwards.values())[:1]
    added = [
        f"{str(value(node).dtype).removeprefix('torch.')}{[*map(str, value(node).shape)]}".replace("'", "")
        for node in derivative.totals.added
    ]
    return Backward(
        made.forward.kept.bytes_per_row, keeps.get(True, made.forward.kept.bytes_per_row),
        differentiated.makes_again(made, call, begun, program, tensors), list(derivative.totals.lines), added,
    )  # fmt: skip
