"""A module of torch.nn and ours with the same parameters, and what both make of the same arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn

KINDS = ("LSTM", "GRU", "RNN")


def pair(kind: str, *sizes: Any, backend: str = "auto", **options: Any) -> tuple[nn.Module, nn.Module]:
    theirs = getattr(nn, kind)(*sizes, **options)
    ours = getattr(fusedrnn.nn, kind)(*sizes, **options, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def state(module: nn.Module, batch: int | None) -> Any:
    """An initial state of random numbers; a batch of None is one row alone."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)
    parts = [torch.randn(rows, *([] if batch is None else [batch]), size, dtype=module.weight_ih_l0.dtype) for size in sizes]
    return tuple(parts) if isinstance(module, (nn.LSTM, fusedrnn.nn.LSTM)) else parts[0]


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of nested tuples and PackedSequences."""
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, torch.Tensor) else [tensor for part in value for tensor in tensors(part)]


def results(module: nn.Module, x: Any, hx: Any, **named: Any) -> tuple[Any, list[torch.Tensor]]:
    """What a module makes of its arguments, and the gradients, of a loss that all of it enters, of x, hx and the parameters."""
    torch.manual_seed(1)
    sources = [*tensors(x), *([] if hx is None else tensors(hx)), *module.parameters()]
    for source in sources:
        source.requires_grad_()
    made = module(x, hx, **named)
    loss = sum((tensor * torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).view(tensor.shape)).sum() for tensor in tensors(made))
    return made, list(torch.autograd.grad(loss, sources))
