"""One step of one layer in one direction. In: inputs ``[B, D]``, a state and a layer's weights; out: the output and the new state.

A step is a cell for `raw_rnn`, made anew for each loop of the tensors that the module has then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from ..cells.layer_norm import norm_gates

Weights = Mapping[str, torch.Tensor]

_EPSILON = 1e-5  # added to the variance where there is layer normalisation, as torch.nn.LayerNorm does


class LSTMStep:
    """The formulas of `fusedrnn.nn.LSTM`; the state is ``(h, c)``.

    Args:
        hidden_size: H.
        weights: by their names without the layer's suffix.
    """

    def __init__(self, hidden_size: int, weights: Weights) -> None:
        self.hidden_size, self.weights = hidden_size, weights
        self.output_size = weights["weight_hh"].shape[1]
        self.state_size = (self.output_size, hidden_size)

    def __call__(
        self, inputs: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        (h, c), w = state, self.weights
        gates = F.linear(inputs, w["weight_ih"], w.get("bias_ih")) + F.linear(h, w["weight_hh"], w.get("bias_hh"))
        if "gate_gain" in w:
            gates = norm_gates(gates, self.hidden_size, w["gate_gain"], w.get("gate_shift"), _EPSILON)
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        if "cell_gain" in w:
            c = norm_gates(c, self.hidden_size, w["cell_gain"], w.get("cell_shift"), _EPSILON)
        h = torch.sigmoid(o) * torch.tanh(c)
        if "weight_hr" in w:
            h = F.linear(h, w["weight_hr"])
        return h, (h, c)


class GRUStep:
    """The formulas of `fusedrnn.nn.GRU`. Arguments as `LSTMStep`."""

    def __init__(self, hidden_size: int, weights: Weights) -> None:
        self.hidden_size, self.weights = hidden_size, weights
        self.output_size = self.state_size = hidden_size

    def __call__(self, inputs: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w = self.weights
        of_input, of_h = F.linear(inputs, w["weight_ih"], w.get("bias_ih")), F.linear(h, w["weight_hh"], w.get("bias_hh"))
        if "gain_ih" in w:
            of_input = norm_gates(of_input, self.hidden_size, w["gain_ih"], w.get("shift_ih"), _EPSILON)
            of_h = norm_gates(of_h, self.hidden_size, w["gain_hh"], w.get("shift_hh"), _EPSILON)
        r_input, z_input, n_input = of_input.chunk(3, 1)
        r_h, z_h, n_h = of_h.chunk(3, 1)
        n = torch.tanh(n_input + torch.sigmoid(r_input + r_h) * n_h)
        h = n + torch.sigmoid(z_input + z_h) * (h - n)
        return h, h


class RNNStep:
    """The formula of `fusedrnn.nn.RNN`. Arguments as `LSTMStep`, and the nonlinearity."""

    def __init__(self, hidden_size: int, weights: Weights, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.hidden_size, self.weights, self.activation = hidden_size, weights, activation
        self.output_size = self.state_size = hidden_size

    def __call__(self, inputs: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        w = self.weights
        pre = F.linear(inputs, w["weight_ih"], w.get("bias_ih")) + F.linear(h, w["weight_hh"], w.get("bias_hh"))
        if "gain" in w:
            pre = norm_gates(pre, self.hidden_size, w["gain"], w.get("shift"), _EPSILON)
        h = self.activation(pre)
        return h, h


Step = LSTMStep | GRUStep | RNNStep


def step(mode: str, hidden_size: int, weights: Weights) -> Step:
    """The step of a module's ``mode``: LSTM, GRU, RNN_TANH or RNN_RELU."""
    if mode == "LSTM":
        return LSTMStep(hidden_size, weights)
    if mode == "GRU":
        return GRUStep(hidden_size, weights)
    return RNNStep(hidden_size, weights, torch.relu if mode == "RNN_RELU" else torch.tanh)


def weight_shapes(mode: str, input_size: int, hidden_size: int, bias: bool, proj_size: int, layer_norm: bool) -> dict[str, tuple[int, ...]]:
    """The names of a step's weights, torch.nn's first and in its order, and their shapes.

    With layer normalisation the shifts of the norms replace the biases.
    """
    gates = {"LSTM": 4, "GRU": 3}.get(mode, 1) * hidden_size
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates, input_size), "weight_hh": (gates, proj_size or hidden_size)}
    if bias and not layer_norm:
        shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
    if proj_size:
        shapes["weight_hr"] = (proj_size, hidden_size)
    if layer_norm:
        norms: dict[str, int] = {
            "LSTM": {"gate_gain": gates, "gate_shift": gates, "cell_gain": hidden_size, "cell_shift": hidden_size},
            "GRU": {"gain_ih": gates, "shift_ih": gates, "gain_hh": gates, "shift_hh": gates},
        }.get(mode, {"gain": gates, "shift": gates})
        shapes |= {name: (size,) for name, size in norms.items() if bias or "gain" in name}
    return shapes
