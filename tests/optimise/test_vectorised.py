"""Operators under `torch.vmap`."""

from __future__ import annotations

import pytest
import torch

from fusedrnn.capture import ops
from fusedrnn.optimise.vectorised import VECTORISED

aten = torch.ops.aten


@pytest.mark.parametrize(("begin", "end", "step"), [(-2, None, 1), (5, 2**63 - 1, 1), (-100, 2, 1), (1, -1, 2), (None, 2, 1)])
@pytest.mark.parametrize("is_shared", [False, True])
def test_slice_scatter(begin, end, step, is_shared):
    x, width = torch.randn(4, 2, 7), len(range(7)[begin:end:step])
    source = torch.randn(4, 2, width)
    wanted = torch.stack([aten.slice_scatter.default(x[0 if is_shared else n], source[n], 1, begin, end, step) for n in range(4)])
    function = VECTORISED[aten.slice_scatter.default]
    found = torch.vmap(lambda a, b: function(a, b, 1, begin, end, step), in_dims=(None if is_shared else 0, 0))(
        x[0] if is_shared else x, source
    )
    assert torch.equal(found, wanted)


def test_read():
    """Past the end it is the last element."""
    x, times = torch.randn(3, 5), torch.tensor([0, 2, -1, 7])
    found = torch.vmap(lambda time: VECTORISED[ops.read](x, time, 0))(times)
    assert torch.equal(found, x[[0, 2, 2, 2]])
