"""Loops that are measured: what stands for a cell without fusedrnn, and how decodes are compared."""

import pytest
import torch

from bench.loops import CELLS, Greedy, Reads, stepped, zeros
from fusedrnn.cells.protocol import as_cell


@pytest.mark.parametrize("kind", CELLS)
def test_a_step_without_fusedrnn_is_the_cell(kind):
    torch.manual_seed(0)
    cell, x = CELLS[kind](6, 6), torch.randn(3, 6)
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = torch.utils._pytree.tree_map(torch.randn_like, zeros(kind, 6, 3, torch.float32))
    torch.testing.assert_close(stepped(cell)(x, state), as_cell(cell)(x, state))


def test_a_stack():
    greedy = Greedy.made("lstm", 6, 11, 3, 4, torch.float32, layers=2)
    x = torch.randn(3, 6)
    torch.testing.assert_close(stepped(greedy.cell)(x, greedy.state), greedy.cell(x, greedy.state))


def test_counts():
    assert Reads.made("gru", 4, 3, 5, torch.float32).count == 5
    assert Greedy.made("gru", 4, 9, 3, 5, torch.float32).count == 15


def test_decodes_may_part_where_two_tokens_are_as_good():
    torch.manual_seed(0)
    greedy = Greedy.made("lstm", 6, 11, 2, 4, torch.float32)
    tokens = greedy.loop("reference")().emit_ta.stack()
    assert greedy.disagreement(tokens, tokens) is None
    other = tokens.clone()
    other[2, 1] = (tokens[2, 1] + 1) % 11
    assert greedy.disagreement(tokens, other) == f"row 1 has token {int(tokens[2, 1])} at step 2, the peer {int(other[2, 1])}"
    with torch.no_grad():  # now both are as good
        for parameter in (greedy.project.weight, greedy.project.bias):
            parameter[other[2, 1]] = parameter[tokens[2, 1]]
    assert greedy.disagreement(tokens, other) is None
    assert greedy.disagreement(tokens, tokens[:2]) == "tokens have shape [4, 2], the peer's [2, 2]"
