"""How good pronunciations are. In: what a model said of words, and what it might have said; out: phoneme and word error rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .lexicon import Pronunciations


@dataclass(frozen=True)
class Scores:
    """Errors over some words. Stress marks count: AH0 is not AH1. A word is held against the one of its pronunciations that is nearest.

    Attributes:
        words: how many.
        wrong_words: those that are none of their pronunciations.
        edits: the least number of phonemes to insert, delete or replace, over all words.
        phonemes: of the pronunciations that the words were held against.
    """

    words: int
    wrong_words: int
    edits: int
    phonemes: int

    @property
    def wer(self) -> float:
        """The word error rate; 0 for no words."""
        return self.wrong_words / max(self.words, 1)

    @property
    def per(self) -> float:
        """The phoneme error rate; 0 for no phonemes."""
        return self.edits / max(self.phonemes, 1)

    def __str__(self) -> str:
        return f"WER {100 * self.wer:.2f} %, PER {100 * self.per:.2f} %"


def scores(said: Iterable[Sequence[str]], words: Pronunciations) -> Scores:
    """The errors of what was said of each of the words, in their order.

    Raises:
        ValueError: another number of words was said.
    """
    wrong = edits = phonemes = 0
    for mine, pronunciations in zip(said, words.values(), strict=True):
        # Of two that are as near the longer one: it has the lower rate.
        least, length = min((distance(mine, theirs), -len(theirs)) for theirs in pronunciations)
        wrong += least > 0
        edits += least
        phonemes -= length
    return Scores(len(words), wrong, edits, phonemes)


def distance(mine: Sequence[str], theirs: Sequence[str]) -> int:
    """The least number of insertions, deletions and replacements that make one of the other (Levenshtein 1966)."""
    above = list(range(len(theirs) + 1))
    for row, one in enumerate(mine, 1):
        line = [row]
        for column, other in enumerate(theirs, 1):
            line.append(min(above[column] + 1, line[-1] + 1, above[column - 1] + (one != other)))
        above = line
    return above[-1]
