"""The backends that every program of this folder runs on."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import fusedrnn

from .cells import numbers

BACKENDS = ["reference", "stepwise", "native", "persistent"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def raw_rnn(backend):
    """`fusedrnn.raw_rnn` on one backend, with numbers that it has: kernels have no float64."""
    with numbers(torch.float32 if backend == "persistent" else torch.float64):
        yield partial(fusedrnn.raw_rnn, backend=backend)
