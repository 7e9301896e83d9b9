"""Settings that all tests share."""

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


@pytest.fixture
def float64():
    """float64 is torch's default dtype within the test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
