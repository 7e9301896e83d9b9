"""What the servers of the comparison serve. In: a number of units, lengths; out: the model, and requests to it."""

from __future__ import annotations

import torch

from fusedrnn.models import Characters
from fusedrnn.models.characters import CharacterSizes
from fusedrnn.serve import CharactersModel, Continuation

from .load import heavy_tailed

_PROMPTS = ("", "in", "un", "the ", "re", "s", "co", "mac")


def model(hidden: int | None, most: int) -> CharactersModel:
    """The shipped model, or an LSTM of so many units with random weights, the same in every process; ``most`` characters an answer."""
    torch.manual_seed(0)
    characters = Characters.pretrained() if hidden is None else Characters(CharacterSizes(hidden_size=hidden))
    return CharactersModel(characters, most=most)


def request(prompt: str, most: int, seed: int) -> Continuation:
    """Of the load: so many characters, drawn."""
    return Continuation(prompt, most, temperature=0.8, top_k=20, seed=seed, one_word=False)


def requests(count: int, seed: int, *, least: int, most: int, shape: float) -> list[Continuation]:
    """So many, with heavy-tailed lengths, the same for each server."""
    lengths = heavy_tailed(count, seed, least=least, most=most, shape=shape)
    return [request(_PROMPTS[place % len(_PROMPTS)], length, place) for place, length in enumerate(lengths)]
