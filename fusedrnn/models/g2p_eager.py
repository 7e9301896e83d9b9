"""The same grapheme-to-phoneme model as one writes it without fusedrnn: a Python loop over the same cells, with its own masks.

It is what `G2P` on the `reference` executor is timed against. It does less than the contract asks: rows that are done keep
decoding, and their states and inputs are whatever comes.
"""

from __future__ import annotations

import torch

from . import g2p_checkpoint as checkpoint
from .g2p import G2P
from .phonemizer import Spelling, spelled


@torch.no_grad()
def phonemes(model: G2P, words: list[str], *, batch_size: int = 256, by_length: bool = True) -> list[list[str]]:
    """The phonemes of words, in their order, from the same batches as `G2P` makes; unsorted ones with ``by_length=False``."""
    found: list[list[str]] = [[] for _ in words]
    for spelling in spelled(words, batch_size, by_length=by_length):
        tokens = decode(model, encode(model, spelling))
        for row, named in zip(spelling.rows, tokens.T.tolist(), strict=True):
            found[row] = checkpoint.phonemes(named)
    return found


def encode(model: G2P, spelling: Spelling) -> torch.Tensor:
    """The encoder's last state ``[B, H]`` of each word."""
    inputs = model.grapheme_embedding(spelling.graphemes)
    lengths = spelling.lengths.unsqueeze(1)
    shortest = int(lengths.min())
    state: torch.Tensor = inputs.new_zeros(len(lengths), model.encoder.hidden_size)
    for time, step_input in enumerate(inputs):
        new_state = model.encoder(step_input, state)
        state = new_state if time < shortest else torch.where(time < lengths, new_state, state)
    return state


def decode(model: G2P, state: torch.Tensor) -> torch.Tensor:
    """The most likely phoneme at each step, ``[T_run, B]`` int64, meaningless after a word's end. From the state ``[B, H]``."""
    token = torch.full((len(state),), checkpoint.PHONEME_START)
    done = torch.zeros(len(state), dtype=torch.bool)
    tokens = []
    for _ in range(checkpoint.MAX_STEPS):
        state = model.decoder(model.phoneme_embedding(token), state)
        token = model.project(state).argmax(-1)
        tokens.append(token)
        done |= token == checkpoint.PHONEME_END
        if done.all():
            break
    return torch.stack(tokens)
