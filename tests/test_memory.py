"""Large pages."""

from __future__ import annotations

import sys

import pytest
import torch

from fusedrnn import memory


@pytest.mark.parametrize("numbers", [0, 1, 3 << 20, (5 << 20) + 7])
def test_in_large_pages(numbers):
    x = torch.empty(numbers)
    assert memory.in_large_pages(x) is x
    assert x.fill_(1.0).sum() == numbers


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux gives them")
def test_only_whole_pages_within_the_tensor(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_advise", lambda: lambda *args: asked.append(args))
    x = torch.empty(5 << 20)
    memory.in_large_pages(x)
    memory.in_large_pages(torch.empty(1 << 20))
    ((begin, size, _),) = asked
    assert begin % (1 << 21) == size % (1 << 21) == 0
    assert x.data_ptr() <= begin
    assert begin + size <= x.data_ptr() + x.nbytes


def test_free():
    assert memory.free(torch.device("cpu")) > 0
