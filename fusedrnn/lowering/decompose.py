"""Operators without a rule, as operators with one. In: a program; out: a graph that the lowering knows, or the operator it does not."""

from __future__ import annotations

from typing import Any

import torch
from torch._decomp import decomposition_table
from torch.fx import Graph, Interpreter, Node
from torch.fx import traceback as node_meta
from torch.fx.experimental.proxy_tensor import make_fx

from ..optimise.graph import fake_mode
from . import operators, pointwise
from .operators import Unlowered


def decomposed(graph: Graph, module: torch.nn.Module) -> torch.fx.GraphModule:
    """The graph in operators that have a rule, with the constants of ``module``.

    Raises:
        Unlowered: there are operators that torch cannot take apart either.
    """
    if all(operators.is_lowered(node) for node in graph.nodes):
        return torch.fx.GraphModule(module, graph)
    table = {
        target: rule for target, rule in decomposition_table.items() if target not in operators.RULES and target not in pointwise.TABLE
    }
    table[torch.ops.aten.var.correction] = _variance
    placeholders = [node.meta["val"] for node in graph.nodes if node.op == "placeholder"]
    whole = torch.fx.GraphModule(module, graph)

    class Located(Interpreter):
        def run_node(self, node: Node) -> Any:
            node_meta.current_meta["stack_trace"] = node.meta.get("stack_trace")
            return super().run_node(node)

    with fake_mode(graph), node_meta.preserve_node_meta(), torch.no_grad():
        made = make_fx(lambda *arguments: Located(whole).run(*arguments), decomposition_table=table)(*placeholders)
    made.graph.eliminate_dead_code()
    for node in made.graph.nodes:
        if not operators.is_lowered(node):
            raise Unlowered(node)
    return made


def _variance(x: torch.Tensor, dim: Any = None, *, correction: float | None = None, keepdim: bool = False) -> torch.Tensor:
    dims = list(range(x.ndim)) if dim is None or dim == [] else [d % x.ndim for d in dim]
    count: Any = 1
    for d in dims:
        count = count * x.shape[d]
    from_mean = x - x.mean(dims, keepdim=True)
    correction = 1 if correction is None else correction
    return (from_mean * from_mean).sum(dims, keepdim=keepdim) / max(count - correction, 0)
