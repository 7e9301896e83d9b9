"""onnxruntime gives what fusedrnn does, where it is installed."""

import sys

import pytest
import torch

from bench.case import Missing
from bench.loops import Greedy, Reads
from bench.peers import onnx_models


def installed():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_reads(cell):
    installed()
    torch.manual_seed(0)
    reads = Reads.made(cell, 6, 3, 5, torch.float32)
    torch.testing.assert_close(onnx_models.layer(reads).results(), [reads.loop("reference")().emit_ta.stack().detach()])


@pytest.mark.parametrize("layers", [1, 2])
def test_decodes(layers):
    installed()
    torch.manual_seed(0)
    greedy = Greedy.made("lstm", 6, 11, 3, 5, torch.float32, layers)
    assert torch.equal(onnx_models.greedy(greedy).results()[0], greedy.loop("reference")().emit_ta.stack())


def test_without_it_the_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Missing, match="pip install onnx onnxruntime"):
        onnx_models.layer(Reads.made("lstm", 6, 3, 5, torch.float32))
