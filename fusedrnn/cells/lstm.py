"""The LSTM cell. In: inputs ``[B, D]`` and the state ``(h, c)``; out: h and the next state."""

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

State = tuple[torch.Tensor, torch.Tensor]


class LSTMCell(RNNCell):
    """Long short-term memory with TensorFlow's options and torch's names, layout and initialisation.

    One step, with * elementwise, of inputs x and state (h, c)::

        i, f, g, o = W_ih x + b_ih + W_hh h + b_hh
        i, f, g, o = norm(i), norm(f), norm(g), norm(o)        layer_norm
        i, f       = i + w_ci * c, f + w_cf * c                use_peepholes: the old c
        c          = sigmoid(f + forget_bias) * c + sigmoid(i) * activation(g)
        c          = norm(c)                                   layer_norm
        c          = clamp(c, -cell_clip, cell_clip)           cell_clip
        o          = o + w_co * c                              use_peepholes: the new c
        h          = sigmoid(o) * activation(c)
        h          = clamp(W_hr h, -proj_clip, proj_clip)      num_proj, proj_clip

    That is ``tf.compat.v1.nn.rnn_cell.LSTMCell``, without options ``torch.nn.LSTMCell``. Sources: Hochreiter and Schmidhuber 1997;
    peepholes and projection Sak, Senior and Beaufays 2014. Layer normalisation (Ba, Kiros and Hinton 2016) stands where
    ``tf.contrib.rnn.LayerNormBasicLSTMCell`` and ``LayerNormLSTMCell`` have it: on each gate's sum, before peepholes, and on c, so that the
    normalised c is also the one carried on (the paper normalises it for the output only).

    Args:
        input_size: D, 0 or more.
        hidden_size: H, the size of c and, without projection, of h.
        bias: whether the gates have biases; with layer_norm, whether the norms have shifts.
        forget_bias: added to the forget gate at every step. TensorFlow's default is 1.0; torch has none.
        use_peepholes: see above.
        cell_clip: the bound of c; None for none.
        num_proj: P, the size of h after a projection; None for no projection.
        proj_clip: the bound of the projected h; None for none.
        layer_norm: see above. The shifts of the norms replace the biases: ``bias_ih`` and ``bias_hh`` are None.
        activation: of g and c: a name (elu, gelu, identity, relu, relu6, selu, sigmoid, silu, softplus, softsign, tanh) or a callable.
        layer_norm_eps: added to the variance: torch's 1e-5; tf.contrib has 1e-12, whose gradient explodes where all of a gate is equal.
        device, dtype: of the parameters.

    Attributes:
        weight_ih: ``[4H, D]``, gates i f g o.
        weight_hh: ``[4H, P or H]``.
        bias_ih, bias_hh: ``[4H]``, or None.
        weight_hr: ``[P, H]``, or None.
        weight_ci, weight_cf, weight_co: ``[H]``, the peepholes, or None.
        gate_gain, gate_shift: ``[4H]``, of the gates' norms, or None.
        cell_gain, cell_shift: ``[H]``, of the norm of c, or None.

    Shapes: inputs ``[B, D]``; the state is the plain tuple of h ``[B, P or H]`` and c ``[B, H]``; the output is h.

    Raises:
        TypeError, ValueError: a size, bound or activation that is none, proj_clip without num_proj; when called, inputs or state of
            another shape, or no tensors.
    """

    # Typed as tensors, as torch does; None where the option is off.
    weight_ih: torch.Tensor
    weight_hh: torch.Tensor
    bias_ih: torch.Tensor
    bias_hh: torch.Tensor
    weight_hr: torch.Tensor
    weight_ci: torch.Tensor
    weight_cf: torch.Tensor
    weight_co: torch.Tensor
    gate_gain: torch.Tensor
    gate_shift: torch.Tensor
    cell_gain: torch.Tensor
    cell_shift: torch.Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        forget_bias: float = 0.0,
        use_peepholes: bool = False,
        cell_clip: float | None = None,
        num_proj: int | None = None,
        proj_clip: float | None = None,
        layer_norm: bool = False,
        activation: str | Activation = "tanh",
        layer_norm_eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input_size = checks.size("input_size", input_size, 0)
        self.hidden_size = checks.size("hidden_size", hidden_size)
        self.num_proj = None if num_proj is None else checks.size("num_proj", num_proj)
        self.cell_clip = checks.bound("cell_clip", cell_clip)
        self.proj_clip = checks.bound("proj_clip", proj_clip)
        if proj_clip is not None and num_proj is None:
            raise ValueError(f"proj_clip = {proj_clip} needs num_proj: it bounds the projected h; cell_clip bounds c")
        self.bias = bias
        self.forget_bias = float(forget_bias)
        self.use_peepholes = use_peepholes
        self.layer_norm = layer_norm
        self.layer_norm_eps = layer_norm_eps
        self.activation = activation_named(activation)
        self.output_size = self.num_proj or hidden_size
        self.state_size = (self.output_size, hidden_size)

        def parameter(name: str, wanted: bool, *shape: int) -> None:
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None)

        parameter("weight_ih", True, 4 * hidden_size, input_size)
        parameter("weight_hh", True, 4 * hidden_size, self.output_size)
        parameter("bias_ih", bias and not layer_norm, 4 * hidden_size)
        parameter("bias_hh", bias and not layer_norm, 4 * hidden_size)
        parameter("weight_hr", num_proj is not None, self.output_size, hidden_size)
        for name in ("weight_ci", "weight_cf", "weight_co"):
            parameter(name, use_peepholes, hidden_size)
        parameter("gate_gain", layer_norm, 4 * hidden_size)
        parameter("gate_shift", layer_norm and bias, 4 * hidden_size)
        parameter("cell_gain", layer_norm, hidden_size)
        parameter("cell_shift", layer_norm and bias, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(H) as ``torch.nn.LSTMCell``, with the same draws; gains 1 and shifts 0."""
        initial.reset(self, self.hidden_size)

    def forward(self, inputs: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        h, c = checks.pair(state)
        checks.rows("inputs", inputs, self.input_size, of="input_size")
        batch = inputs.shape[0]
        checks.rows("state[0] (h)", h, self.output_size, of="num_proj" if self.num_proj else "hidden_size", batch=batch)
        checks.rows("state[1] (c)", c, self.hidden_size, of="hidden_size", batch=batch)
        if self._is_torch():
            new = torch.lstm_cell(inputs, (h, c), self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
            return new[0], new

        gates = F.linear(inputs, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh, self.bias_hh)
        if self.layer_norm:
            gates = norm_gates(gates, self.hidden_size, self.gate_gain, self.gate_shift, self.layer_norm_eps)
        i, f, g, o = gates.chunk(4, 1)
        if self.use_peepholes:
            i = i + self.weight_ci * c
            f = f + self.weight_cf * c
        c = torch.sigmoid(f + self.forget_bias) * c + torch.sigmoid(i) * self.activation(g)
        if self.layer_norm:
            c = norm_gates(c, self.hidden_size, self.cell_gain, self.cell_shift, self.layer_norm_eps)
        if self.cell_clip is not None:
            c = c.clamp(-self.cell_clip, self.cell_clip)
        if self.use_peepholes:
            o = o + self.weight_co * c
        h = torch.sigmoid(o) * self.activation(c)
        if self.num_proj:
            h = F.linear(h, self.weight_hr)
            if self.proj_clip is not None:
                h = h.clamp(-self.proj_clip, self.proj_clip)
        return h, (h, c)

    def _is_torch(self) -> bool:
        """Whether ``torch.lstm_cell``, one fused call, computes this cell."""
        plain_c = self.cell_clip is None and self.forget_bias == 0 and self.activation is torch.tanh
        return plain_c and not (self.num_proj or self.layer_norm or self.use_peepholes)

    def extra_repr(self) -> str:
        return described(
            self,
            bias=True,
            forget_bias=0.0,
            use_peepholes=False,
            cell_clip=None,
            num_proj=None,
            proj_clip=None,
            layer_norm=False,
            activation=torch.tanh,
        )

    @classmethod
    def from_tensorflow(
        cls,
        kernel: Any,
        bias: Any = None,
        *,
        w_i_diag: Any = None,
        w_f_diag: Any = None,
        w_o_diag: Any = None,
        projection_kernel: Any = None,
        forget_bias: float = 1.0,
        cell_clip: float | None = None,
        proj_clip: float | None = None,
        activation: str | Activation = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The cell with the variables of a ``tf.compat.v1.nn.rnn_cell.LSTMCell``, ``BasicLSTMCell`` or ``LSTMBlockCell``.

        Args:
            kernel: ``[D + P, 4H]`` (P is H without projection), gates in TensorFlow's order i j f o.
            bias: ``[4H]``, in the same order; None for a cell without biases.
            w_i_diag, w_f_diag, w_o_diag: ``[H]``, the peepholes: all three or none.
            projection_kernel: ``[H, P]``, or None.
            forget_bias: what the TensorFlow cell was built with. It is no part of its variables; TensorFlow's default is 1.0.
            cell_clip, proj_clip, activation: likewise.
            device, dtype: of the parameters; None takes the kernel's dtype.

        Arrays may be numpy arrays, torch tensors or whatever numpy understands. They are copied. The bias goes to ``bias_ih``;
        ``bias_hh`` is zero. TensorFlow's state is (c, h), this one's (h, c).

        Raises:
            ValueError: an array of another shape, or some peepholes but not all.
        """
        kernel = checks.array("kernel", kernel, "D + P", "4H")
        hidden = checks.width("kernel", kernel, 4)
        projection = None if projection_kernel is None else checks.array("projection_kernel", projection_kernel, hidden, "P")
        recurrent = hidden if projection is None else projection.shape[1]
        inputs = checks.input_rows("kernel", kernel, recurrent)
        peepholes = {"w_i_diag": w_i_diag, "w_f_diag": w_f_diag, "w_o_diag": w_o_diag}
        absent = [name for name, diagonal in peepholes.items() if diagonal is None]
        if absent and len(absent) < 3:
            raise ValueError(
                f"the three peepholes come together: {', '.join(absent)} missing; pass all of w_i_diag, w_f_diag, w_o_diag or none"
            )
        cell = cls(
            inputs, hidden, bias=bias is not None, forget_bias=forget_bias, use_peepholes=not absent, cell_clip=cell_clip,
            num_proj=None if projection is None else recurrent, proj_clip=proj_clip, activation=activation,
            device=device, dtype=dtype or kernel.dtype,
        )  # fmt: skip
        with torch.no_grad():
            weight = _ifgo_of_ijfo(kernel.T)
            cell.weight_ih.copy_(weight[:, :inputs])
            cell.weight_hh.copy_(weight[:, inputs:])
            if bias is not None:
                cell.bias_ih.copy_(_ifgo_of_ijfo(checks.array("bias", bias, 4 * hidden)))
                cell.bias_hh.zero_()
            if projection is not None:
                cell.weight_hr.copy_(projection.T)
            if not absent:
                for parameter, (name, diagonal) in zip((cell.weight_ci, cell.weight_cf, cell.weight_co), peepholes.items(), strict=True):
                    parameter.copy_(checks.array(name, diagonal, hidden))
        return cell

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
        """The cell with the weights of a Keras ``LSTM`` or ``LSTMCell`` (its ``get_weights()``), whose recurrent activation is the sigmoid.

        Args:
            kernel: ``[D, 4H]``, gates i f c o.
            recurrent_kernel: ``[H, 4H]``.
            bias: ``[4H]``, or None. Keras keeps its ``unit_forget_bias`` in it, so the cell's ``forget_bias`` is 0.
            activation, device, dtype: as in `from_tensorflow`.

        Raises:
            ValueError: an array of another shape.
        """
        recurrent = checks.array("recurrent_kernel", recurrent_kernel, "H", "4H")
        hidden = checks.width("recurrent_kernel", recurrent, 4)
        recurrent = checks.array("recurrent_kernel", recurrent, hidden, 4 * hidden)
        kernel = checks.array("kernel", kernel, "D", 4 * hidden)
        cell = cls(kernel.shape[0], hidden, bias=bias is not None, activation=activation, device=device, dtype=dtype or kernel.dtype)
        with torch.no_grad():
            cell.weight_ih.copy_(kernel.T)
            cell.weight_hh.copy_(recurrent.T)
            if bias is not None:
                cell.bias_ih.copy_(checks.array("bias", bias, 4 * hidden))
                cell.bias_hh.zero_()
        return cell


def _ifgo_of_ijfo(rows: torch.Tensor) -> torch.Tensor:
    """Rows in TensorFlow's order of gates, i j f o, in torch's, i f g o; j is g."""
    i, j, f, o = rows.chunk(4)
    return torch.cat([i, f, j, o])
