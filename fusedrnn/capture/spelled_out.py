"""torch's fused functions that cannot be traced with free sizes (torch 2.13), as the operators they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

Weight = torch.Tensor | None


def _gates(x: torch.Tensor, h: torch.Tensor, w_ih: torch.Tensor, w_hh: torch.Tensor, b_ih: Weight, b_hh: Weight) -> torch.Tensor:
    return F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh)


def _lstm(
    x: torch.Tensor, hx: Sequence[torch.Tensor], w_ih: torch.Tensor, w_hh: torch.Tensor, b_ih: Weight = None, b_hh: Weight = None
) -> tuple[torch.Tensor, torch.Tensor]:
    h, c = hx
    i, f, g, o = _gates(x, h, w_ih, w_hh, b_ih, b_hh).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(
    x: torch.Tensor, hx: torch.Tensor, w_ih: torch.Tensor, w_hh: torch.Tensor, b_ih: Weight = None, b_hh: Weight = None
) -> torch.Tensor:
    ir, iz, inew = F.linear(x, w_ih, b_ih).chunk(3, -1)
    hr, hz, hnew = F.linear(hx, w_hh, b_hh).chunk(3, -1)
    r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
    n = torch.tanh(inew + r * hnew)
    return n + z * (hx - n)


def _rnn(activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def step(x: torch.Tensor, hx: torch.Tensor, *weights: Any, **named: Any) -> torch.Tensor:
        names = ("w_ih", "w_hh", "b_ih", "b_hh")
        values = dict(zip(names, weights, strict=False)) | named
        return activation(_gates(x, hx, *[values.get(name) for name in names]))  # type: ignore[arg-type]

    return step


def _addcmul(input: torch.Tensor, tensor1: torch.Tensor, tensor2: torch.Tensor, *, value: float = 1) -> torch.Tensor:
    return input + (tensor1 * tensor2 if value == 1 else value * tensor1 * tensor2)


def _addcdiv(input: torch.Tensor, tensor1: torch.Tensor, tensor2: torch.Tensor, *, value: float = 1) -> torch.Tensor:
    return input + (tensor1 / tensor2 if value == 1 else value * (tensor1 / tensor2))


def _baddbmm(input: torch.Tensor, batch1: torch.Tensor, batch2: torch.Tensor, *, beta: float = 1, alpha: float = 1) -> torch.Tensor:
    product = torch.bmm(batch1, batch2)
    product = product if alpha == 1 else alpha * product
    return product if beta == 0 else product + (input if beta == 1 else beta * input)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """As torch's documentation of scaled_dot_product_attention spells it out."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        rows = torch.arange(scores.shape[-2], device=scores.device).unsqueeze(-1)
        scores = scores.masked_fill(torch.arange(scores.shape[-1], device=scores.device) > rows, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value


def _cosine_similarity(x1: torch.Tensor, x2: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> torch.Tensor:
    lengths = [x.square().sum(dim).sqrt().clamp_min(eps) for x in (x1, x2)]
    return (x1 * x2).sum(dim) / (lengths[0] * lengths[1])


SPELLED_OUT: dict[Any, Callable[..., Any]] = {
    F.cosine_similarity: _cosine_similarity,
    F.scaled_dot_product_attention: _attention,
    torch.addcmul: _addcmul,
    torch.Tensor.addcmul: _addcmul,
    torch.addcdiv: _addcdiv,
    torch.Tensor.addcdiv: _addcdiv,
    torch.baddbmm: _baddbmm,
    torch.Tensor.baddbmm: _baddbmm,
    torch.lstm_cell: _lstm,
    torch.gru_cell: _gru,
    torch.rnn_tanh_cell: _rnn(torch.tanh),
    torch.rnn_relu_cell: _rnn(torch.relu),
}
