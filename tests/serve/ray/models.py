"""What the replicas of the tests serve, by name: their processes import it from here."""

from __future__ import annotations

import torch

from fusedrnn.models import Recogniser
from fusedrnn.serve import RecogniserModel

FEATURES = 5


def recogniser() -> RecogniserModel:
    torch.manual_seed(1)
    return RecogniserModel(Recogniser(FEATURES, 3, hidden_size=16), most_frames=16)
