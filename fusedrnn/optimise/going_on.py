"""What only a further step reads, made as if there were one. In: a program; out: one whose next inputs do not ask whether it has ended.

``torch.cond(finished.all(), zeros, read)`` is how TensorFlow's users guard the read of the next input. The loop ends where all rows are
finished, so what the next step reads may take for granted that some are not: that test would be all that ties the rows together.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..capture.program import Program, Target
from .graph import aten, call, copied, output, outputs, placeholders, value
from .simplify import dead_code, drop_no_ops, fold_constants

_OR = (aten.bitwise_or.Tensor, aten.logical_or.default)
_NOT = (aten.bitwise_not.default, aten.logical_not.default)
_ALL = (aten.all.default, aten.all.dim)
_ANY = (aten.any.default, aten.any.dim)
_FOR_A_STEP = ("inputs", "past")  # a row that is finished has not read past an end


def going_on(program: Program) -> Program:
    """The program, a copy if anything changes."""
    graph = copied(program.module.graph)
    finished = [node for node, source in zip(placeholders(graph), program.sources, strict=True) if source.kind == "finished"]
    if not assume_going_on(graph, program.targets, finished):
        return program
    graph.lint()
    return dataclasses.replace(program, module=GraphModule(program.module, graph), plans={})


def assume_going_on(graph: Graph, targets: tuple[Target, ...], finished: list[Node]) -> int:
    """Let what only the next step reads be made as if not all rows were finished; how many tests of that are gone.

    Args:
        targets: of the graph's outputs.
        finished: the flags that the step gets, if it reads them.
    """
    kinds = [target.kind for target in targets]
    tests = _tests(graph, _ending(outputs(graph)[kinds.index("finished")], finished))
    if not tests:
        return 0
    made, copies = outputs(graph), dict[Node, Node]()
    for node, known in tests.items():
        with graph.inserting_after(node):
            copies[node] = call(graph, aten.full.default, value(node).shape, known, dtype=torch.bool, device=value(node).device)
    wanted = _before([node for kind, node in zip(kinds, made, strict=True) if kind in _FOR_A_STEP])
    changed = 0
    for node in list(graph.nodes):
        operands = [operand for operand in node.all_input_nodes if operand in copies]
        if node.op != "call_function" or node in copies or node not in wanted or not operands:
            continue
        with graph.inserting_after(node):
            copies[node] = graph.node_copy(node, lambda operand: copies.get(operand, operand))
        changed += sum(operand in tests for operand in operands)
    if changed:
        output(graph).args = ([copies.get(node, node) if kind in _FOR_A_STEP else node for kind, node in zip(kinds, made, strict=True)],)
    dead_code(graph)
    while changed and fold_constants(graph) + drop_no_ops(graph, differentiable=True):
        dead_code(graph)
    return changed


def _ending(finished: Any, given: list[Node]) -> set[Node]:
    """The flags of rows ``[B]`` that are the loop's own or among those that it puts together: where all of them are set, it ends."""
    found, waiting = set(given), [finished]
    while waiting:
        node = waiting.pop()
        if node in found or value(node).ndim != 1:
            continue
        found.add(node)
        if node.op == "call_function" and node.target in _OR and value(node).dtype == torch.bool:
            waiting += node.all_input_nodes
    return found


def _tests(graph: Graph, ending: set[Node]) -> dict[Node, bool]:
    """What asks whether all of such flags are set, or any is not, with the answer where the loop goes on."""
    found = {}
    for node in graph.nodes:
        if node.target in (*_ALL, *_ANY):
            flags = node.args[0]
            if node.target in _ALL and flags in ending:
                found[node] = False
            elif node.target in _ANY and flags.target in _NOT and flags.args[0] in ending:
                found[node] = True
    return found


def _before(nodes: list[Node]) -> set[Node]:
    """The nodes, and all that they are made of."""
    found: set[Node] = set()
    while nodes:
        node = nodes.pop()
        if node not in found:
            found.add(node)
            nodes += node.all_input_nodes
    return found
