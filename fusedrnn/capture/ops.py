"""The operators of a step graph that are not aten's. In: tensors, traced or real; out: what `reference` computes at the same place.

Each exists twice: as a torch operator, which tracing records as one node, and in `PYTHON` as a differentiable function, which runs
it step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import rows
from ..random import philox

_library: Any = torch.library.Library("fusedrnn", "DEF")  # type: ignore[no-untyped-call]


def _read(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """``x.select(dim, index)``; past the end the last element, before the front the first one, of an empty input zeros."""
    size = x.shape[dim]
    at = int(index)
    if at < 0:
        at += size
    if not 0 <= at < size:
        if not size:
            return x.sum(dim, dtype=x.dtype)
        at = 0 if at < 0 else size - 1
    return x.select(dim, at)


def _unread(gradient: torch.Tensor, x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """Zeros like ``x``, with ``gradient`` where `_read` looks."""
    made = torch.zeros_like(x)
    if x.shape[dim]:
        _read(made, index, dim).copy_(gradient)
    return made


def _draw(row_seed: torch.Tensor, columns: int, time: torch.Tensor, site: int, lineage: int) -> torch.Tensor:
    """``[B, columns]`` int64 in [0, 2^32): the words of `fusedrnn.random.philox` at this time, or each row's, and call site."""
    column = torch.arange(columns, dtype=torch.int64, device=row_seed.device)
    word = time.to(torch.int64)[:, None] if time.ndim else int(time)
    return philox(row_seed[:, None], column, word & 0xFFFFFFFF, site, lineage)


def _fake_read(x: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    return x.new_empty(x.shape[:dim] + x.shape[dim + 1 :])


def _fake_draw(row_seed: torch.Tensor, columns: Any, time: torch.Tensor, site: int, lineage: int) -> torch.Tensor:
    return row_seed.new_empty((row_seed.shape[0], columns))


def _same(x: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _operator(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    name = schema.split("(", maxsplit=1)[0]
    _library.define(schema)
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fusedrnn::{name}", fake, lib=_library)
    return getattr(torch.ops.fusedrnn, name).default


read = _operator("read(Tensor x, Tensor index, int dim) -> Tensor", _read, _fake_read)
draw = _operator("draw(Tensor row_seed, SymInt columns, Tensor time, int site, int lineage) -> Tensor", _draw, _fake_draw)
# Non-finite values of finished rows as zeros.
quiet = _operator("quiet(Tensor x, Tensor finished) -> Tensor", lambda x, finished: rows.quieted(x, finished).clone(), _same)
# The value itself; its gradient without what is not finite in finished rows.
guard = _operator("guard(Tensor x, Tensor finished) -> Tensor", lambda x, finished: x.clone(), _same)

# The gradient of a read: of zeros like x the place that was read.
unread = _operator(
    "unread(Tensor gradient, Tensor x, Tensor index, int dim) -> Tensor", _unread, lambda gradient, x, index, dim: torch.empty_like(x)
)

# For the rows [B, N] of a first step beside a table [V, N]: both, so that an index below V is a row of the table, V + b the first step's.
table = _operator(
    "table(Tensor table, Tensor first) -> Tensor",
    lambda table, first: torch.cat([table, first]),
    lambda table, first: table.new_empty((table.shape[0] + first.shape[0], table.shape[1])),
)
# An index that must lie within the first dimension of a table.
within = _operator(
    "within(Tensor index, Tensor table) -> Tensor", lambda index, table: index.to(torch.int64), lambda index, table: index.to(torch.int64)
)

# Look-ups that fail where an index is out of range.
MAY_FAIL = {
    torch.ops.aten.embedding.default, torch.ops.aten.index.Tensor, torch.ops.aten.gather.default, torch.ops.aten.index_select.default,
    torch.ops.aten.index_put.default, within,
}  # fmt: skip

PYTHON: dict[Any, Callable[..., torch.Tensor]] = {read: _read, draw: _draw, quiet: rows.quieted, guard: rows.guarded}
