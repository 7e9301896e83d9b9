"""The GRU module. In: a sequence and h_0; out: the outputs and h_n."""

from __future__ import annotations

from typing import Any

import torch

from . import arguments
from .base import Input, RecurrentBase


class GRU(RecurrentBase):
    """``torch.nn.GRU`` on a fusedrnn loop: its arguments, parameters, ``state_dict``, initial values and results.

    A step of a layer, with * elementwise::

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h = (1 - z) * n + z * h

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype, backend: as for `LSTM`.
        layer_norm: both products of each gate are normalised, as in `fusedrnn.GRUCell`. The shifts of the norms replace the biases.
        zoneout: as for `LSTM`; one number.

    Parameters, for layer k (and with ``_reverse`` for its other direction): ``weight_ih_lk`` ``[3H, D]`` (above the first layer
    ``[3H, directions * H]``), ``weight_hh_lk`` ``[3H, H]``, ``bias_ih_lk`` and ``bias_hh_lk`` ``[3H]``, gates r z n; with layer_norm
    ``gain_ih_lk``, ``shift_ih_lk``, ``gain_hh_lk`` and ``shift_hh_lk`` ``[3H]``.

    What is said there of loops, torch.func, torch.compile and autocast holds here, and so do the errors.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
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
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype,
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
