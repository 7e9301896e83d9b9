"""An LSTM over sequences of many lengths, 1 to T evenly: rows that are finished cost fusedrnn nothing."""

import torch

from ..case import Case, Peer, Shape
from ..loops import Reads
from ..peers import eager


def _made(shape: Shape) -> Reads:
    rows, steps = shape["B"], shape["T"]
    lengths = torch.linspace(1, steps, rows).round().long()[torch.randperm(rows)]
    return Reads.made("lstm", shape["H"], rows, steps, torch.float32, lengths)


CASE = Case(
    name="ragged",
    about="an LSTM over sequences of lengths 1 to T, float32",
    unit="us/step",
    axes=({"H": [512], "B": [8, 32], "T": [128]},),
    quick=({"H": [256], "B": [8], "T": [64]},),
    make=_made,
    peers={"packed nn.LSTM": Peer(eager.layer), "eager loop with masks": Peer(eager.loop)},
)
