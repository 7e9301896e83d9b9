"""Layer normalisation of gates. In: pre-activations ``[B, gates * H]``; out: each gate's block normalised by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def norm_gates(pre: torch.Tensor, hidden_size: int, gain: torch.Tensor, shift: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    """``gain * (a - mean(a)) / sqrt(var(a) + epsilon) + shift`` over each block of ``hidden_size`` columns, with the biased variance
    (Ba, Kiros and Hinton 2016, "Layer Normalization", equation 4).

    Args:
        pre: ``[B, gates * H]``.
        hidden_size: H.
        gain, shift: ``[gates * H]``; a shift of None is none.
        epsilon: added to the variance.

    Returns:
        ``[B, gates * H]``.
    """
    blocks = pre.reshape(pre.shape[0], gain.shape[0] // hidden_size, hidden_size)
    normed = F.layer_norm(blocks, (hidden_size,), eps=epsilon).flatten(1)
    return normed * gain if shift is None else torch.addcmul(shift, normed, gain)
