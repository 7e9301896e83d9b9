"""What LSTM, GRU and RNN share. In: the arguments of torch.nn's modules; out: their parameters, and outputs and states of their loops."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .. import random
from ..cells import checks
from ..trees import Tree
from . import arguments, loops, operator, packed
from .loops import Kind
from .steps import weight_shapes

Input = torch.Tensor | PackedSequence


class RecurrentBase(nn.RNNBase):
    """A stack of recurrent layers; `LSTM`, `GRU` and `RNN` say what their options are.

    Attributes:
        all_weights: the parameters of each layer and direction, in the order of the layers.
        layer_norm, zoneout, backend: as they were given. ``backend`` may be changed.
    """

    layer_norm: bool
    zoneout: Tree
    backend: str

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        layer_norm: bool,
        zoneout: Tree,
        backend: str,
    ) -> None:
        arguments.options(
            input_size=input_size, hidden_size=hidden_size, num_layers=num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, proj_size=proj_size, layer_norm=layer_norm, backend=backend,
        )  # fmt: skip
        rates = checks.probabilities("zoneout", zoneout, (hidden_size, hidden_size) if mode == "LSTM" else hidden_size, one=True)
        super().__init__(
            mode, input_size, hidden_size, num_layers, bias and not layer_norm, batch_first, 0.0, bidirectional, proj_size, device, dtype
        )
        self.bias, self.dropout = bias, float(dropout)
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers greater than 1, "
                f"but got dropout={dropout} and num_layers={num_layers}",
                stacklevel=3,
            )
        self.layer_norm, self.zoneout, self.backend = layer_norm, zoneout, backend
        self._zoneout = tuple(rates)
        self._names = tuple(weight_shapes(mode, input_size, hidden_size, bias, proj_size, layer_norm))
        if layer_norm:
            self._add_norms(device, dtype)

    def _add_norms(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        shapes = weight_shapes(self.mode, self.input_size, self.hidden_size, self.bias, self.proj_size, True)
        for names in self._all_weights:
            suffix = names[0].removeprefix("weight_ih")
            for name, shape in shapes.items():
                if name + suffix not in names:
                    filled = torch.ones if "gain" in name else torch.zeros
                    self.register_parameter(name + suffix, nn.Parameter(filled(shape, device=device, dtype=dtype)))
            names[:] = [name + suffix for name in shapes]
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(H) as torch.nn, with the same draws; gains 1 and shifts 0."""
        spread = self.hidden_size**-0.5
        for name, parameter in self.named_parameters():
            if "gain" in name:
                nn.init.ones_(parameter)
            elif "shift" in name:
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -spread, spread)

    def flatten_parameters(self) -> None:
        """Does nothing: a loop reads the parameters where they are. torch.nn's modules lay them out for cuDNN here."""

    def _forward(
        self, input: Input, hx: Any, lengths: torch.Tensor | None, reset: torch.Tensor | None
    ) -> tuple[Input, tuple[torch.Tensor, ...]]:
        """Run the module; the state is a tensor for each part."""
        name = type(self).__name__
        weights = [getattr(self, weight) for weight in self._flat_weights_names]
        sequence = input if isinstance(input, PackedSequence) else None
        batched, ends = True, None
        if sequence is not None:
            if lengths is not None:
                raise ValueError("lengths must be None for a PackedSequence: it has its own")
            arguments.data(sequence.data)
            arguments.sequence(sequence.data, weights[0], self.input_size, 1)
            x, ends = packed.padded(sequence)
        else:
            arguments.rank(name, input)
            assert isinstance(input, torch.Tensor)
            batched = input.ndim == 3
            x = input if batched else input.unsqueeze(1)
            if batched and self.batch_first:
                x = x.transpose(0, 1)
            arguments.sequence(x, weights[0], self.input_size, len(x))
        steps, batch = x.shape[:2]

        parts = self._initial(hx, x, batched)
        if lengths is not None:
            lengths = arguments.lengths(lengths, batch, steps, batched, x.device)
        elif ends is not None and int(ends[-1]) < steps:
            lengths = ends.to(x.device, non_blocking=True)
        if reset is not None:
            reset = arguments.reset(reset, batch, steps, batched, self.batch_first, x.device)
        if sequence is not None and sequence.sorted_indices is not None:
            parts = [part.index_select(1, sequence.sorted_indices) for part in parts]
            reset = None if reset is None else reset.index_select(1, sequence.sorted_indices)

        outputs, parts = self._layers(x, lengths, reset, parts, weights)

        if sequence is not None:
            assert ends is not None
            if sequence.unsorted_indices is not None:
                parts = [part.index_select(1, sequence.unsorted_indices) for part in parts]
            return packed.packed_like(outputs, ends, sequence), tuple(parts)
        if not batched:
            return outputs.squeeze(1), tuple(part.squeeze(1) for part in parts)
        return outputs.transpose(0, 1) if self.batch_first else outputs, tuple(parts)

    def _initial(self, hx: Any, x: torch.Tensor, batched: bool) -> list[torch.Tensor]:
        """The initial state ``[D * num_layers, B, *]``, a tensor for each part."""
        rows = self.num_layers * (2 if self.bidirectional else 1)
        sizes = [self.proj_size or self.hidden_size, self.hidden_size][: 2 if self.mode == "LSTM" else 1]
        wanted = [(rows, x.shape[1], size) for size in sizes]
        if hx is None:
            return [x.new_zeros(shape) for shape in wanted]
        parts = arguments.state_parts(type(self).__name__, hx, len(sizes))
        arguments.state_rank(parts, batched)
        if not batched:
            parts = [part.unsqueeze(1) for part in parts]
        arguments.state(parts, wanted, x)
        return parts

    def _layers(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor | None,
        reset: torch.Tensor | None,
        parts: list[torch.Tensor],
        weights: list[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loops of all layers: one for the stack, or one for each layer where something stands between them."""
        kind = x.device.type
        if not x.is_meta and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            x, parts, weights = x.to(dtype), [part.to(dtype) for part in parts], [weight.to(dtype) for weight in weights]
            surroundings: Any = torch.autocast(kind, enabled=False)
        else:
            surroundings = nullcontext()
        directions = 2 if self.bidirectional else 1
        dropout = self.dropout if self.training else 0.0
        apart = self.bidirectional or dropout > 0
        steps = directions if apart else self.num_layers
        one = Kind(self.mode, self.hidden_size, self._names, steps, bool(self.bidirectional), self._zoneout, self.training, self.backend)
        finals: list[Sequence[torch.Tensor]] = []
        with surroundings:
            for first in range(0, directions * self.num_layers, steps):
                if first and dropout:
                    x = F.dropout(x, dropout)
                own = weights[first * len(self._names) : (first + steps) * len(self._names)]
                x, *last = _loop(one, x, lengths, reset, [part[first : first + steps] for part in parts], own)
                finals.append(last)
        return x, [torch.cat(part) if len(part) > 1 else part[0] for part in zip(*finals, strict=True)]

    def extra_repr(self) -> str:
        told: str = super().extra_repr()
        return told + "".join(
            f", {name}={getattr(self, name)!r}"
            for name, default in (("layer_norm", False), ("zoneout", 0.0), ("backend", "auto"))
            if getattr(self, name) != default
        )


def _loop(
    kind: Kind,
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    reset: torch.Tensor | None,
    state: list[torch.Tensor],
    weights: list[torch.Tensor],
) -> list[torch.Tensor]:
    """One loop: as an operator where torch traces, else run."""
    seed = None
    if kind.training and any(kind.zoneout):
        seed = random.row_seeds(torch.randint(2**63 - 1, (), dtype=torch.int64), x.shape[1], x.device)
    traced = torch.compiler.is_compiling() or x.is_meta or isinstance(x, torch._subclasses.FakeTensor)
    if traced and not loops.is_followed():  # an operator takes no part in torch.func transforms
        made: list[torch.Tensor] = operator.rnn(x, lengths, reset, state, weights, seed, operator.encoded(kind))
        return made
    return loops.run(kind, x, lengths, reset, state, weights, seed)
