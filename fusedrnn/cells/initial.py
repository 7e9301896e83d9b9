"""The initial values of a cell's parameters. In: the cell; out: the same, drawn as torch.nn's cells draw theirs."""

from __future__ import annotations

import math

from torch import nn


def reset(cell: nn.Module, hidden_size: int) -> None:
    """Uniform in +-1/sqrt(H), in the order of the parameters; gains of norms 1 and their shifts 0."""
    spread = 1 / math.sqrt(hidden_size)
    for name, parameter in cell.named_parameters(recurse=False):
        if "gain" in name:
            nn.init.ones_(parameter)
        elif "shift" in name:
            nn.init.zeros_(parameter)
        else:
            nn.init.uniform_(parameter, -spread, spread)
