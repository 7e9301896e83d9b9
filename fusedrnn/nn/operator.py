"""A loop of `fusedrnn.nn` as one PyTorch operator, for torch.compile, torch.export, fake and meta tensors. In and out: as `run`.

``fusedrnn::rnn(Tensor x, Tensor? lengths, Tensor? reset, Tensor[] state, Tensor[] weights, Tensor? seed, str kind) -> Tensor[]``; the
kind is a `Kind` as `encoded` writes it. Its backward runs the loop again, with autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from .loops import Kind, run


def encoded(kind: Kind) -> str:
    """A kind as an operator takes it: its fields as words. A tracer can follow this."""
    names, zoneout = ",".join(kind.names), ",".join([str(rate) for rate in kind.zoneout])
    return f"{kind.mode} {kind.hidden_size} {names} {kind.steps} {int(kind.bidirectional)} {zoneout} {int(kind.training)} {kind.backend}"


@cache
def decoded(text: str) -> Kind:
    """The kind that was `encoded`."""
    mode, hidden_size, names, steps, bidirectional, zoneout, training, backend = text.split(" ")
    rates = tuple(float(rate) for rate in zoneout.split(","))
    return Kind(mode, int(hidden_size), tuple(names.split(",")), int(steps), bidirectional == "1", rates, training == "1", backend)


@torch.library.custom_op("fusedrnn::rnn", mutates_args=())
def rnn(
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    reset: torch.Tensor | None,
    state: list[torch.Tensor],
    weights: list[torch.Tensor],
    seed: torch.Tensor | None,
    kind: str,
) -> list[torch.Tensor]:
    """As `fusedrnn.nn.loops.run`."""
    from ..executors.operator import outside

    with outside(), torch.no_grad():
        return [made.contiguous() for made in run(decoded(kind), x, lengths, reset, state, weights, seed)]


@rnn.register_fake
def _(
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    reset: torch.Tensor | None,
    state: list[torch.Tensor],
    weights: list[torch.Tensor],
    seed: torch.Tensor | None,
    kind: str,
) -> list[torch.Tensor]:
    directions = 2 if decoded(kind).bidirectional else 1
    return [x.new_empty((*x.shape[:2], directions * state[0].shape[2])), *[part.new_empty(part.shape) for part in state]]


@torch.library.custom_op("fusedrnn::rnn_backward", mutates_args=())
def rnn_backward(
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    reset: torch.Tensor | None,
    state: list[torch.Tensor],
    weights: list[torch.Tensor],
    seed: torch.Tensor | None,
    kind: str,
    gradients: list[torch.Tensor],
    places: list[int],
    needed: list[bool],
) -> list[torch.Tensor]:
    """The gradients of x, the state and the weights that are needed, in this order, from those of the results in some places."""
    from ..executors.operator import outside

    with outside(), torch.enable_grad():
        sources = [source.detach().requires_grad_(need) for source, need in zip((x, *state, *weights), needed, strict=True)]
        ends = 1 + len(state)
        results = run(decoded(kind), sources[0], lengths, reset, sources[1:ends], sources[ends:], seed)
        wanted = [source for source, need in zip(sources, needed, strict=True) if need]
        found = torch.autograd.grad([results[place] for place in places], wanted, gradients, allow_unused=True)
    return [torch.zeros_like(source) if grad is None else grad.contiguous() for source, grad in zip(wanted, found, strict=True)]


@rnn_backward.register_fake
def _(
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    reset: torch.Tensor | None,
    state: list[torch.Tensor],
    weights: list[torch.Tensor],
    seed: torch.Tensor | None,
    kind: str,
    gradients: list[torch.Tensor],
    places: list[int],
    needed: list[bool],
) -> list[torch.Tensor]:
    return [source.new_empty(source.shape) for source, need in zip((x, *state, *weights), needed, strict=True) if need]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, lengths, reset, state, weights, seed, ctx.kind = inputs
    ctx.states = len(state)
    ctx.needed = [tensor.requires_grad for tensor in (x, *state, *weights)]
    ctx.save_for_backward(lengths, reset, seed, x, *state, *weights)


def _backward(ctx: Any, gradients: Sequence[torch.Tensor | None]) -> Any:
    lengths, reset, seed, x, *rest = ctx.saved_tensors
    state, weights = rest[: ctx.states], rest[ctx.states :]
    given = {place: gradient for place, gradient in enumerate(gradients) if gradient is not None}
    made = iter(rnn_backward(x, lengths, reset, state, weights, seed, ctx.kind, list(given.values()), list(given), ctx.needed))
    of_x, *others = [next(made) if need else None for need in ctx.needed]
    return of_x, None, None, others[: ctx.states], others[ctx.states :], None, None


rnn.register_autograd(_backward, setup_context=_save)
