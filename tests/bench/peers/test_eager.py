"""torch's own peers give what fusedrnn does."""

import pytest
import torch

from bench.loops import Greedy, Reads
from bench.peers import eager


@pytest.fixture(autouse=True)
def without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("cell", ["lstm", "gru", "layer norm lstm", "coupled"])
def test_reads(cell):
    reads = Reads.made(cell, 6, 3, 5, torch.float32)
    expected = reads.loop("reference")().emit_ta.stack()
    torch.testing.assert_close(eager.loop(reads).results(), [expected])
    if cell in ("lstm", "gru"):
        torch.testing.assert_close(eager.layer(reads).results(), [expected])


def test_reads_of_many_lengths():
    reads = Reads.made("lstm", 6, 3, 5, torch.float32, torch.tensor([5, 1, 3]))
    expected = reads.loop("reference")().emit_ta.stack()
    torch.testing.assert_close(eager.layer(reads).results(), [expected])
    torch.testing.assert_close(eager.loop(reads).results(), [expected])


@pytest.mark.parametrize("layers", [1, 2])
def test_decodes(layers):
    greedy = Greedy.made("lstm", 6, 11, 3, 5, torch.float32, layers)
    assert torch.equal(eager.greedy_loop(greedy).results()[0], greedy.loop("reference")().emit_ta.stack())


def test_a_decode_stops_when_every_row_has_ended():
    greedy = Greedy.made("lstm", 6, 11, 1, 9, torch.float32)
    greedy.end = int(eager.greedy_loop(greedy).results()[0][3, 0])
    tokens = eager.greedy_loop(greedy).results()[0]
    assert len(tokens) < 9
    assert torch.equal(tokens, greedy.loop("reference")().emit_ta.stack())
