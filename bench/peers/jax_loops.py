"""JAX on the CPU, jitted: `lax.scan` over sequences with the inputs' products made before it, `lax.while_loop` for decodes."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils._pytree import tree_map

import fusedrnn

from ..case import Missing, Run
from ..loops import Coupled, Greedy, Reads


def _jax() -> Any:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if torch.get_num_threads() == 1 and "xla_cpu_multi_thread_eigen" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    try:
        import jax
    except ModuleNotFoundError as error:
        raise Missing(f"{error}; pip install jax") from error
    return jax


def reads(work: Reads) -> Run:
    """``lax.scan``. Weights are arguments, not constants."""
    jax = _jax()
    weights, x, state = (tree_map(_array, part) for part in (_weights(work.cell), work.x, work.state))
    step, before = _step(jax, work.cell), _before(jax, work.cell)

    @jax.jit
    def run(weights: Any, x: Any, state: Any) -> Any:
        def one(state: Any, product: Any) -> Any:
            new, output = step(weights, product, state)
            return new, output

        return jax.lax.scan(one, state, before(weights, x))[1]

    return _run(lambda: run(weights, x, state))


def greedy(work: Greedy) -> Run:
    """``lax.while_loop`` until the last step, or every row has ended."""
    jax = _jax()
    jnp = jax.numpy
    cells = list(work.cell.cells) if isinstance(work.cell, fusedrnn.MultiRNNCell) else [work.cell]
    states = work.state if len(cells) > 1 else (work.state,)
    weights, states, table, projection, bias = (
        tree_map(_array, part)
        for part in (
            [_weights(cell) for cell in cells],
            states,
            work.embedding.weight,
            work.project.weight.T.contiguous(),
            work.project.bias,
        )
    )
    steps, befores = [_step(jax, cell) for cell in cells], [_before(jax, cell) for cell in cells]

    @jax.jit
    def run(weights: Any, states: Any, table: Any, projection: Any, bias: Any) -> Any:
        def body(carry: Any) -> Any:
            time, done, token, tokens, states = carry
            x, after = table[token], []
            for own, step, before, state in zip(weights, steps, befores, states, strict=True):
                new, x = step(own, before(own, x), state)
                after.append(new)
            token = jnp.argmax(x @ projection + bias, -1)
            return time + 1, done | (token == work.end), token, tokens.at[time].set(token), tuple(after)

        rows = work.rows
        carry = (0, jnp.zeros(rows, bool), jnp.full(rows, work.start), jnp.zeros((work.steps, rows), jnp.int32), tuple(states))
        return jax.lax.while_loop(lambda carry: (carry[0] < work.steps) & ~carry[1].all(), body, carry)[3]

    return _run(lambda: run(weights, states, table, projection, bias))


def _run(call: Any) -> Run:
    return Run(lambda: call().block_until_ready(), lambda: [torch.from_dlpack(call()).clone()])


def _array(tensor: torch.Tensor) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(tensor.detach().numpy())


def _weights(cell: Any) -> dict[str, torch.Tensor]:
    """As JAX's libraries keep them: ``[inputs, outputs]``."""
    return {name: value.detach().T.contiguous() if value.ndim == 2 else value.detach() for name, value in cell.named_parameters()}


def _before(jax: Any, cell: Any) -> Any:
    """The product with the inputs, over all steps at once."""
    if isinstance(cell, fusedrnn.LSTMCell):
        return lambda weights, x: x @ weights["weight_ih"]
    if isinstance(cell, Coupled):
        return lambda weights, x: x @ weights["weight_ih"] + weights["bias"]
    return lambda weights, x: x @ weights["weight_ih"] + weights["bias_ih"]


def _step(jax: Any, cell: Any) -> Any:
    """From weights, the inputs' product and the state: the new state and the output."""
    jnp, sigmoid = jax.numpy, jax.nn.sigmoid

    def norm(x: Any) -> Any:
        middle = x.mean(-1, keepdims=True)
        return (x - middle) * jax.lax.rsqrt(((x - middle) ** 2).mean(-1, keepdims=True) + 1e-5)

    def lstm(weights: Any, product: Any, state: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(product + h @ weights["weight_hh"] + weights["bias_hh"], 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def layer_norm_lstm(weights: Any, product: Any, state: Any) -> Any:
        h, c = state
        gates = (product + h @ weights["weight_hh"]).reshape(len(h), 4, -1)
        normed = norm(gates).reshape(len(h), -1) * weights["gate_gain"] + weights["gate_shift"]
        i, f, g, o = jnp.split(normed, 4, -1)
        c = norm(sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)) * weights["cell_gain"] + weights["cell_shift"]
        h = sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def gru(weights: Any, product: Any, h: Any) -> Any:
        (ir, iz, ig), (hr, hz, hg) = (jnp.split(part, 3, -1) for part in (product, h @ weights["weight_hh"] + weights["bias_hh"]))
        r, z = sigmoid(ir + hr), sigmoid(iz + hz)
        n = jnp.tanh(ig + r * hg)
        h = n + z * (h - n)
        return h, h

    def coupled(weights: Any, product: Any, state: Any) -> Any:
        h, c = state
        i, g, o = jnp.split(product + h @ weights["weight_hh"], 3, -1)
        c = c + sigmoid(i + weights["weight_c"] * c) * (jnp.tanh(g) - c)
        h = sigmoid(o) * c * jax.lax.rsqrt((c * c).mean(-1, keepdims=True) + 1e-5)
        return (h, c), h

    kinds = {torch.nn.LSTMCell: lstm, fusedrnn.LSTMCell: layer_norm_lstm, torch.nn.GRUCell: gru, Coupled: coupled}
    return kinds[type(cell)]
