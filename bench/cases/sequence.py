"""An LSTM or a GRU over sequences of one length."""

import torch

from ..case import Case, Peer, Shape, within
from ..loops import Reads
from ..peers import eager, inductor, jax_loops, onnx_models


def _made(shape: Shape) -> Reads:
    return Reads.made(shape["cell"], shape["H"], shape["B"], shape["T"], getattr(torch, shape["dtype"]))


def _float32(shape: Shape) -> bool:
    return shape["dtype"] == "float32"


def _differ(work: Reads, ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> str | None:
    return within(1e-4 if work.x.dtype == torch.float32 else 0.05)(work, ours, theirs)


_ALL = {"cell": ["lstm"], "H": [128, 256, 512, 1024], "B": [1, 32], "T": [128], "dtype": ["float32"]}

CASE = Case(
    name="sequence",
    about="an LSTM or GRU over sequences, inputs as wide as the state",
    unit="us/step",
    axes=(_ALL, _ALL | {"B": [8], "H": [512]}, _ALL | {"cell": ["gru"], "H": [512]}, _ALL | {"H": [512], "dtype": ["bfloat16"]}),
    quick=(_ALL | {"H": [256], "T": [64]}, _ALL | {"cell": ["gru"], "H": [256], "B": [1], "T": [64]}),
    make=_made,
    peers={
        "nn.LSTM / nn.GRU": Peer(eager.layer),
        "eager loop": Peer(eager.loop),
        "torch.compile of the step": Peer(eager.compiled_step, lambda shape: _float32(shape) and shape["H"] == 512),
        "torch.compile of while_loop": Peer(inductor.reads, lambda shape: _float32(shape) and shape["H"] == 512),
        "JAX scan": Peer(jax_loops.reads, _float32),
        "onnxruntime": Peer(onnx_models.layer, _float32),
    },
    differ=_differ,
)
