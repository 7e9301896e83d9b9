"""How the time of a decode grows with T, B, H and V, each alone, with the power that fits."""

import torch

from ..case import Case, Peer, Shape
from ..loops import Greedy
from ..peers import eager


class _PerStep:
    """A decode, counted by its steps."""

    def __init__(self, greedy: Greedy) -> None:
        self.greedy, self.count, self.fused = greedy, greedy.steps, greedy.fused


def _made(shape: Shape) -> _PerStep:
    return _PerStep(Greedy.made("lstm", shape["H"], shape["V"], shape["B"], shape["T"], torch.float32))


def _differ(work: _PerStep, ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> str | None:
    return work.greedy.disagreement(ours[0], theirs[0])


_BASE = {"T": [32], "B": [8], "H": [256], "V": [1000]}

CASE = Case(
    name="growth",
    about="how the time of a greedy decode grows",
    unit="us/step",
    axes=(
        _BASE, _BASE | {"T": [8, 32, 128, 512]}, _BASE | {"B": [1, 4, 16, 64]}, _BASE | {"H": [64, 128, 512, 1024]},
        _BASE | {"V": [250, 1000, 4000, 16000]},
    ),
    quick=(_BASE, _BASE | {"T": [8, 128]}),
    make=_made,
    peers={"eager loop": Peer(lambda work: eager.greedy_loop(work.greedy))},
    differ=_differ,
    fit=("T", "B", "H", "V"),
)  # fmt: skip
