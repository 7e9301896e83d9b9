"""The same grapheme-to-phoneme model word by word in plain numpy: the truth that `G2P` is held to, and the first one to outrun."""

from __future__ import annotations

import numpy as np

from . import g2p_checkpoint as checkpoint
from .g2p_checkpoint import Array


def _sigmoid(x: Array) -> Array:
    return np.float32(1) / (np.float32(1) + np.exp(-x))


def _gru(x: Array, h: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array) -> Array:
    x_r, x_z, x_n = np.split(w_ih @ x + b_ih, 3)
    h_r, h_z, h_n = np.split(w_hh @ h + b_hh, 3)
    r, z = _sigmoid(x_r + h_r), _sigmoid(x_z + h_z)
    new: Array = np.tanh(x_n + r * h_n)
    return (np.float32(1) - z) * new + z * h


def decode(arrays: dict[str, Array], word: str) -> list[str]:
    """The phonemes of one word, greedily, at most 20. ``arrays`` as `g2p_checkpoint.arrays` gives them."""
    encoder, decoder = ([arrays[f"{part}_{name}"] for name in ("w_ih", "w_hh", "b_ih", "b_hh")] for part in ("enc", "dec"))
    h = np.zeros(checkpoint.HIDDEN_SIZE, np.float32)
    for grapheme in checkpoint.graphemes(word):
        h = _gru(arrays["enc_emb"][grapheme], h, *encoder)
    tokens: list[int] = []
    token = checkpoint.PHONEME_START
    while len(tokens) < checkpoint.MAX_STEPS and token != checkpoint.PHONEME_END:
        h = _gru(arrays["dec_emb"][token], h, *decoder)
        token = int((arrays["fc_w"] @ h + arrays["fc_b"]).argmax())
        tokens.append(token)
    return checkpoint.phonemes(tokens)
