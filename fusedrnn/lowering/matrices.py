"""Products of one row's matrices in C++; products with weights are calls of the runtime, see `source`. One rule an operator."""

from __future__ import annotations

from ..optimise.graph import aten
from .pointwise import cast, computed_in, rounded, wide
from .rule import Lowering, rule
from .values import Value, linear, stored


@rule(aten.bmm.default)
def _bmm(self: Lowering) -> Value:
    a, b = self.node.args[:2]
    return _matrix_product(self, self.kept(a), self.kept(b), batched=True)


@rule(aten.mm.default)
def _mm(self: Lowering) -> Value:
    a, b = self.node.args[:2]
    left, right = self.kept(a), self.kept(b)
    if len(left.dims) == 1:  # a row of the batch times a matrix of no row
        left = stored(str(left.pointer), ("1", *left.dims), left.dtype)
        product = _matrix_product(self, left, right, batched=False, dims=("1", *self.dims))
        return stored(str(product.pointer), self.dims, self.dtype)
    if len(right.dims) == 1:
        right = stored(str(right.pointer), (*right.dims, "1"), right.dtype)
        product = _matrix_product(self, left, right, batched=False, dims=(*self.dims, "1"))
        return stored(str(product.pointer), self.dims, self.dtype)
    return _matrix_product(self, left, right, batched=False)


def _matrix_product(self: Lowering, a: Value, b: Value, *, batched: bool, dims: tuple[str, ...] | None = None) -> Value:
    dims = self.dims if dims is None else dims
    kept_in = wide(self.dtype)
    pointer = self.block.space(dims, kept_in)
    kind = computed_in(kept_in)
    # In a row the batch dimension of a bmm is gone, unless other dimensions were flattened into it.
    lead = dims[: len(dims) - 2]
    inner = a.dims[-1]
    with self.block.loop(lead) as at:
        with self.block.loop(dims[-2:], hint="#pragma GCC ivdep") as (m, n):
            self.block.line(f"{pointer}[{linear([*at, m, n], dims)}] = 0;")
        m, k, n = (self.block.names("i") for _ in range(3))
        left = cast(a.load([*at, m, k]), a.dtype, kept_in)
        right = cast(b.load([*at, k, n]), b.dtype, kept_in)
        where = f"{pointer}[{linear([*at, m, n], dims)}]"
        self.block.line(f"for (int64_t {m} = 0; {m} < {dims[-2]}; ++{m}) for (int64_t {k} = 0; {k} < {inner}; ++{k}) {{")
        self.block.line(f"    const {kind} left_ = {left};")
        self.block.line("#pragma GCC ivdep")
        self.block.line(f"    for (int64_t {n} = 0; {n} < {dims[-1]}; ++{n}) {where} += left_ * {right};")
        self.block.line("}")
    made = stored(pointer, dims, kept_in)
    if kept_in == self.dtype:
        return made
    return self.block.keep(Value(dims, self.dtype, lambda at: rounded(made.load(at), self.dtype)))
