"""A cell of one's own over sequences (`bench.loops.Coupled`): nobody has a kernel for it."""

import torch

from ..case import Case, Peer, Shape
from ..loops import Reads
from ..peers import eager, inductor, jax_loops


def _made(shape: Shape) -> Reads:
    return Reads.made("coupled", shape["H"], shape["B"], shape["T"], torch.float32)


CASE = Case(
    name="custom",
    about="a cell of one's own (coupled gates, a norm on the way out) over sequences, float32",
    unit="us/step",
    axes=({"H": [512], "B": [1, 32], "T": [128]},),
    quick=({"H": [256], "B": [1, 8], "T": [64]},),
    make=_made,
    peers={
        "eager loop": Peer(eager.loop),
        "torch.compile of the step": Peer(eager.compiled_step),
        "torch.compile of while_loop": Peer(inductor.reads),
        "JAX scan": Peer(jax_loops.reads),
    },
)
