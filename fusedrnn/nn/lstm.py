"""The LSTM module. In: a sequence and ``(h_0, c_0)``; out: the outputs and ``(h_n, c_n)``."""

from __future__ import annotations

from typing import Any

import torch

from .base import Input, RecurrentBase


class LSTM(RecurrentBase):
    """``torch.nn.LSTM`` on a fusedrnn loop: its arguments, parameters, ``state_dict``, initial values and results.

    A step of a layer, with * elementwise::

        i, f, g, o = W_ih x + b_ih + W_hh h + b_hh
        c          = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h          = sigmoid(o) * tanh(c)
        h          = W_hr h                                     proj_size

    A stack runs as one loop; with two directions, or with dropout between the layers, each layer is one. All options below can be
    used together.

    Args:
        input_size: D.
        hidden_size: H, the size of c and, without projection, of h.
        num_layers: L. Layers above the first read the outputs of the one below.
        bias: whether there are biases; with layer_norm, whether the norms have shifts.
        batch_first: input and output are ``[B, T, *]``; the states stay as they are.
        dropout: the probability of dropping an element between two layers, in training mode. On a CPU the draws are torch.nn's, but for
            a PackedSequence.
        bidirectional: whether each layer also reads every row from its end to its start.
        proj_size: P, the size of h after a projection; 0 for none.
        device, dtype: of the parameters.
        layer_norm: each gate's sum and c are normalised, as in `fusedrnn.LSTMCell`. The shifts of the norms replace the biases.
        zoneout: Krueger et al. 2017: in training mode each element of the state keeps its old value with this probability, in eval mode it
            is the mean of that. One number, or one each for h and c. ``torch.manual_seed`` decides the draws.
        backend: as for `raw_rnn`. "auto" steps through a loop first and compiles it when that is worth its time; bits may differ then, not
            so between two runs of a named one.

    Parameters, for layer k (and with ``_reverse`` for its other direction): ``weight_ih_lk`` ``[4H, D]`` (above the first layer
    ``[4H, directions * H]``), ``weight_hh_lk`` ``[4H, P or H]``, ``bias_ih_lk`` and ``bias_hh_lk`` ``[4H]``, ``weight_hr_lk`` ``[P, H]``;
    with layer_norm ``gate_gain_lk``, ``gate_shift_lk`` ``[4H]`` and ``cell_gain_lk``, ``cell_shift_lk`` ``[H]``.

    torch.func's transforms (``vmap``, which torch.nn's modules cannot take part in, ``grad``, ``jvp``) and forward-mode differentiation
    work: there ``backend="auto"`` is `reference`, step by step, since no compiled loop can take part, and another named backend raises.
    Within ``torch.compile`` and ``torch.export`` a loop is one operator, without a break of the graph, whose backward runs it again
    (within a transform too: its steps one by one); PackedSequences break the graph. Under autocast everything is computed in autocast's
    dtype.

    Raises:
        TypeError, ValueError: an argument that torch.nn refuses, with its kind of error; a zoneout outside [0, 1]; no such backend.
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
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype,
            layer_norm=layer_norm, zoneout=zoneout, backend=backend,
        )  # fmt: skip

    def forward(
        self,
        input: Input,
        hx: tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        lengths: torch.Tensor | None = None,
        reset: torch.Tensor | None = None,
    ) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """Run the module.

        Args:
            input: ``[T, B, D]`` (``[B, T, D]`` with batch_first), ``[T, D]`` for one row alone, or a PackedSequence. T is 1 or more.
            hx: ``(h_0, c_0)``, ``[directions * L, B, P or H]`` and ``[directions * L, B, H]``, without B for one row alone; None for zeros.
                The layer comes first: forward and backward of layer 0, then those of layer 1.
            lengths: integers ``[B]`` (0-d for one row alone): how many steps each row takes, 0 to T; more counts as T, less as 0.
                Outputs past a row's length are zeros, and its last state is that after its last step (for 0 the initial one). On the
                input's device or on the CPU; never copied to the host. Not with a PackedSequence, which has lengths.
            reset: bool ``[T, B]`` (``[B, T]`` with batch_first, ``[T]`` for one row alone; a PackedSequence's rows in their given
                order): the row's state is set to zero before this step. The backward direction, which comes from the other side, carries
                no state across that place either: each piece of a row is read as if it stood alone, but that the first has hx's forward
                state (unless the first element is reset) and the last hx's backward state.

        Returns:
            ``(output, (h_n, c_n))``: ``[T, B, directions * (P or H)]`` laid out like the input, and the last states laid out like hx.

        Raises:
            ValueError, RuntimeError: a rank, size, dtype or device that does not fit, of the kind that torch.nn raises.
            TypeError: something that is no tensor, lengths that are no integers, a reset that is not bool.
            PlanError: a named backend cannot run this.
        """
        return self._forward(input, hx, lengths, reset)
