"""What the replicas of the tests serve: their processes import it from here."""

from __future__ import annotations

import time
from typing import Any

import torch

from fusedrnn.models import Characters, Recogniser
from fusedrnn.serve import CharactersModel, Continuation, RecogniserModel

FEATURES = 5


def recogniser() -> RecogniserModel:
    torch.manual_seed(1)
    return RecogniserModel(Recogniser(FEATURES, 3, hidden_size=16), most_frames=16)


class Slow(CharactersModel):
    """Takes a millisecond for a character, of which the processor notices nothing: it is needed to start other replicas."""

    def emit(self, request: Continuation, values: Any) -> str | None:
        time.sleep(0.001 * len(values))
        return super().emit(request, values)


def slow() -> Slow:
    return Slow(Characters.pretrained())
