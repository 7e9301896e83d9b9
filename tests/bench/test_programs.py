"""The programs of the rows that `python -m bench compile` compiles: the loop of a configuration, and those of its training."""

import pytest

pytest.importorskip("triton")
from bench.configurations import Configuration
from bench.programs import program
from fusedrnn.capture.program import Target
from fusedrnn.lowering.gpu.schedule import schedule
from fusedrnn.lowering.gpu.step import prepared, step_of
from fusedrnn.lowering.gpu.tiles import Sharing


def targets(made, kind):
    return [target for target in made.targets if target.kind == kind]


def test_a_loop_is_as_it_was_captured():
    made, sizes = program(Configuration("lstm", 8, 3))
    assert targets(made, "emit") == [Target("emit", 0)]
    assert sizes == {}


def test_a_forward_emits_what_its_derivative_reads_too():
    made, _ = program(Configuration("lstm", 8, 3, part="forward with gradients"))
    assert len(targets(made, "emit")) > 1
    assert len(targets(made, "state")) == 2


def test_a_backward_carries_the_gradients_of_the_state():
    made, _ = program(Configuration("lstm", 8, 3, part="backward"))
    assert len(targets(made, "state")) == 2
    assert [leaf.shape[1] for leaf in made.emit_port.leaves] == [4 * 8]


@pytest.mark.parametrize("part", ["loop", "forward with gradients", "backward"])
def test_sizes_of_rows_are_those_of_the_loop(part):
    _, sizes = program(Configuration("bahdanau gru", 8, 3, V=12, picks="forced", part=part))
    assert set(sizes.values()) <= {50}


@pytest.mark.parametrize(("part", "barriers"), [("forward with gradients", 5), ("backward", 3)])
def test_barriers_of_a_layer_norm_in_training(part, barriers):
    made, sizes = program(Configuration("layer norm lstm", 16, 3, part=part))
    assert len(schedule(step_of(prepared(made), sizes), Sharing(2)).barriers) == barriers
