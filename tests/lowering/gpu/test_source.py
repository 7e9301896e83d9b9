"""The text of a kernel."""

from __future__ import annotations

import ast
import re

import pytest
import torch

from fusedrnn.kernels.gpu import limits
from fusedrnn.lowering.gpu.schedule import schedule
from fusedrnn.lowering.gpu.source import kernel_source
from fusedrnn.lowering.gpu.tiles import Sharing
from fusedrnn.plan.planner import plans

from .loops import greedy, reading, step

LOOPS = {
    "lstm": lambda: reading("lstm"),
    "tf gru": lambda: reading("tf gru"),
    "greedy": lambda: greedy("gru"),
    "greedy in bfloat16": lambda: greedy("lstm", dtype=torch.bfloat16),
}


def text_of(loop, programs=2):
    return kernel_source(schedule(step(*loop), Sharing(programs), 16), 16)


@pytest.mark.parametrize("name", LOOPS)
def test_the_header_tells_the_plan(name):
    found = plans(step(*LOOPS[name]()), 100, limits.of_arch(90), "hilo")[0]
    text = kernel_source(found.schedule, found.batch_tile, found.lines(100)).text
    header = ast.get_docstring(ast.parse(text), clean=False)
    assert header.splitlines() == found.lines(100)
    assert f"{found.groups(100)} groups of {found.programs} programs, {found.batch_tile} rows a group" in header
    assert f"{found.schedule.phases} phases and {len(found.schedule.barriers)} barriers a step" in header
    for tile in found.schedule.tiles:
        assert f"{tile.name}: " in header


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("programs", [1, 2])
def test_the_same_loop_gives_the_same_text(name, programs):
    torch.manual_seed(0)
    first = text_of(LOOPS[name](), programs).text
    assert text_of(LOOPS[name](), programs).text == first


def names_of(text):
    """The kernel's parameters, the names it assigns, and those that it reads and nothing makes."""
    tree = ast.parse(text)
    imported = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    (kernel,) = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    parameters = {argument.arg for argument in kernel.args.args}
    names = [node for node in ast.walk(kernel) if isinstance(node, ast.Name)]
    assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    return imported | {"tl", "triton"}, parameters, assigned, read - assigned - parameters - imported - {"tl", "triton", "float", "range"}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("programs", [1, 2])
def test_names(name, programs):
    """Nothing of the graph takes the name of a function or of an argument, and all that is read is made."""
    found = text_of(LOOPS[name](), programs)
    imported, parameters, assigned, unknown = names_of(found.text)
    assert not assigned & imported
    assert assigned & parameters <= {tile_at for _, tile_at in found.weights}  # a weight's address moves to the program's own part
    assert unknown == set()
    assert {*found.pointers, *found.numbers} <= parameters
    if programs == 1:
        assert "arrive(" not in found.text.split("def loop(")[1]


def test_nodes_named_like_the_kernels_own():
    """The nodes of tanh, sigmoid, expm1, ... would have those names; the user's own names come too."""
    x, start = torch.zeros(4, 3, 16), torch.zeros(3, 16)

    def cell(inputs, state):
        new = torch.tanh(inputs + state).sigmoid().expm1().log1p()
        new = torch.remainder(new, 0.75) + torch.floor_divide(new, 0.5)
        return new, new

    cell.output_size = cell.state_size = 16

    def loop_fn(time, output, state, loop_state):
        return time >= 4, x[time], start if output is None else state, output, None

    imported, _, assigned, unknown = names_of(text_of((cell, loop_fn)).text)
    assert not assigned & imported
    assert unknown == set()
    assert any(re.fullmatch(r"tanh_+", name) for name in assigned)


@pytest.mark.parametrize(("programs", "waits"), [(1, 0), (2, 2)])
def test_a_barrier_is_one_arrival_and_one_wait(programs, waits):
    text = text_of(greedy("gru"), programs).text
    loop = text[text.index("    while (t < T)") : text.index("    if tl.max(bad)")]
    assert loop.count("arrive(") == waits
    assert loop.count("wait(") == waits
