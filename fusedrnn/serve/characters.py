"""The character model as a served one. In: the begin of a text and how to go on; out: its characters as they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import random
from ..models.characters import ALPHABET, SPACE, Characters, tokens
from .model import Model, SlotLoop, Values
from .rows import Row

_LETTERS = np.frombuffer(ALPHABET.encode(), np.uint8)  # each is one byte


_HOTTEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Continuation:
    """What is to be written.

    Attributes:
        prompt: the begin of the text, of the model's alphabet: letters, ``'``, ``-``, ``.`` and spaces between words.
        most: characters to write at most.
        temperature: of the draws; 0 takes the most probable character each time.
        top_k: draw among the k most probable characters, and those that tie with the last of them; None: among all.
        seed: the same seed draws the same characters, whoever else is there.
        one_word: stop at the end of a word; its space is not handed out.
    """

    prompt: str = ""
    most: int = 32
    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0
    one_word: bool = True


class CharactersModel(Model):
    """Continuations by a `fusedrnn.models.Characters`. A request is a `Continuation`; a chunk a str.

    Args:
        model: on the CPU.
        most_prompt: characters of a prompt.
        most: characters that a request may ask for.
    """

    name = "chars"

    def __init__(self, model: Characters, *, most_prompt: int = 64, most: int = 4096) -> None:
        self.model, self.most_prompt, self.most = model.requires_grad_(False).eval(), most_prompt, most

    def loop(self, slots: int) -> SlotLoop:
        cell, embedding, project, letters = self.model.cell, self.model.embedding, self.model.project, len(ALPHABET)
        prompt, length = torch.zeros(self.most_prompt, slots, dtype=torch.int64), torch.zeros(slots, dtype=torch.int64)
        most, one_word = torch.zeros(slots, dtype=torch.int64), torch.zeros(slots, dtype=torch.bool)
        temperature, top_k = torch.zeros(slots), torch.zeros(slots, dtype=torch.int64)
        seed = torch.zeros(slots, dtype=torch.int64)

        def loop_fn(time: torch.Tensor, output: Any, state: Any, _: Any) -> Any:
            if output is None:
                first = torch.full((slots,), SPACE)
                return (
                    torch.zeros(slots, dtype=torch.bool),
                    embedding(first),
                    cell.zero_state(slots),
                    torch.zeros((), dtype=torch.int64),
                    None,
                )
            logits = project(output)
            heat = temperature.reshape(-1, 1)
            above = (logits.unsqueeze(1) > logits.unsqueeze(2)).sum(-1)  # [slots, letters]: how many are more probable
            scaled = (logits / torch.where(heat > 0, heat, 1)).masked_fill(above >= top_k.reshape(-1, 1), -torch.inf)
            drawn = torch.where(heat > 0, scaled + random.gumbel((letters,), seed), logits).argmax(-1)
            forced = time <= length
            token = torch.where(forced, prompt[(time - 1).clamp(max=len(prompt) - 1)], drawn)
            over = (time >= length + most) | (~forced & one_word & (drawn == SPACE))
            return over, embedding(token), state, torch.where(forced, -1, drawn), None

        rows = {
            "prompt": Row(prompt, 1), "length": Row(length), "most": Row(most), "one_word": Row(one_word),
            "temperature": Row(temperature), "top_k": Row(top_k), "seed": Row(seed),
        }  # fmt: skip
        return SlotLoop(cell, loop_fn, rows)

    def check(self, request: Any) -> None:
        if not isinstance(request, Continuation):
            raise TypeError(f"a request must be a Continuation, got {type(request).__name__}")
        if not isinstance(request.prompt, str):
            raise TypeError(f"prompt must be a str, got {type(request.prompt).__name__}")
        if len(request.prompt) > self.most_prompt:
            raise ValueError(f"a prompt may have {self.most_prompt} characters, this one has {len(request.prompt)}")
        tokens(request.prompt)
        for name, value, least, greatest in (
            ("most", request.most, 1, self.most), ("top_k", request.top_k, 1, None), ("seed", request.seed, None, None),
        ):  # fmt: skip
            if name == "top_k" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if (least is not None and value < least) or (greatest is not None and value > greatest):
                raise ValueError(f"{name} must be at least {least}{f' and at most {greatest}' if greatest else ''}, got {value}")
        if isinstance(request.temperature, bool) or not isinstance(request.temperature, (int, float)):
            raise TypeError(f"temperature must be a number, got {request.temperature!r}")
        if not 0 <= request.temperature <= _HOTTEST:
            raise ValueError(f"temperature must be at least 0 and finite in float32, got {request.temperature}")
        if not isinstance(request.one_word, bool):
            raise TypeError(f"one_word must be a bool, got {request.one_word!r}")

    def admit(self, requests: Sequence[Continuation]) -> list[Values]:
        return [self._values(request) for request in requests]

    def _values(self, request: Continuation) -> Values:
        letters = tokens(request.prompt)
        return {
            "prompt": np.array(letters, np.int64), "length": len(letters), "most": request.most, "one_word": request.one_word,
            "temperature": float(request.temperature),
            "top_k": len(ALPHABET) if request.top_k is None else min(request.top_k, len(ALPHABET)), "seed": random.row_seed(request.seed),
        }  # fmt: skip

    def emit(self, request: Continuation, values: npt.NDArray[Any]) -> str | None:
        written = _LETTERS[values[values >= 0]].tobytes().decode()
        return (written.rstrip(" ") if request.one_word else written) or None
