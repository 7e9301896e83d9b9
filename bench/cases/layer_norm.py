"""A layer-norm LSTM over sequences: torch.nn, oneDNN and onnxruntime have no such layer."""

import torch

from ..case import Case, Peer, Shape
from ..loops import Reads
from ..peers import eager, inductor, jax_loops


def _made(shape: Shape) -> Reads:
    return Reads.made("layer norm lstm", shape["H"], shape["B"], shape["T"], torch.float32)


CASE = Case(
    name="layer_norm",
    about="a layer-norm LSTM over sequences, float32",
    unit="us/step",
    axes=({"H": [512], "B": [1, 32], "T": [128]},),
    quick=({"H": [256], "B": [1], "T": [64]},),
    make=_made,
    peers={
        "eager loop": Peer(eager.loop),
        "torch.compile of the step": Peer(eager.compiled_step),
        "torch.compile of while_loop": Peer(inductor.reads),
        "JAX scan": Peer(jax_loops.reads),
    },
)
