"""torch's fused functions that cannot be traced with free sizes (torch 2.13) or would run step by step only, as the operators they are
made of. One that gets arguments which it does not spell out is called as it is."""

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


def _lerp(input: torch.Tensor, end: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
    """As torch computes it: from the nearer end."""
    way = end - input
    if not isinstance(weight, torch.Tensor):
        return input + weight * way if abs(weight) < 0.5 else end - way * (1 - weight)
    return torch.where(weight.abs() < 0.5, input + weight * way, end - way * (1 - weight))


def _bilinear(input1: torch.Tensor, input2: torch.Tensor, weight: torch.Tensor, bias: Weight = None) -> torch.Tensor:
    pairs = (input1.unsqueeze(-1) * input2.unsqueeze(-2)).flatten(-2)
    return F.linear(pairs, weight.flatten(1), bias)


def _lstm_layers(input: torch.Tensor, hx: Any, *more: Any) -> Any:
    """nn.LSTM over a sequence in the cell: the sequence is as long in every step."""
    if isinstance(hx, torch.Tensor):  # packed
        return torch.lstm(input, hx, *more)
    weights, bias, layers, dropout, training, bidirectional, batch_first = more
    directions = 2 if bidirectional else 1
    each = len(weights) // (layers * directions)
    steps = list(input.unbind(1 if batch_first else 0))
    final: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in range(layers):
        made = []
        for direction in range(directions):
            at = layer * directions + direction
            w_ih, w_hh, *rest = weights[at * each : (at + 1) * each]
            biases, projection = (rest[:2] if bias else (None, None)), rest[2 if bias else 0 :]
            h, c = hx[0][at], hx[1][at]
            outputs = []
            for step in reversed(steps) if direction else steps:
                h, c = _lstm(step, (h, c), w_ih, w_hh, *biases)
                h = F.linear(h, projection[0]) if projection else h
                outputs.append(h)
            final.append((h, c))
            made.append(outputs[::-1] if direction else outputs)
        steps = [torch.cat(parts, -1) for parts in zip(*made, strict=True)] if bidirectional else made[0]
        if dropout and training and layer + 1 < layers:
            steps = [F.dropout(step, dropout) for step in steps]
    return torch.stack(steps, 1 if batch_first else 0), torch.stack([h for h, _ in final]), torch.stack([c for _, c in final])


def _embedding_bag(input: torch.Tensor, weight: torch.Tensor, offsets: Weight = None, *more: Any, **named: Any) -> Any:
    names = ("max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights", "include_last_offset", "padding_idx")
    given = dict(zip(names, more, strict=False)) | named
    mode, scales = given.get("mode", "mean"), given.get("per_sample_weights")
    plain = not any(given.get(name) for name in ("max_norm", "scale_grad_by_freq", "sparse")) and given.get("padding_idx") is None
    if input.ndim != 2 or not plain or input.shape[1] == 0:
        return F.embedding_bag(input, weight, offsets, *more, **named)
    rows = F.embedding(input, weight)
    if mode == "max":
        return rows.amax(1)
    return (rows if scales is None else rows * scales.unsqueeze(-1)).sum(1) if mode == "sum" else rows.mean(1)


def _cdist(x1: torch.Tensor, x2: torch.Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary") -> torch.Tensor:
    if p not in (1, 2):
        return torch.cdist(x1, x2, p, compute_mode)
    apart = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p == 1:
        return apart.abs().sum(-1)
    squares = apart.square().sum(-1)
    return torch.where(squares > 0, squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt(), 0)  # with torch's gradient at 0


def _searchsorted(sorted_sequence: torch.Tensor, input: Any, *, out_int32: bool = False, right: bool = False, side: Any = None,
                  sorter: Any = None) -> torch.Tensor:  # fmt: skip
    if sorter is not None or not isinstance(input, torch.Tensor) or not sorted_sequence.ndim:
        return torch.searchsorted(sorted_sequence, input, out_int32=out_int32, right=right, side=side, sorter=sorter)
    boundaries = sorted_sequence.unsqueeze(-2) if sorted_sequence.ndim > 1 else sorted_sequence
    values = input.unsqueeze(-1)
    beyond = boundaries > values if right or side == "right" else boundaries >= values  # none of them where the value is NaN
    return beyond.logical_not().sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _bucketize(input: Any, boundaries: torch.Tensor, *, out_int32: bool = False, right: bool = False) -> torch.Tensor:
    if not isinstance(input, torch.Tensor):
        return torch.bucketize(input, boundaries, out_int32=out_int32, right=right)
    return _searchsorted(boundaries, input, out_int32=out_int32, right=right)


def padded(x: torch.Tensor, pads: Sequence[int], value: float = 0.0) -> torch.Tensor:
    """``constant_pad_nd``; torch's own fixes the batch size (torch 2.13)."""
    for place in range(len(pads) // 2):
        dim = x.ndim - 1 - place
        for pad, ahead in ((pads[2 * place], True), (pads[2 * place + 1], False)):
            if pad < 0:
                x = x.narrow(dim, -pad if ahead else 0, x.shape[dim] + pad)
            elif pad > 0:
                block = x.new_full((*x.shape[:dim], pad, *x.shape[dim + 1 :]), value)
                x = torch.cat([block, x] if ahead else [x, block], dim)
    return x


def _pad(input: torch.Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> torch.Tensor:
    numbers = all(isinstance(size, (int, torch.SymInt)) for size in pad)
    if mode != "constant" or not numbers or len(pad) % 2 or len(pad) > 2 * input.ndim:
        return F.pad(input, pad, mode, value)
    return padded(input, pad, value or 0.0) if any(pad) else input.clone()


def _split(tensor: torch.Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[torch.Tensor, ...]:
    """Of a free size torch makes parts that are traced as strided."""
    size, each = tensor.shape[dim], split_size_or_sections
    if not isinstance(size, torch.SymInt) or not isinstance(each, (int, torch.SymInt)) or each <= 0:
        return torch.split(tensor, each, dim)
    parts, begin = list[torch.Tensor](), each - each
    while not parts or begin < size:
        parts.append(tensor.narrow(dim, begin, each if begin + each <= size else size - begin))
        begin += each
    return tuple(parts)


def _chunk(input: torch.Tensor, chunks: int, dim: int = 0) -> tuple[torch.Tensor, ...]:
    size = input.shape[dim]
    return _split(input, -(-size // chunks), dim) if isinstance(size, torch.SymInt) else torch.chunk(input, chunks, dim)


SPELLED_OUT: dict[Any, Callable[..., Any]] = {
    F.cosine_similarity: _cosine_similarity,
    F.scaled_dot_product_attention: _attention,
    F.embedding_bag: _embedding_bag,
    F.pad: _pad,
    torch.bilinear: _bilinear,
    torch.chunk: _chunk,
    torch.Tensor.chunk: _chunk,
    torch.split: _split,
    torch.Tensor.split: _split,
    torch.bucketize: _bucketize,
    torch.cdist: _cdist,
    torch.lerp: _lerp,
    torch.Tensor.lerp: _lerp,
    torch.lstm: _lstm_layers,
    torch.searchsorted: _searchsorted,
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
