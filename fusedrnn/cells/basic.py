"""The basic cell. In: inputs ``[B, D]`` and the state ``[B, H]``; out: the new state, twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from . import checks, initial
from .activations import Activation, activation_named
from .description import described
from .protocol import RNNCell

# One call instead of three: 2 to 5 us less a step on a CPU.
_FUSED: dict[Activation, Callable[..., torch.Tensor]] = {torch.tanh: torch.rnn_tanh_cell, torch.relu: torch.rnn_relu_cell}


class BasicRNNCell(RNNCell):
    """``h = activation(W_ih x + b_ih + W_hh h + b_hh)``: Elman 1990, ``torch.nn.RNNCell``, ``tf.compat.v1.nn.rnn_cell.BasicRNNCell``.

    Args:
        input_size: D, 0 or more.
        hidden_size: H.
        bias: whether there are biases.
        activation: a name (elu, gelu, identity, relu, relu6, selu, sigmoid, silu, softplus, softsign, tanh) or a callable.
        device, dtype: of the parameters.

    Attributes:
        weight_ih: ``[H, D]``.
        weight_hh: ``[H, H]``.
        bias_ih, bias_hh: ``[H]``, or None.

    Shapes: inputs ``[B, D]``; state and output ``[B, H]``.

    Raises:
        TypeError, ValueError: a size or activation that is none; when called, inputs or state of another shape, or no tensors.
    """

    # Typed as tensors, as torch does; None without bias.
    bias_ih: torch.Tensor
    bias_hh: torch.Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        activation: str | Activation = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = checks.size("input_size", input_size, 0)
        self.hidden_size = checks.size("hidden_size", hidden_size)
        self.bias = bias
        self.activation = activation_named(activation)
        self.output_size = hidden_size
        self.state_size = hidden_size
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size, device=device, dtype=dtype))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(H) as ``torch.nn.RNNCell``, with the same draws."""
        initial.reset(self, self.hidden_size)

    def forward(self, inputs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        checks.rows("inputs", inputs, self.input_size, of="input_size")
        checks.rows("state", state, self.hidden_size, of="hidden_size", batch=inputs.shape[0])
        fused = _FUSED.get(self.activation)
        if fused is not None:
            h = fused(inputs, state, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
            return h, h
        h = self.activation(F.linear(inputs, self.weight_ih, self.bias_ih) + F.linear(state, self.weight_hh, self.bias_hh))
        return h, h

    def extra_repr(self) -> str:
        return described(self, bias=True, activation=torch.tanh)

    @classmethod
    def from_tensorflow(
        cls,
        kernel: Any,
        bias: Any = None,
        *,
        activation: str | Activation = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The cell with the variables of a ``tf.compat.v1.nn.rnn_cell.BasicRNNCell``.

        Args:
            kernel: ``[D + H, H]``.
            bias: ``[H]``; None for a cell without biases.
            activation: what the TensorFlow cell was built with.
            device, dtype: of the parameters; None takes the kernel's dtype.

        Arrays may be numpy arrays, torch tensors or whatever numpy understands. They are copied. The bias goes to ``bias_ih``;
        ``bias_hh`` is zero.

        Raises:
            ValueError: an array of another shape.
        """
        kernel = checks.array("kernel", kernel, "D + H", "H")
        inputs = checks.input_rows("kernel", kernel, checks.width("kernel", kernel, 1))
        return cls.from_keras(kernel[:inputs], kernel[inputs:], bias, activation=activation, device=device, dtype=dtype)

    @classmethod
    def from_keras(
        cls,
        kernel: Any,
        recurrent_kernel: Any,
        bias: Any = None,
        *,
        activation: str | Activation = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The cell with the weights of a Keras ``SimpleRNN`` or ``SimpleRNNCell`` (its ``get_weights()``).

        Args:
            kernel: ``[D, H]``.
            recurrent_kernel: ``[H, H]``.
            bias: ``[H]``, or None.
            activation, device, dtype: as in `from_tensorflow`.

        Raises:
            ValueError: an array of another shape.
        """
        recurrent = checks.array("recurrent_kernel", recurrent_kernel, "H", "H")
        hidden = checks.width("recurrent_kernel", recurrent, 1)
        recurrent = checks.array("recurrent_kernel", recurrent, hidden, hidden)
        kernel = checks.array("kernel", kernel, "D", hidden)
        cell = cls(kernel.shape[0], hidden, bias=bias is not None, activation=activation, device=device, dtype=dtype or kernel.dtype)
        with torch.no_grad():
            cell.weight_ih.copy_(kernel.T)
            cell.weight_hh.copy_(recurrent.T)
            if bias is not None:
                cell.bias_ih.copy_(checks.array("bias", bias, hidden))
                cell.bias_hh.zero_()
        return cell
