"""The simple recurrent module. In: a sequence and h_0; out: the outputs and h_n."""

from __future__ import annotations

from typing import Any

import torch

from . import arguments
from .base import Input, RecurrentBase


class RNN(RecurrentBase):
    """``torch.nn.RNN`` on a fusedrnn loop: its arguments, parameters, ``state_dict``, initial values and results.

    A step of a layer::

        h = nonlinearity(W_ih x + b_ih + W_hh h + b_hh)

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype, backend: as for `LSTM`.
        nonlinearity: "tanh" or "relu".
        layer_norm: the sum is normalised before the nonlinearity (Ba, Kiros and Hinton 2016, equation 4). A shift replaces the biases.
        zoneout: as for `LSTM`; one number.

    Parameters, for layer k (and with ``_reverse`` for its other direction): ``weight_ih_lk`` ``[H, D]`` (above the first layer
    ``[H, directions * H]``), ``weight_hh_lk`` ``[H, H]``, ``bias_ih_lk`` and ``bias_hh_lk`` ``[H]``; with layer_norm ``gain_lk`` and
    ``shift_lk`` ``[H]``.

    What is said there of loops, torch.func, torch.compile and autocast holds here, and so do the errors.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        backend: str = "auto",
        proj_size: None = None,
    ) -> None:
        arguments.no_projection(proj_size)
        arguments.nonlinearity(nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype,
            layer_norm=layer_norm, zoneout=zoneout, backend=backend,
        )  # fmt: skip

    def forward(
        self,
        input: Input,
        hx: torch.Tensor | None = None,
        *,
        lengths: torch.Tensor | None = None,
        reset: torch.Tensor | None = None,
    ) -> tuple[Any, torch.Tensor]:
        """Run the module.

        Args:
            input, lengths, reset: as for `LSTM`.
            hx: ``h_0``, ``[directions * L, B, H]``, without B for one row alone; None for zeros.

        Returns:
            ``(output, h_n)``: ``[T, B, directions * H]`` laid out like the input, and the last states laid out like hx.

        Raises: as `LSTM`.
        """
        output, (h,) = self._forward(input, hx, lengths, reset)
        return output, h
