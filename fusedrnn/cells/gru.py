"""The GRU cell. In: inputs ``[B, D]`` and the state ``[B, H]``; out: the new state, twice."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from . import checks, initial
from .activations import Activation, activation_named
from .description import described
from .layer_norm import norm_gates
from .protocol import RNNCell


class GRUCell(RNNCell):
    """Gated recurrent unit in torch's layout, with the reset gate after the product (torch, cuDNN) or before it (TensorFlow).

    One step, with * elementwise, of inputs x and state h::

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = activation(W_in x + b_in + r * (W_hn h + b_hn))      reset_after
        n = activation(W_in x + b_in + W_hn (r * h) + b_hn)      not reset_after
        h = (1 - z) * n + z * h

    Sources: Cho et al. 2014 (reset before the product); ``torch.nn.GRUCell``; ``tf.compat.v1.nn.rnn_cell.GRUCell``, whose u is z.
    With ``layer_norm`` each of the six products is normalised by itself before its terms are added, as Ba, Kiros and Hinton 2016 do in
    the appendix (there r and z share one mean and variance); what depends on x alone can so be computed before the loop.

    Args:
        input_size: D, 0 or more.
        hidden_size: H.
        bias: whether the products have biases; with layer_norm, whether their norms have shifts.
        reset_after: see above.
        layer_norm: see above. The shifts replace the biases: ``bias_ih`` and ``bias_hh`` are None.
        activation: of n: a name (elu, gelu, identity, relu, relu6, selu, sigmoid, silu, softplus, softsign, tanh) or a callable.
        layer_norm_eps: added to the variance.
        device, dtype: of the parameters.

    Attributes:
        weight_ih: ``[3H, D]``, gates r z n.
        weight_hh: ``[3H, H]``.
        bias_ih, bias_hh: ``[3H]``, or None.
        gain_ih, gain_hh, shift_ih, shift_hh: ``[3H]``, of the norms, or None.

    Shapes: inputs ``[B, D]``; state and output ``[B, H]``.

    Raises:
        TypeError, ValueError: a size or activation that is none; when called, inputs or state of another shape, or no tensors.
    """

    # Typed as tensors, as torch does; None where the option is off.
    weight_ih: torch.Tensor
    weight_hh: torch.Tensor
    bias_ih: torch.Tensor
    bias_hh: torch.Tensor
    gain_ih: torch.Tensor
    gain_hh: torch.Tensor
    shift_ih: torch.Tensor
    shift_hh: torch.Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        reset_after: bool = True,
        layer_norm: bool = False,
        activation: str | Activation = "tanh",
        layer_norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = checks.size("input_size", input_size, 0)
        self.hidden_size = checks.size("hidden_size", hidden_size)
        self.bias = bias
        self.reset_after = reset_after
        self.layer_norm = layer_norm
        self.layer_norm_eps = layer_norm_eps
        self.activation = activation_named(activation)
        self.output_size = hidden_size
        self.state_size = hidden_size

        def parameter(name: str, wanted: bool, *shape: int) -> None:
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None)

        parameter("weight_ih", True, 3 * hidden_size, input_size)
        parameter("weight_hh", True, 3 * hidden_size, hidden_size)
        for side in ("ih", "hh"):
            parameter(f"bias_{side}", bias and not layer_norm, 3 * hidden_size)
        for side in ("ih", "hh"):
            parameter(f"gain_{side}", layer_norm, 3 * hidden_size)
            parameter(f"shift_{side}", layer_norm and bias, 3 * hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(H) as ``torch.nn.GRUCell``, with the same draws; gains 1 and shifts 0."""
        initial.reset(self, self.hidden_size)

    def forward(self, inputs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        checks.rows("inputs", inputs, self.input_size, of="input_size")
        checks.rows("state", state, self.hidden_size, of="hidden_size", batch=inputs.shape[0])
        if self.reset_after and not self.layer_norm and self.activation is torch.tanh:
            h = torch.gru_cell(inputs, state, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
            return h, h

        hidden = self.hidden_size
        x_r, x_z, x_n = self._product(inputs, "ih", 0, 3 * hidden).chunk(3, 1)
        if self.reset_after:
            h_r, h_z, h_n = self._product(state, "hh", 0, 3 * hidden).chunk(3, 1)
            n = self.activation(x_n + torch.sigmoid(x_r + h_r) * h_n)
        else:
            h_r, h_z = self._product(state, "hh", 0, 2 * hidden).chunk(2, 1)
            n = self.activation(x_n + self._product(torch.sigmoid(x_r + h_r) * state, "hh", 2 * hidden, 3 * hidden))
        h = n + torch.sigmoid(x_z + h_z) * (state - n)
        return h, h

    def _product(self, x: torch.Tensor, side: str, first: int, last: int) -> torch.Tensor:
        """Rows ``first:last`` of one side's product, with its biases or norms."""
        weight, bias, gain, shift = (
            None if parameter is None else parameter[first:last]
            for parameter in (getattr(self, f"{name}_{side}") for name in ("weight", "bias", "gain", "shift"))
        )
        assert weight is not None
        product = F.linear(x, weight, bias)
        return product if gain is None else norm_gates(product, self.hidden_size, gain, shift, self.layer_norm_eps)

    def extra_repr(self) -> str:
        return described(self, bias=True, reset_after=True, layer_norm=False, activation=torch.tanh)

    @classmethod
    def from_tensorflow(
        cls,
        gates_kernel: Any,
        gates_bias: Any,
        candidate_kernel: Any,
        candidate_bias: Any,
        *,
        activation: str | Activation = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The cell, ``reset_after=False``, with the variables of a ``tf.compat.v1.nn.rnn_cell.GRUCell``.

        Args:
            gates_kernel: ``[D + H, 2H]``, gates r u; u is this cell's z.
            gates_bias: ``[2H]``, likewise.
            candidate_kernel: ``[D + H, H]``.
            candidate_bias: ``[H]``.
            activation: what the TensorFlow cell was built with.
            device, dtype: of the parameters; None takes the dtype of ``gates_kernel``.

        Arrays may be numpy arrays, torch tensors or whatever numpy understands. They are copied. The biases go to ``bias_ih``;
        ``bias_hh`` is zero.

        Raises:
            ValueError: an array of another shape.
        """
        gates_kernel = checks.array("gates_kernel", gates_kernel, "D + H", "2H")
        hidden = checks.width("gates_kernel", gates_kernel, 2)
        inputs = checks.input_rows("gates_kernel", gates_kernel, hidden)
        candidate_kernel = checks.array("candidate_kernel", candidate_kernel, inputs + hidden, hidden)
        weight = torch.cat([gates_kernel, candidate_kernel], 1).T
        bias = torch.cat([checks.array("gates_bias", gates_bias, 2 * hidden), checks.array("candidate_bias", candidate_bias, hidden)])
        cell = cls(inputs, hidden, reset_after=False, activation=activation, device=device, dtype=dtype or weight.dtype)
        with torch.no_grad():
            cell.weight_ih.copy_(weight[:, :inputs])
            cell.weight_hh.copy_(weight[:, inputs:])
            cell.bias_ih.copy_(bias)
            cell.bias_hh.zero_()
        return cell

    @classmethod
    def from_keras(
        cls,
        kernel: Any,
        recurrent_kernel: Any,
        bias: Any = None,
        *,
        reset_after: bool = True,
        activation: str | Activation = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The cell with the weights of a Keras ``GRU`` or ``GRUCell`` (its ``get_weights()``), whose recurrent activation is the sigmoid.

        Args:
            kernel: ``[D, 3H]``, gates z r h; h is this cell's n.
            recurrent_kernel: ``[H, 3H]``.
            bias: ``[2, 3H]`` with reset_after, else ``[3H]``; None for a cell without biases.
            reset_after: as the Keras cell was built; its default is True.
            activation, device, dtype: as in `from_tensorflow`.

        Raises:
            ValueError: an array of another shape.
        """
        recurrent = checks.array("recurrent_kernel", recurrent_kernel, "H", "3H")
        hidden = checks.width("recurrent_kernel", recurrent, 3)
        recurrent = checks.array("recurrent_kernel", recurrent, hidden, 3 * hidden)
        kernel = checks.array("kernel", kernel, "D", 3 * hidden)
        cell = cls(
            kernel.shape[0], hidden, bias=bias is not None, reset_after=reset_after, activation=activation,
            device=device, dtype=dtype or kernel.dtype,
        )  # fmt: skip
        with torch.no_grad():
            cell.weight_ih.copy_(_rzn_of_zrh(kernel.T))
            cell.weight_hh.copy_(_rzn_of_zrh(recurrent.T))
            if bias is not None and reset_after:
                both = checks.array("bias (reset_after=True)", bias, 2, 3 * hidden)
                cell.bias_ih.copy_(_rzn_of_zrh(both[0]))
                cell.bias_hh.copy_(_rzn_of_zrh(both[1]))
            elif bias is not None:
                cell.bias_ih.copy_(_rzn_of_zrh(checks.array("bias (reset_after=False)", bias, 3 * hidden)))
                cell.bias_hh.zero_()
        return cell


def _rzn_of_zrh(rows: torch.Tensor) -> torch.Tensor:
    """Rows in Keras's order of gates, z r h, in torch's, r z n; h is n."""
    z, r, h = rows.chunk(3)
    return torch.cat([r, z, h])
