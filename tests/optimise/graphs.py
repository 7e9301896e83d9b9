"""Graphs for tests of passes. In: a function or a cell; out: its graph with symbolic sizes, which can run before and after a pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import fusedrnn
from fusedrnn.capture import cache, step
from fusedrnn.capture.sizes import expression
from fusedrnn.optimise.graph import value

SIZES = ((5, 7, 4), (2, 3, 6))  # of the symbols, in their order, at the first and at the second run


def traced(function: Callable, *shapes, dtypes=()) -> GraphModule:
    """The graph of a function of float64 tensors. In a shape "B" and "S" are symbols; ``dtypes`` are those of the first tensors."""
    shape_env = ShapeEnv()
    mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)

    def symbol(name: str, size: int):
        context = StatelessSymbolicContext([DimDynamic.DYNAMIC])
        return mode.from_tensor(torch.empty(size), symbolic_context=context, source=ConstantSource(name)).shape[0]

    symbols = {"B": symbol("b", 11), "S": symbol("s", 13)}
    dtypes = [*dtypes, *[torch.float64] * (len(shapes) - len(dtypes))]
    with mode:
        fakes = [torch.empty([symbols.get(size, size) for size in shape], dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        return make_fx(function)(*fakes)


class Foreign:
    """A cell made of a function."""

    def __init__(self, function, size, state_size=None):
        self.function, self.output_size, self.state_size = function, size, size if state_size is None else state_size

    def __call__(self, inputs, state):
        return self.function(inputs, state)


def captured(monkeypatch, cell, state=None):
    """The program of a loop of four rows with three inputs each and states of five."""
    found = []
    program = step.Capture.program
    monkeypatch.setattr(step.Capture, "program", lambda self: found.append(program(self)) or found[-1])
    x, lengths = torch.randn(6, 4, 3), torch.tensor([3, 4, 0, 6])
    state = torch.zeros(4, 5) if state is None else state

    def loop_fn(time, output, cell_state, loop_state):
        return time >= lengths, x[time], state if output is None else cell_state, output, None

    cache.clear()
    fusedrnn.raw_rnn(cell, loop_fn, backend="stepwise")
    return found[-1]


def placeholders(graph: Graph) -> list[Node]:
    return graph.find_nodes(op="placeholder")


def closed_over(program) -> set[Node]:
    return {
        node for node, source in zip(placeholders(program.module.graph), program.sources, strict=True) if source.kind in ("tensor", "seed")
    }


def finished_of(program) -> Node:
    return placeholders(program.module.graph)[[source.kind for source in program.sources].index("finished")]


def kinds(graph: Graph) -> Counter:
    """How often each operator stands there: "mm" for aten.mm.default."""
    return Counter(getattr(node.target, "_opname", node.target.__name__) for node in graph.nodes if node.op == "call_function")


class Checked:
    """A graph whose results are known before a pass runs."""

    def __init__(self, module: GraphModule, **fixed):
        """``fixed`` are the elements of the placeholders of some dtypes, by the dtype's name."""
        self.module, self.graph = module, module.graph
        self.symbols = self._symbols()
        self.guards = self._guards()
        generator = torch.Generator().manual_seed(1)
        self.runs = []
        for sizes in SIZES:
            bound = dict(zip(self.symbols, [*sizes, 3, 4, 5], strict=False))
            inputs = [_drawn(value(node), bound, generator, fixed) for node in placeholders(self.graph)]
            self.runs.append((bound, inputs, Interpreter(module).run(*inputs)))

    def _symbols(self):
        sizes = [size for node in placeholders(self.graph) for size in value(node).shape]
        return list(dict.fromkeys(symbol for size in sizes for symbol in sorted(expression(size).free_symbols, key=str)))

    def _guards(self) -> int:
        return len(value(placeholders(self.graph)[0]).fake_mode.shape_env.guards)

    def after(self, transform: Callable[[Graph], int], again: int | None = 0) -> int:
        """The number of changes of a pass, after all has been checked that holds for every pass."""
        changes = transform(self.graph)
        self.graph.lint()
        assert self._guards() == self.guards
        assert again is None or transform(self.graph) == again
        self.graph.lint()
        self.module.recompile()
        for bound, inputs, expected in self.runs:
            found = _Sized(self.module, bound).run(*inputs)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
        return changes


class _Sized(Interpreter):
    """Runs a graph and compares what the nodes make with what they say."""

    def __init__(self, module, bound):
        super().__init__(module)
        self.bound = bound

    def run_node(self, node):
        made = super().run_node(node)
        if isinstance(made, torch.Tensor) and node.op != "output":
            said = value(node)
            assert (made.dtype, list(made.shape)) == (said.dtype, _shape(said, self.bound)), node.format_node()
        return made


def _shape(fake, bound):
    return [int(expression(size).subs(bound)) for size in fake.shape]


def _drawn(fake, bound, generator, fixed):
    shape, dtype = _shape(fake, bound), fake.dtype
    if str(dtype).removeprefix("torch.") in fixed:
        return torch.full(shape, fixed[str(dtype).removeprefix("torch.")], dtype=dtype)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
    return torch.ones(shape, dtype=dtype)
