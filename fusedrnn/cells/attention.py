"""Attention over a memory. In: a cell, a mechanism and, for each batch, a memory ``[B, S, M]``; out: a cell whose input sees the memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .. import trees
from ..trees import Tree
from . import checks
from .protocol import RNNCell, as_cell, size_shape, zero_state


class AttentionMechanism(nn.Module):
    """Scores the positions of a memory against a query. A subclass defines ``keys``, computed once a memory, and ``score``, once a step.

    Attributes:
        query_size: width of the query, which is the cell's output.
        memory_size: M, width of the memory.
    """

    def __init__(self, query_size: int, memory_size: int) -> None:
        super().__init__()
        self.query_size = checks.size("query_size", query_size)
        self.memory_size = checks.size("memory_size", memory_size)

    def keys(self, memory: torch.Tensor) -> torch.Tensor:
        """``[B, S, units]`` from the memory ``[B, S, M]``."""
        raise NotImplementedError(f"{type(self).__name__} must define keys(memory)")

    def score(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """``[B, S]``, before the softmax, from the query ``[B, query_size]`` and the keys."""
        raise NotImplementedError(f"{type(self).__name__} must define score(query, keys)")


class BahdanauAttention(AttentionMechanism):
    """Additive attention (Bahdanau, Cho and Bengio 2015): ``v . tanh(W_m m + W_q q)``.

    With ``normalize``, TensorFlow's form with weight normalisation (Salimans and Kingma 2016): ``g v / |v| . tanh(W_m m + W_q q + b)``.

    Args:
        query_size: width of the query, which is the cell's output.
        memory_size: M, width of the memory.
        units: U, width of the sum.
        normalize: see above.
        device, dtype: of the parameters.

    Attributes:
        query_layer, memory_layer: ``nn.Linear`` without bias, ``[U, query_size]`` and ``[U, M]``.
        v: ``[U]``.
        g: ``[]``, starting at ``sqrt(1 / U)``, or None.
        b: ``[U]``, starting at 0, or None.

    Raises:
        TypeError, ValueError: a size that is none.
    """

    # Typed as tensors, as torch does; None without normalize.
    g: torch.Tensor
    b: torch.Tensor

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        units: int,
        *,
        normalize: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(query_size, memory_size)
        self.units = checks.size("units", units)
        self.normalize = normalize
        self.query_layer = nn.Linear(query_size, units, bias=False, device=device, dtype=dtype)
        self.memory_layer = nn.Linear(memory_size, units, bias=False, device=device, dtype=dtype)
        self.v = nn.Parameter(torch.empty(units, device=device, dtype=dtype))
        self.register_parameter("g", nn.Parameter(torch.empty((), device=device, dtype=dtype)) if normalize else None)
        self.register_parameter("b", nn.Parameter(torch.empty(units, device=device, dtype=dtype)) if normalize else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The layers as ``nn.Linear``, v uniform in +-1/sqrt(U), g and b as above."""
        self.query_layer.reset_parameters()
        self.memory_layer.reset_parameters()
        spread = 1 / math.sqrt(self.units)
        nn.init.uniform_(self.v, -spread, spread)
        if self.normalize:
            nn.init.constant_(self.g, spread)
            nn.init.zeros_(self.b)

    def keys(self, memory: torch.Tensor) -> torch.Tensor:
        keys: torch.Tensor = self.memory_layer(memory)
        return keys + self.b if self.normalize else keys

    def score(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        v = self.g * self.v / torch.linalg.vector_norm(self.v) if self.normalize else self.v
        return torch.tanh(keys + self.query_layer(query).unsqueeze(1)) @ v

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}"


class LuongAttention(AttentionMechanism):
    """Multiplicative attention (Luong, Pham and Manning 2015): ``(W_m m) . q``, with ``scale`` times a learned g.

    Args:
        query_size: width of the query, which is the cell's output, and of the keys.
        memory_size: M, width of the memory.
        scale: see above.
        device, dtype: of the parameters.

    Attributes:
        memory_layer: ``nn.Linear`` without bias, ``[query_size, M]``.
        g: ``[]``, starting at 1, or None.

    Raises:
        TypeError, ValueError: a size that is none.
    """

    g: torch.Tensor  # None without scale

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        scale: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(query_size, memory_size)
        self.scale = scale
        self.memory_layer = nn.Linear(memory_size, query_size, bias=False, device=device, dtype=dtype)
        self.register_parameter("g", nn.Parameter(torch.empty((), device=device, dtype=dtype)) if scale else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The layer as ``nn.Linear``, g as above."""
        self.memory_layer.reset_parameters()
        if self.scale:
            nn.init.ones_(self.g)

    def keys(self, memory: torch.Tensor) -> torch.Tensor:
        return self.memory_layer(memory)  # type: ignore[no-any-return]

    def score(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        scores = torch.bmm(keys, query.unsqueeze(2)).squeeze(2)
        return self.g * scores if self.scale else scores

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class AttentionWrapperState(NamedTuple):
    """The state of a bound `AttentionWrapper`.

    Attributes:
        cell_state: the wrapped cell's state.
        attention: ``[B, attention_size or M]``, what the last step attended to; the next step's input sees it.
        alignments: ``[B, S]``, the last step's probabilities over the memory; ``()`` without keep_alignments.
    """

    cell_state: Tree
    attention: Tree
    alignments: Tree


class AttentionWrapper(nn.Module):
    """A cell with attention. It holds the parameters; ``bind(memory, lengths)`` gives the cell for one batch.

    One step, in the order of TensorFlow's ``AttentionWrapper``::

        cell_output, cell_state = cell(cell_input_fn(inputs, attention), cell_state)
        alignments = softmax over the row's memory of mechanism.score(cell_output, keys)
        context    = sum over positions of alignments * memory
        attention  = context, or attention_layer(concat(cell_output, context)) with attention_size
        output     = attention, or cell_output without output_attention

    Args:
        cell: any cell whose output is one tensor ``[B, query_size]``. With the default cell_input_fn its input size is that of the
            inputs plus that of the attention (attention_size, or M).
        attention_mechanism: `BahdanauAttention`, `LuongAttention` or another `AttentionMechanism`.
        attention_size: width of the attention; None takes the context as it is.
        output_attention: whether the output is the attention (Luong's decoder) or the cell's output (Bahdanau's).
        cell_input_fn: ``cell_input_fn(inputs, attention) -> cell input``; None concatenates the two.
        keep_alignments: whether the state carries the alignments. Without them no state has the memory's length, and what was captured for
            one length serves every other.

    Attributes:
        attention_layer: ``nn.Linear`` without bias, ``[attention_size, query_size + M]``, or None.

    Raises:
        TypeError, ValueError: a cell or mechanism that is none, a mechanism whose query_size is not the cell's output_size.
        RuntimeError: called or given to a loop without ``bind``.
    """

    def __init__(
        self,
        cell: Any,
        attention_mechanism: AttentionMechanism,
        *,
        attention_size: int | None = None,
        output_attention: bool = True,
        cell_input_fn: Callable[[Tree, torch.Tensor], Tree] | None = None,
        keep_alignments: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        step = as_cell(cell)
        self.cell = cell
        if not isinstance(attention_mechanism, AttentionMechanism):
            raise TypeError(f"attention_mechanism must be an AttentionMechanism, got {type(attention_mechanism).__name__}")
        if cell_input_fn is not None and not callable(cell_input_fn):
            raise TypeError(f"cell_input_fn must be callable or None, got {type(cell_input_fn).__name__}")
        query, memory = attention_mechanism.query_size, attention_mechanism.memory_size
        if len(trees.leaves(step.output_size)) != 1 or size_shape(step.output_size, "cell.output_size") != (query,):
            raise ValueError(
                f"the query is the cell's output: cell.output_size is {step.output_size!r} and attention_mechanism.query_size "
                f"{query}; build the mechanism with the cell's output size"
            )
        self.attention_mechanism = attention_mechanism
        self.attention_size = memory if attention_size is None else checks.size("attention_size", attention_size)
        self.output_attention = output_attention
        self.cell_input_fn = cell_input_fn
        self.keep_alignments = keep_alignments
        self.attention_layer: nn.Linear | None = None
        if attention_size is not None:
            self.attention_layer = nn.Linear(query + memory, attention_size, bias=False, device=device, dtype=dtype)

    def bind(self, memory: torch.Tensor, lengths: Any = None) -> BoundAttention:
        """The cell that attends to this memory.

        Args:
            memory: ``[B, S, M]``.
            lengths: ``[B]`` int: how many positions of each row exist; None for all. Above S means S, negative 0. A row of length 0
                has alignments and context of zeros. What the memory holds past a row's length, NaN included, has no influence.

        Raises:
            TypeError, ValueError: a memory or lengths of another type, shape or dtype.
        """
        return BoundAttention(self, memory, lengths)

    @property
    def state_size(self) -> Tree:
        raise self._unbound()

    @property
    def output_size(self) -> Tree:
        raise self._unbound()

    def forward(self, inputs: Tree, state: Tree) -> tuple[Tree, Tree]:
        raise self._unbound()

    def _unbound(self) -> RuntimeError:
        # No AttributeError: nn.Module would replace it by one about a missing attribute.
        return RuntimeError("AttentionWrapper has no memory yet: pass wrapper.bind(memory, lengths) to the loop, once for each batch")


class BoundAttention(RNNCell):
    """An `AttentionWrapper` with the memory of one batch; ``AttentionWrapper.bind`` makes it. Its state is an `AttentionWrapperState`.

    Attributes:
        wrapper: the wrapper, with the parameters.
        values: ``[B, S, M]``, the memory with zeros past each row's length.
        keys: ``[B, S, units]``.
        valid: ``[B, S]`` bool, False past a row's length; None where no lengths were given.

    Raises:
        TypeError, ValueError: when called, a state of another type or size.
    """

    values: torch.Tensor
    keys: torch.Tensor
    valid: torch.Tensor | None
    _hidden: torch.Tensor  # None without lengths

    def __init__(self, wrapper: AttentionWrapper, memory: torch.Tensor, lengths: Any = None) -> None:
        super().__init__()
        mechanism = wrapper.attention_mechanism
        if not isinstance(memory, torch.Tensor):
            raise TypeError(f"memory must be a tensor [B, S, {mechanism.memory_size}], got {trees.describe(memory)}")
        if memory.ndim != 3 or memory.shape[2] != mechanism.memory_size:
            raise ValueError(f"memory must be [B, S, memory_size = {mechanism.memory_size}], got {trees.describe(memory)}")
        batch, positions, _ = memory.shape
        self.wrapper = wrapper
        self.output_size = wrapper.attention_size if wrapper.output_attention else mechanism.query_size
        self.state_size = AttentionWrapperState(
            as_cell(wrapper.cell).state_size, wrapper.attention_size, positions if wrapper.keep_alignments else ()
        )

        valid, hidden = None, None
        if lengths is not None:
            lengths = torch.as_tensor(lengths, device=memory.device)
            if lengths.is_floating_point() or lengths.dtype == torch.bool:
                raise TypeError(f"lengths must be integers [{batch}], got {trees.describe(lengths)}")
            if lengths.shape != (batch,):
                raise ValueError(
                    f"lengths must be [{batch}], one for each row of memory {list(memory.shape)}, got {trees.describe(lengths)}"
                )
            valid = torch.arange(positions, device=memory.device) < lengths[:, None]
            memory = memory.masked_fill(~valid[:, :, None], 0)
            # A row without any position keeps its finite scores: a softmax over -inf alone is NaN, and anomaly detection would stop at it.
            hidden = ~valid & valid.any(1, keepdim=True)
        # Buffers, so that they follow .to(); not persistent, because they belong to the batch.
        self.register_buffer("values", memory, persistent=False)
        self.register_buffer("keys", mechanism.keys(memory), persistent=False)
        self.register_buffer("valid", valid, persistent=False)
        self.register_buffer("_hidden", hidden, persistent=False)

    def forward(self, inputs: Tree, state: AttentionWrapperState) -> tuple[torch.Tensor, AttentionWrapperState]:
        wrapper = self.wrapper
        if not isinstance(state, AttentionWrapperState):
            raise TypeError(f"state must be an AttentionWrapperState, got {trees.describe(state)}; zero_state and initial_state make one")
        rows = state.attention.shape[:1]
        if rows and rows[0] != self.batch_size:
            raise ValueError(
                f"the memory has {self.batch_size} rows and the state {rows[0]}; bind a memory with a row for each row of the batch "
                "(for a beam search: bind(tile_beams(memory, beam_width), tile_beams(lengths, beam_width)))"
            )
        checks.rows("state.attention", state.attention, wrapper.attention_size, of="the attention's size", batch=self.batch_size)

        cell_output, cell_state = as_cell(wrapper.cell)((wrapper.cell_input_fn or _concat)(inputs, state.attention), state.cell_state)
        alignments = self._alignments(wrapper.attention_mechanism.score(cell_output, self.keys))
        context = torch.bmm(alignments.unsqueeze(1), self.values).squeeze(1)
        attention = context
        if wrapper.attention_layer is not None:
            attention = wrapper.attention_layer(torch.cat([cell_output, context], 1))
        output = attention if wrapper.output_attention else cell_output
        return output, AttentionWrapperState(cell_state, attention, alignments if wrapper.keep_alignments else ())

    def _alignments(self, scores: torch.Tensor) -> torch.Tensor:
        if self.valid is None:
            return F.softmax(scores, 1)
        return F.softmax(scores.masked_fill(self._hidden, -math.inf), 1).masked_fill(~self.valid, 0)

    @property
    def batch_size(self) -> int:
        """B, the number of rows of the memory."""
        return self.values.shape[0]

    def zero_state(
        self, batch_size: int | None = None, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> AttentionWrapperState:
        """The state before the first step: the cell's zero state, and attention and alignments, where they are kept, of zeros.

        Args:
            batch_size: None or the memory's.
            dtype, device: None takes the memory's.

        Raises:
            ValueError: a batch size other than the memory's.
        """
        if batch_size is not None and batch_size != self.batch_size:
            raise ValueError(
                f"batch_size is {batch_size} and the memory has {self.batch_size} rows; bind a memory with a row for each row of the batch "
                "(for a beam search repeat_interleave it)"
            )
        dtype, device = dtype or self.values.dtype, device or self.values.device
        return self._state(zero_state(as_cell(self.wrapper.cell), self.batch_size, dtype, device), dtype, device)

    def initial_state(self, cell_state: Tree) -> AttentionWrapperState:
        """The state before the first step with a cell state that is given, such as the encoder's last one."""
        return self._state(cell_state, self.values.dtype, self.values.device)

    def _state(self, cell_state: Tree, dtype: torch.dtype, device: torch.device | str) -> AttentionWrapperState:
        def zeros(size: int) -> torch.Tensor:
            return torch.zeros(self.batch_size, size, dtype=dtype, device=device)

        alignments = zeros(self.values.shape[1]) if self.wrapper.keep_alignments else ()
        return AttentionWrapperState(cell_state, zeros(self.wrapper.attention_size), alignments)


def _concat(inputs: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    if not isinstance(inputs, torch.Tensor) or inputs.shape[:-1] != attention.shape[:-1]:
        raise ValueError(
            f"inputs must be a tensor [{attention.shape[0]}, ...] to be concatenated with the attention {trees.describe(attention)}, "
            f"got {trees.describe(inputs)}; bind a memory with a row for each row of inputs, or pass cell_input_fn"
        )
    return torch.cat([inputs, attention], -1)
