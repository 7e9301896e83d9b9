"""Nodes as Python would write them. In: a node of a step graph; out: a short expression, and its sizes in a call."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from .. import trees
from ..capture import closure, ops, places
from ..capture.program import Program, Source
from ..capture.sizes import expression
from ..contract import Call, Port, Start
from ..optimise.graph import aten, operator_name, placeholders, value
from ..optimise.locality import shape

_DEPTH = 5  # of an expression, before it becomes "..."
_MODULES = re.compile(r"\._(?:parameters|modules|buffers)\['(\w+)'\]")

THROUGH = {
    aten._to_copy.default, aten.clone.default, aten.detach.default, aten.alias.default, aten.view.default, aten._unsafe_view.default,
    aten.reshape.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default,
    aten.contiguous.default, aten.lift_fresh_copy.default, torch.ops.prims.convert_element_type.default, ops.quiet, ops.guard, ops.within,
}  # fmt: skip
_INFIX = {
    "add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2), "floordiv": ("//", 2), "remainder": ("%", 2), "ge": (">=", 0),
    "gt": (">", 0), "le": ("<=", 0), "lt": ("<", 0), "eq": ("==", 0), "ne": ("!=", 0), "bitwise_or": ("|", 0), "bitwise_and": ("&", 0),
    "logical_or": ("|", 0), "logical_and": ("&", 0),
}  # fmt: skip


def tensor_names(call: Call) -> dict[int, str]:
    """The closed-over tensors by identity, each by the first name that it was found under."""
    walk = closure.walk(call.cell, call.loop_fn)
    foreign = type(call.cell).__name__ == "_TorchCell"  # the user knows the module in it
    found: dict[int, str] = {}
    for how, tensor, place in walk.facts:
        if how == "tensor":
            name = _MODULES.sub(r".\1", places.expression(place))
            found.setdefault(id(tensor), name.replace("cell.module.", "cell.", 1) if foreign else name)
    return found


def location(node: Any) -> str | None:
    return node.meta.get("stack_trace") if isinstance(node, Node) else None


class Sizes:
    """The sizes of a program's graphs in one call."""

    def __init__(self, program: Program, begun: Start, tensors: Sequence[torch.Tensor]) -> None:
        self.batch = begun.batch
        self.symbols = {name: tensors[place].shape[dim] for name, (place, dim) in program.symbols.items()}
        if not program.batch.is_number:
            self.symbols[str(program.batch)] = begun.batch

    def number(self, size: Any) -> int | str:
        """The size; its symbol where this call does not know it."""
        expr: Any = expression(size) if isinstance(size, (int, torch.SymInt)) else size
        expr = expr.subs({symbol: self.symbols[str(symbol)] for symbol in expr.free_symbols if str(symbol) in self.symbols})
        return int(expr) if expr.is_number else str(expr)

    def of(self, node: Node) -> list[int | str]:
        return [self.number(size) for size in shape(node)]


class Names:
    """The expressions of one graph's nodes."""

    def __init__(self, graph: Graph, sources: Sequence[Source], program: Program, names: Sequence[str]) -> None:
        self.source_of = dict(zip(placeholders(graph), sources, strict=True))
        self._tensors, self._module = names, program.module
        ports = {"inputs": program.inputs_port, "state": program.state_port, "loop_state": program.loop_state_port}
        self._paths = {kind: _paths(port) for kind, port in ports.items()}

    def source(self, source: Source) -> str:
        kind, place = source
        if kind == "tensor":
            return self._tensors[place]
        tree = kind.removesuffix(" array")
        if tree in self._paths:
            return {"inputs": "input"}.get(tree, tree) + self._paths[tree][place]
        if kind in ("initial inputs", "initial token", "token"):
            what = "input" if kind == "initial inputs" else "token"
            return ("first_" if kind != "token" else "") + what + self._paths["inputs"][place]
        return kind

    def text(self, node: Any, *, depth: int = _DEPTH, within: int = -1) -> str:
        """The expression; ``within`` is how strongly what stands around it binds."""
        if not isinstance(node, Node):
            return str(int(node)) if isinstance(node, float) and node.is_integer() else str(node)
        if node in self.source_of:
            return self.source(self.source_of[node])
        if node.op == "get_attr":
            constant = self.constant(node)
            return "a constant" if constant is None else str(constant)
        if depth == 0 or node.op != "call_function":
            return "..." if depth == 0 else node.name
        name = operator_name(node)
        if node.target in THROUGH:
            return self.text(node.args[0], depth=depth, within=within)
        if name in _INFIX and len(node.args) == 2 and not node.kwargs:
            sign, binds = _INFIX[name]
            left, right = (self.text(arg, depth=depth - 1, within=binds + place) for place, arg in enumerate(node.args))
            return f"({left} {sign} {right})" if binds < within else f"{left} {sign} {right}"
        return self._call(node, name, [self.text(arg, depth=depth - 1) for arg in node.args if isinstance(arg, (Node, int, float))])

    def constant(self, node: Node) -> Any:
        """The number that a tensor of the code itself holds; None of a larger one."""
        held = getattr(self._module, str(node.target), None) if node.op == "get_attr" else None
        return held.item() if isinstance(held, torch.Tensor) and held.numel() == 1 else None

    def _call(self, node: Node, name: str, arguments: list[str]) -> str:
        first = self.text(node.args[0], depth=_DEPTH - 1, within=3) if node.args and isinstance(node.args[0], Node) else ""
        if name == "sym_size":
            return f"{first}.shape[{node.args[1]}]"
        if name == "rsub":
            return f"{arguments[1]} - {arguments[0]}"
        if name in ("neg", "bitwise_not", "logical_not"):
            return f"{'-' if name == 'neg' else '~'}{self.text(node.args[0], within=3)}"
        if name in ("clamp", "minimum", "maximum"):
            low, high = (*node.args[1:], node.kwargs.get("min"), node.kwargs.get("max"))[:2] if name == "clamp" else (None, None)
            made = arguments[0] if low is None else f"max({arguments[0]}, {self.text(low)})"
            if name == "clamp":
                return made if high is None else f"min({made}, {self.text(high)})"
            return f"{name[:3]}({', '.join(arguments)})"
        if name in ("t", "numpy_T"):
            return f"{first}.T"
        if node.target is ops.read:
            dim: Any = node.args[2]
            return f"{first}[{':, ' * dim}{self.text(node.args[1])}]"
        if name in ("select", "slice", "permute", "transpose", "sum", "mean", "any", "all", "argmax"):
            return f"{first}.{name}(...)" if name in ("slice", "permute", "transpose") else f"{name}({arguments[0]})"
        return f"{name}({', '.join(arguments)})"


def through(node: Any) -> Any:
    """What a node has the elements of, conversions and views aside."""
    while isinstance(node, Node) and node.target in THROUGH:
        node = node.args[0]
    return node


def is_tensor(node: Any) -> bool:
    return isinstance(node, Node) and isinstance(node.meta.get("val"), torch.Tensor)


def dtype(node: Node) -> torch.dtype:
    return value(node).dtype  # type: ignore[no-any-return]


def _paths(port: Port | None) -> list[str]:
    return [] if port is None else trees.paths(port.structure)
