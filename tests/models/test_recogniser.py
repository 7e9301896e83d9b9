"""The recogniser of streams, without a server."""

import pytest
import torch

from fusedrnn.models import Recogniser


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_probabilities_are_those_of_the_cell_and_the_linear_layer(classes, backend):
    torch.manual_seed(0)
    model, frames = Recogniser(3, classes, 10).requires_grad_(False), torch.randn(7, 2, 3)
    made, state = model(frames, backend=backend)
    wanted, carried = [], model.cell.zero_state(2)
    for frame in frames:
        output, carried = model.cell(frame, carried)
        logits = model.project(output)
        wanted.append(logits.sigmoid() if classes == 1 else logits.softmax(-1))
    torch.testing.assert_close(made, torch.stack(wanted), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, carried, rtol=1e-5, atol=1e-6)
    first, between = model(frames[:4], backend=backend)
    second, end = model(frames[4:], between, backend=backend)
    torch.testing.assert_close(torch.cat([first, second]), made, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(end, state, rtol=1e-5, atol=1e-6)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="classes must be an int of at least 1, got 0"):
        Recogniser(3, 0)
