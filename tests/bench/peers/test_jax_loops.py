"""JAX gives what fusedrnn does, where it is installed."""

import sys

import pytest
import torch

from bench.case import Missing
from bench.loops import Greedy, Reads
from bench.peers import jax_loops


@pytest.mark.parametrize("cell", ["lstm", "gru", "layer norm lstm", "coupled"])
def test_reads(cell):
    pytest.importorskip("jax")
    torch.manual_seed(0)
    reads = Reads.made(cell, 6, 3, 5, torch.float32)
    torch.testing.assert_close(jax_loops.reads(reads).results(), [reads.loop("reference")().emit_ta.stack().detach()])


@pytest.mark.parametrize("layers", [1, 2])
def test_decodes(layers):
    pytest.importorskip("jax")
    torch.manual_seed(0)
    greedy = Greedy.made("lstm", 6, 11, 3, 5, torch.float32, layers)
    assert torch.equal(jax_loops.greedy(greedy).results()[0].long(), greedy.loop("reference")().emit_ta.stack())


def test_without_it_the_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(Missing, match="pip install jax"):
        jax_loops.reads(Reads.made("lstm", 6, 3, 5, torch.float32))
