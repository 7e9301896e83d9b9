"""What passes share: copies, the parts of a graph, its order; however long a chain of nodes is."""

import itertools
import operator

import torch
from torch.fx import Graph

from fusedrnn import raw_rnn
from fusedrnn.capture.program import Source
from fusedrnn.optimise.graph import copied, made_of, output, outputs, placeholders, sort

LONG = 3000


def small():
    """``(a + b, -b)`` of placeholders a and b."""
    graph = Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    total, negative = graph.call_function(operator.add, (a, b)), graph.call_function(operator.neg, (b,))
    graph.output([total, negative])
    return graph, a, b, total, negative


def test_parts():
    graph, a, b, total, negative = small()
    assert placeholders(graph) == [a, b]
    assert outputs(graph) == [total, negative]
    assert output(graph).op == "output"
    assert made_of(graph, [Source("state"), Source("tensor")], {"tensor"}) == {b, negative}
    assert made_of(graph, [Source("state"), Source("tensor")], {"tensor", "state"}) == {a, b, total, negative}


def test_a_copy_with_another_function():
    graph, _, b, _, negative = small()
    new = copied(graph, {operator.neg: operator.abs})
    new.lint()
    assert [node.target for node in new.nodes if node.op == "call_function"] == [operator.add, operator.abs]
    assert not set(new.nodes) & set(graph.nodes)
    assert negative.target is operator.neg
    assert len(b.users) == 2


def test_order():
    graph, a, b, total, negative = small()
    late = graph.placeholder("late")
    total.args = (late, negative)
    sort(graph)
    graph.lint()
    assert list(graph.nodes) == [a, b, late, negative, total, output(graph)]


def test_order_of_a_long_chain():
    graph = Graph()
    x = graph.placeholder("x")
    nodes = [graph.call_function(operator.neg, (x,)) for _ in range(LONG)]
    for node, before in itertools.pairwise(nodes):
        node.args = (before,)
    graph.output([nodes[0]])
    sort(graph)
    graph.lint()
    assert list(graph.nodes)[1:-1] == nodes[::-1]


def test_a_step_that_is_a_long_chain(float64):
    x, bias = torch.randn(3, 2, 4), torch.randn(4)

    def chain(a):
        for place in range(400):
            a = a + 0.01 if place % 2 else a * 0.99
        return a

    class Cell:
        output_size = state_size = 4

        def __call__(self, inputs, state):
            new = torch.tanh(chain(inputs + state))
            return new, new

    def loop_fn(time, output, state, loop_state):
        return time >= 3, chain(x[time]) + chain(bias), torch.zeros(2, 4) if output is None else state, output, None

    expected = raw_rnn(Cell(), loop_fn, backend="reference")[0].stack()
    with torch.no_grad():
        for backend in ("stepwise", "native"):
            torch.testing.assert_close(raw_rnn(Cell(), loop_fn, backend=backend)[0].stack(), expected)
