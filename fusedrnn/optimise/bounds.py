"""How many steps a loop can take at most. In: a program; out: sizes, each of which is a bound, as expressions of the graph's symbols."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.fx import Node

from ..capture import ops
from ..capture.program import Program, Source, Target
from ..capture.sizes import expression
from .graph import aten, outputs, placeholders, value

_OR = (aten.bitwise_or.Tensor, aten.logical_or.default, aten.__or__.Tensor)
_SAME = (aten.expand.default, aten.view.default, aten._to_copy.default, aten.clone.default, aten.detach.default, aten.unsqueeze.default)


def bounds(program: Program) -> list[sympy.Expr]:
    """The bounds: every row is finished at a time that the program compares with, or before an input that it reads step by step ends."""
    program = program.before[0] if program.before else program
    graph = program.module.graph
    clock = dict(zip(program.sources, placeholders(graph), strict=True)).get(Source("time"))
    if clock is None:
        return []
    made = dict(zip(program.targets, outputs(graph), strict=True))
    found = _compared(made[Target("finished")], clock)
    if Target("past") in made:  # a read past the end is an error for rows that are not finished
        for node in graph.nodes:
            if node.target is ops.read and node.args[1] is clock and not _is_conditional(node):
                found.append(expression(value(node.args[0]).shape[node.args[2]]))
    return found


def exact(program: Program) -> list[sympy.Expr]:
    """The times of which the first finishes every row, where nothing else finishes one: what is not finished at time 0 takes so many steps.
    Empty where a row may finish at another time."""
    program = program.before[0] if program.before else program
    graph = program.module.graph
    by_source = dict(zip(program.sources, placeholders(graph), strict=True))
    if Source("time") not in by_source:
        return []
    finished = dict(zip(program.targets, outputs(graph), strict=True))[Target("finished")]
    found: list[sympy.Expr] = []
    waiting: list[Any] = [finished]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Node):
            return []
        if node.target in _OR:
            waiting += node.args
        elif node.target in _SAME:
            waiting.append(node.args[0])
        elif node is not by_source.get(Source("finished")):
            times = _compared(node, by_source[Source("time")])
            if not times:
                return []
            found += times
    return found


def _compared(node: Node, clock: Node) -> list[sympy.Expr]:
    """The numbers with which the time is compared in ``a | b | time >= n``."""
    if not isinstance(node, Node):
        return []
    if node.target in _OR:
        return [bound for operand in node.args for bound in _compared(operand, clock)]  # type: ignore[arg-type]
    if node.target in _SAME:
        return _compared(node.args[0], clock)  # type: ignore[arg-type]
    if node.target == aten.ge.Scalar and node.args[0] is clock:
        number = value(node.args[1])
        if isinstance(number, (int, torch.SymInt)):
            return [expression(number)]
    return []


def _is_conditional(node: Node) -> bool:
    """Whether a read may be that of a branch of torch.cond, which may not be taken: then a where reads it."""
    return any(user.target == aten.where.self for user in node.users)
