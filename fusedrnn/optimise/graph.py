"""Step graphs as passes see them. In: a graph whose nodes know their sizes; out: new nodes that know theirs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node

from ..capture import ops
from ..capture.program import Source

Pass = Callable[[Graph], int]  # rewrites a graph in place; how many places it changed

aten = torch.ops.aten

# Operators whose result holds the same elements in the same order, in the same dtype.
TRANSPARENT = {
    aten.clone.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default, aten.lift_fresh.default, ops.guard,
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.contiguous.default,
}  # fmt: skip


def value(node: Any) -> Any:
    """What a node makes: a tensor without data, whose sizes may be symbols; of a number the number itself."""
    return node.meta["val"] if isinstance(node, Node) else node


def fake_mode(graph: Graph) -> FakeTensorMode:
    """The mode that the graph's tensors without data belong to."""
    mode: FakeTensorMode = next(
        value(node).fake_mode for node in graph.nodes if isinstance(node.meta.get("val"), torch._subclasses.FakeTensor)
    )
    return mode


def call(graph: Graph, target: Any, *args: Any, like: Node | None = None, **kwargs: Any) -> Node:
    """A new node at the graph's insertion point; ``like`` is the node whose place in the user's code it shares."""
    node = graph.call_function(target, args, kwargs)
    fakes, fake_kwargs = pytree.tree_map_only(Node, value, (args, kwargs))
    with fake_mode(graph):
        node.meta["val"] = target(*fakes, **fake_kwargs)
    if like is not None and "stack_trace" in like.meta:
        node.meta["stack_trace"] = like.meta["stack_trace"]
    return node


def placeholders(graph: Graph) -> list[Node]:
    """What the graph takes, in order."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def output(graph: Graph) -> Node:
    """The node that returns."""
    found: Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return found


def outputs(graph: Graph) -> list[Any]:
    """What the graph returns, in order."""
    return list(output(graph).args[0])  # type: ignore[arg-type]


def copied(graph: Graph, instead: Mapping[Any, Any] = MappingProxyType({})) -> Graph:
    """A copy of the graph, with other functions in the place of some."""
    new = Graph()
    copies: dict[Node, Node] = {}
    for node in graph.nodes:
        copies[node] = new.node_copy(node, copies.__getitem__)
        copies[node].target = instead.get(node.target, node.target)
    return new


def made_of(graph: Graph, sources: Iterable[Source], kinds: Container[str]) -> set[Node]:
    """The nodes that depend on these kinds of sources only.

    Args:
        sources: of the placeholders, in order.
    """
    found: set[Node] = set()
    left = iter(sources)
    for node in graph.nodes:
        known = next(left).kind in kinds if node.op == "placeholder" else all(operand in found for operand in node.all_input_nodes)
        if known and node.op != "output":
            found.add(node)
    return found


def sort(graph: Graph) -> None:
    """Put the nodes behind what they read, the placeholders first; else they keep their order."""
    nodes = list(graph.nodes)
    last, order = output(graph), list[Node]()
    done: set[Node] = set()
    for root in [*placeholders(graph), *nodes]:
        waiting = [root]
        while waiting:
            node = waiting[-1]
            missing = [] if node in done else [operand for operand in node.all_input_nodes if operand not in done]
            if missing:
                waiting += reversed(missing)
                continue
            waiting.pop()
            if node not in done:
                done.add(node)
                order.append(node)
    for node in order:
        if node is not last:
            last.prepend(node)


def replace(node: Node, by: Any) -> None:
    """Use ``by`` wherever ``node`` was used, and drop the node."""
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def location(node: Node) -> str | None:
    """``file:line`` of the user's code that a node comes from."""
    return node.meta.get("stack_trace")


def operator_name(node: Node) -> str:
    """The name of what a node calls, without its overload; for one of several results, of what gave them."""
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return operator_name(node.args[0])
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet).rpartition(".")[2] if packet is not None else getattr(node.target, "__name__", str(node.target))


def show(graph: Graph) -> str:
    """The graph as text, a node a line, with dtypes and sizes: for reading between two passes."""
    lines = []
    for node in graph.nodes:
        if node.op == "output":
            lines.append(f"return {', '.join(map(str, pytree.tree_leaves(node.args[0])))}")
            continue
        made = value(node) if "val" in node.meta else None
        kind = (
            f"{str(made.dtype).removeprefix('torch.')}{[str(size) for size in made.shape]}".replace("'", "")
            if isinstance(made, torch.Tensor)
            else made
        )
        if node.op == "placeholder":
            lines.append(f"{node.name}: {kind}")
        else:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            lines.append(
                f"{node.name}: {kind} = {name}({', '.join(map(str, [*node.args, *[f'{k}={v}' for k, v in node.kwargs.items()]]))})"
            )
    return "\n".join(lines)
