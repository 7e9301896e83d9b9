"""PackedSequences. In: packed data; out: it padded, time first, with its lengths; and outputs packed in the same way."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def padded(packed: PackedSequence) -> tuple[torch.Tensor, torch.Tensor]:
    """``[T, B, *]`` with the longest row first, and the lengths ``[B]`` int64, on the CPU."""
    return pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes))


def packed_like(outputs: torch.Tensor, lengths: torch.Tensor, packed: PackedSequence) -> PackedSequence:
    """Outputs ``[T, B, *]`` as a PackedSequence of the same lengths and order."""
    data = pack_padded_sequence(outputs, lengths).data
    return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
