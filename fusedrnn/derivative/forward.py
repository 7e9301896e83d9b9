"""A loop that keeps what its derivative needs. In: a program; out: the same program with more emits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..capture.program import Program, Source, Target
from ..capture.refusal import NotCapturable
from ..capture.sizes import expression
from ..optimise.graph import aten, call, placeholders, value
from .core import Core, core
from .joint import Joint, joint
from .kept import Kept, forward_operands, kept

_ARRAYS = ("state array", "loop_state array")


@dataclass(frozen=True)
class Forward:
    """A loop that keeps what its derivative needs.

    Attributes:
        core, joint: the step and its derivative.
        program: emits what is kept behind its own emits.
        kept: what that is.
        choices: what there was to choose from: with the products kept, and with all but the state made again.
        emits: the place of each kept value among the emits.
        by_rows: whether such a value has the batch first; else it is emitted for every row.
    """

    core: Core
    joint: Joint
    program: Program
    kept: Kept
    choices: tuple[Kept, ...]
    emits: dict[Node, int]
    by_rows: dict[Node, bool]


def forward(program: Program, needed: frozenset[Source], *, again: bool = False) -> Forward:
    """A program that keeps what the gradients of these sources need.

    Args:
        needed: sources of the program that need a gradient, of the kinds "tensor", "inputs", "state" and "loop_state".
        again: keep the state alone, and make the rest again.

    Raises:
        NotCapturable: there is no derivative of it as a loop.
    """
    if any(source.kind in _ARRAYS for source in program.sources):
        raise NotCapturable("the loop reads a TensorArray that it writes, whose gradients run step by step")
    split = core(program)
    try:
        both = joint(split)
    except (RuntimeError, NotImplementedError) as error:
        raise NotCapturable(f"torch has no derivative of the step: {str(error).splitlines()[0]}") from error
    gradients = [gradient for _, gradient in wanted(split, both, needed).items() if gradient is not None]
    carried = [
        gradient
        for source, gradient in zip(both.wanted, both.gradients, strict=True)
        if isinstance(source, Source) and gradient is not None
    ]
    operands = forward_operands(both, [*gradients, *carried])
    choices = [kept(both, operands, program.batch, again=way) for way in (False, True)]
    found = choices[again] or choices[not again]
    if found is None:
        raise NotCapturable("the derivative of the step needs a value that cannot be kept")
    changed, emits, by_rows = _keeping(split, both, found, program)
    return Forward(split, both, changed, found, tuple(choice for choice in choices if choice is not None), emits, by_rows)


def wanted(split: Core, both: Joint, needed: frozenset[Source]) -> dict[Source | int, Node | None]:
    """The gradients that these sources need: of what is carried all, of what is known those that depend on them."""
    graph = split.hoisted.module.graph
    source_of = dict(zip(placeholders(graph), split.hoisted.sources, strict=True))
    depends: dict[Node, bool] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            source = source_of[node]
            plain = Source("inputs", source.place) if source.kind == "initial inputs" else source
            depends[node] = plain in needed
        else:
            depends[node] = any(depends[operand] for operand in node.all_input_nodes)
    return {
        source: gradient
        for source, gradient in zip(both.wanted, both.gradients, strict=True)
        if isinstance(source, Source) or depends[split.known[source]]
    }


def is_by_rows(made: torch.Tensor, batch: Any) -> bool:
    """Whether a value of a step has the batch first."""
    return bool(made.ndim) and expression(made.shape[0]) == batch


def _keeping(split: Core, both: Joint, choice: Kept, program: Program) -> tuple[Program, dict[Node, int], dict[Node, bool]]:
    """The program that emits what is kept too."""
    hoisted = split.hoisted
    root, graph = torch.nn.Module(), Graph()
    copies: dict[Node, Node] = {}
    for node in placeholders(hoisted.module.graph):
        copies[node] = copied_node(graph, node, copies, hoisted.module, root, "known")
    before = ancestors(split.known)
    for node in hoisted.module.graph.nodes:
        if node in before and node.op != "placeholder":
            copies[node] = copied_node(graph, node, copies, hoisted.module, root, "known")
    of_source = {source: copies[node] for node, source in zip(placeholders(hoisted.module.graph), hoisted.sources, strict=True)}
    taken = {node: of_source[source] for node, source in both.sources.items()}
    taken |= {mine: copies[node] for mine, node in zip(both.known, split.known, strict=True)}
    needed = ancestors([*both.made, *choice.nodes])
    for node in both.graph.nodes:
        if node in needed and node not in taken:
            taken[node] = copied_node(graph, node, taken, both.module, root, "step")
    returned, targets = [taken[node] for node in both.made], list(split.targets)
    last = next(node for node, source in both.sources.items() if source.kind == "finished")
    places: dict[Node, int] = {}
    by_rows: dict[Node, bool] = {}
    following = sum(target.kind == "emit" for target in targets)
    for node in choice.nodes:
        by_rows[node] = is_by_rows(value(node), program.batch)
        made = taken[node]
        if not by_rows[node]:
            rows = call(graph, aten.sym_size.int, taken[last], 0)
            made = call(graph, aten.expand.default, made, [rows, *_sizes(graph, made)], like=node)
        elif made.op == "placeholder" or made in returned:
            made = call(graph, aten.clone.default, made, like=node)
        places[node] = following
        targets.append(Target("emit", following))
        returned.append(made)
        following += 1
    graph.output(returned)
    graph.lint()
    origin = program.before[0] if program.before else program
    changed = dataclasses.replace(
        hoisted, module=GraphModule(root, graph), targets=tuple(targets), before=(origin, split.moved), plans={}
    )  # fmt: skip
    return changed, places, by_rows


def _sizes(graph: Graph, node: Node) -> list[Any]:
    return [
        size if isinstance(size, int) else call(graph, aten.sym_size.int, node, dim) for dim, size in enumerate(value(node).shape)
    ]  # fmt: skip


def copied_node(graph: Graph, node: Node, copies: dict[Node, Node], module: GraphModule, root: torch.nn.Module, prefix: str) -> Node:
    """A copy of a node in another graph; a constant is put into ``root`` too."""
    made = graph.node_copy(node, copies.__getitem__)
    if node.op == "get_attr":
        made.target = f"{prefix}_{str(node.target).replace('.', '_')}"
        constant = module
        for name in str(node.target).split("."):
            constant = getattr(constant, name)
        root.register_buffer(str(made.target), constant)  # type: ignore[arg-type]
    return made


def crossing(node: Node, batch: Any) -> list[Node]:
    """The operands of a node that are of rows and of a floating dtype, where what it makes is not: no finished row must go in."""
    made = value(node)
    results = [made] if isinstance(made, torch.Tensor) else list(made) if isinstance(made, (tuple, list)) else []
    if node.op != "call_function" or all(is_by_rows(one, batch) for one in results if isinstance(one, torch.Tensor)):
        return []
    return [operand for operand in node.all_input_nodes if _floats(value(operand)) and is_by_rows(value(operand), batch)]


def _floats(made: Any) -> bool:
    return isinstance(made, torch.Tensor) and (made.is_floating_point() or made.is_complex())


def ancestors(nodes: Sequence[Node]) -> set[Node]:
    """The nodes, and all that they are made of."""
    found, waiting = set[Node](), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found
