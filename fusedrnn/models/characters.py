"""A language model of words, character by character: an LSTM whose steps run through `fusedrnn.raw_rnn`."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import feedback
from ..cells import LSTMCell
from ..loop import raw_rnn
from ..result import Result
from . import files

ALPHABET = " '-.abcdefghijklmnopqrstuvwxyz"  # the space stands between words, and begins a text
SPACE = 0
PRETRAINED = Path(__file__).with_name("characters.safetensors")
_INDEX = {letter: place for place, letter in enumerate(ALPHABET)}


def tokens(text: str) -> list[int]:
    """The indices of a text's characters, in lower case.

    Raises:
        ValueError: the alphabet has no such character.
    """
    lower = text.lower()
    for letter in lower:
        if letter not in _INDEX:
            raise ValueError(f"there is no {letter!r} in the alphabet {ALPHABET!r}")
    return [_INDEX[letter] for letter in lower]


def text(found: list[int]) -> str:
    """The characters of indices."""
    return "".join(ALPHABET[place] for place in found)


@dataclass(frozen=True)
class CharacterSizes:
    """What a `Characters` is built from.

    Attributes:
        embedding_size: E.
        hidden_size: H.
    """

    embedding_size: int = 32
    hidden_size: int = 192

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")


class Characters(nn.Module):
    """Characters through an embedding and an LSTM; of each what comes next.

    ``Characters()`` has random weights; `pretrained` has those that ``fusedrnn train chars`` made of CMUdict's words.
    """

    def __init__(self, sizes: CharacterSizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes or CharacterSizes()
        embedding, hidden = self.sizes.embedding_size, self.sizes.hidden_size
        self.embedding = nn.Embedding(len(ALPHABET), embedding)
        self.cell = LSTMCell(embedding, hidden)
        self.project = nn.Linear(hidden, len(ALPHABET))

    def forward(self, targets: torch.Tensor, lengths: torch.Tensor | None = None, *, backend: str = "auto") -> torch.Tensor:
        """What is said of each character, after a space and those before it.

        Args:
            targets: ``[T, B]`` int64.
            lengths: ``[B]`` int64; None: all have T.
            backend: as in `raw_rnn`.

        Returns:
            Logits ``[T, B, 30]``, zeros past a row's length.
        """
        return self.run(targets, lengths, backend=backend).emit_ta.stack()  # type: ignore[no-any-return]

    def run(self, targets: torch.Tensor, lengths: torch.Tensor | None = None, *, backend: str = "auto", run: Any = raw_rnn) -> Result:
        """The loop of `forward`; ``run`` is what runs it, called as `raw_rnn`."""
        state = self.cell.zero_state(targets.shape[1])
        loop_fn = feedback.teacher_forcing(self.embedding, self.project, targets, lengths, SPACE, state)
        return run(self.cell, loop_fn, scope="characters", backend=backend)  # type: ignore[no-any-return]

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the weights and sizes to a safetensors file, in place of what stood there.

        Raises:
            ModuleNotFoundError: safetensors is not installed; the message says how to install it.
            OSError: the file cannot be written.
        """
        files.save(self, asdict(self.sizes), Path(file), extra="serve")

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Characters:
        """The model that `save` wrote, in eval mode on the CPU.

        Raises:
            ModuleNotFoundError: safetensors is not installed; the message says how to install it.
            FileNotFoundError: there is no such file.
            ValueError: it is not what `save` writes.
        """
        missing = "`fusedrnn train chars --out DIR` writes DIR/model.safetensors"
        return files.load(cls, CharacterSizes, Path(file), command="fusedrnn train chars", missing=missing, extra="serve")

    @classmethod
    def pretrained(cls) -> Characters:
        """The model that comes with the package; raises as `load`."""
        return cls.load(PRETRAINED)
