"""Greedy decoding with an LSTM: cell, projection to V words, argmax, embedding, T tokens a row."""

import torch

from ..case import Case, Peer, Shape
from ..loops import Greedy
from ..peers import eager, inductor, jax_loops, onnx_models


def _made(shape: Shape) -> Greedy:
    return Greedy.made("lstm", shape["H"], shape["V"], shape["B"], shape["T"], torch.float32, shape["layers"])


def _differ(work: Greedy, ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> str | None:
    return work.disagreement(ours[0], theirs[0].long())


def _one_layer(shape: Shape) -> bool:
    return bool(shape["layers"] == 1)


_ALL = {"layers": [1], "H": [512], "V": [1000], "B": [1, 32], "T": [32]}

CASE = Case(
    name="decode",
    about="greedy decoding with an LSTM, float32",
    unit="tokens/s",
    axes=(
        _ALL | {"B": [1, 8, 32, 128]},
        _ALL | {"V": [8000, 32000]},
        _ALL | {"H": [1024], "V": [8000]},
        _ALL | {"layers": [2], "V": [8000]},
    ),
    quick=(_ALL | {"H": [256], "B": [1, 16]},),
    make=_made,
    peers={
        "eager loop": Peer(eager.greedy_loop),
        "torch.compile of the step": Peer(eager.greedy_compiled_step, _one_layer),
        "torch.compile of while_loop": Peer(inductor.greedy, _one_layer),
        "JAX while_loop": Peer(jax_loops.greedy),
        "onnxruntime Loop": Peer(onnx_models.greedy),
    },
    differ=_differ,
)
