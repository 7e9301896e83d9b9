"""What TensorFlow's cells compute (tests/golden/record_cells.py), and our cells run the same way."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from fusedrnn import trees


@cache
def _recorded():
    return dict(np.load(Path(__file__).parents[1] / "golden" / "cells.npz"))


class Case:
    """One recorded case: its TensorFlow variables, and the check that a cell computes what was recorded."""

    def __init__(self, name):
        self.name = name

    def __getitem__(self, part):
        return torch.from_numpy(_recorded()[f"{self.name}/{part}"])

    def variables(self, *names):
        """The variables of those names as numpy arrays; without names all of them, by name."""
        start = f"{self.name}/variables/"
        found = {key.removeprefix(start): value for key, value in _recorded().items() if key.startswith(start)}
        return [found[name] for name in names] if names else found

    def leaves(self, part):
        return [self[f"{part}/{i}"] for i in range(sum(key.startswith(f"{self.name}/{part}/") for key in _recorded()))]

    def check(self, cell, initial, final):
        """Outputs, last state (the leaves ``final(state)`` in TensorFlow's order) and gradient of the inputs, all to 1e-9."""
        inputs = self["inputs"].requires_grad_()
        outputs, state = steps(cell, initial, inputs)
        (gradient,) = torch.autograd.grad((outputs * loss_weights(outputs)).sum(), inputs)
        close(outputs, self["outputs"])
        for ours, theirs in zip(final(state), self.leaves("final"), strict=True):
            close(ours, theirs)
        close(gradient, self["d_inputs"])


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def loss_weights(outputs):
    return torch.arange(outputs.numel(), dtype=outputs.dtype).cos().reshape(outputs.shape)


def steps(cell, state, inputs):
    """The stacked outputs and the last state of a cell stepped over ``inputs [T, B, ...]``."""
    outputs = []
    for x in inputs:
        output, state = cell(x, state)
        outputs.append(output)
    return torch.stack(outputs), state


def random_state(cell, batch, dtype=torch.float64):
    return trees.map_leaves(torch.randn_like, cell.zero_state(batch, dtype))


def gradcheck(cell, inputs, state):
    """float64 gradcheck by the inputs, every state leaf and every parameter."""
    leaves, structure = trees.flatten(state)
    names, parameters = zip(*cell.named_parameters(), strict=True) if list(cell.parameters()) else ((), ())

    def call(x, *values):
        with torch.random.fork_rng(devices=[]):  # the same draws in every call
            given = dict(zip(names, values[len(leaves) :], strict=True))
            output, new = torch.func.functional_call(cell, given, (x, trees.unflatten(structure, list(values[: len(leaves)]))))
        return (output, *trees.leaves(new))

    arguments = [value.detach().clone().requires_grad_() for value in (inputs, *leaves, *parameters)]
    return torch.autograd.gradcheck(call, arguments, fast_mode=True)
