"""Settings that all tests share."""

import os

# Persistent kernels run on the CPU, unless told otherwise; Triton reads its variable when it is imported, by whomever.
if os.environ.setdefault("FUSEDRNN_EMULATE", "1") == "1":
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from hypothesis import settings

# One setting for every machine: no deadline, because these machines are noisy, and the same examples each run.
settings.register_profile("fusedrnn", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("fusedrnn")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _reference_by_default(monkeypatch):
    """What a test says of loops it says of `reference`, which defines them; tests of other executors name them, or use `auto`."""
    monkeypatch.setenv("FUSEDRNN_BACKEND", "reference")


@pytest.fixture
def auto(monkeypatch):
    """backend="auto" means what it does for a user."""
    monkeypatch.delenv("FUSEDRNN_BACKEND")


@pytest.fixture
def float64():
    """float64 is torch's default dtype within the test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
