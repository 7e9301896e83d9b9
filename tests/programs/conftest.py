"""The backends that every program of this folder runs on."""

from __future__ import annotations

from functools import partial

import pytest

import fusedrnn

BACKENDS = ["reference", "stepwise", "native"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def raw_rnn(backend):
    """`fusedrnn.raw_rnn` on one backend."""
    return partial(fusedrnn.raw_rnn, backend=backend)
