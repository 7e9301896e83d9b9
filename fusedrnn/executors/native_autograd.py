"""Gradients of a native loop. In: what a loop depends on; out: its results, whose backward runs the loop again, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensors = Sequence[torch.Tensor]


def differentiable(tensors: Tensors, run: Callable[[], list[torch.Tensor]], again: Callable[[Tensors], Tensors]) -> list[torch.Tensor]:
    """The results of ``run()``, as functions of ``tensors``.

    Args:
        tensors: all that may need a gradient.
        run: computes the results without autograd.
        again: computes them with autograd, from other tensors in the place of these. It is called once, in the backward.
    """
    results: tuple[torch.Tensor, ...] = _Recomputed.apply(run, again, *tensors)  # type: ignore[no-untyped-call]
    return list(results)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[], list[torch.Tensor]], again: Callable[[Tensors], Tensors], *tensors: torch.Tensor) -> Any:
        ctx.again = again
        ctx.save_for_backward(*tensors)
        results = run()
        ctx.mark_non_differentiable(*[result for result in results if not (result.is_floating_point() or result.is_complex())])
        return tuple(results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        needed = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            tensors = [tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed, strict=True)]
            results = ctx.again(tensors)
            pairs = [(result, grad) for result, grad in zip(results, gradients, strict=True) if grad is not None and result.requires_grad]
            sources = [tensor for tensor, need in zip(tensors, needed, strict=True) if need]
            if not pairs:
                return None, None, *[None for _ in needed]
            found = iter(torch.autograd.grad([r for r, _ in pairs], sources, [g for _, g in pairs], allow_unused=True))
        return None, None, *[next(found) if need else None for need in needed]
