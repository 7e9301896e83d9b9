"""What a step does, recognised. In: the graph of a step as it was captured; out: its reads, its feedback and how its rows finish."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from ..capture import ops
from ..capture.program import Program, Source, Target
from ..capture.sizes import expression
from ..optimise.graph import aten, made_of, operator_name, outputs, value
from ..optimise.locality import shape
from .facts import Bound, Embedding, Feedback, Finish, Read
from .names import Names, Sizes, dtype, is_tensor, location, through

_PICKS = {aten.argmax.default, aten.max.dim, aten.topk.default, aten.sort.default, aten.sort.stable}
_LOOK_UPS = {aten.index.Tensor: None, aten.gather.default: 1, aten.index_select.default: 1}  # and where their dimension stands
_INVARIANT = ("tensor", "seed")
_COMPARISONS = {
    "ge": "ge", "gt": "gt", "le": "le", "lt": "lt", "eq": "eq", "ne": "ne", "greater_equal": "ge", "greater": "gt",
    "less_equal": "le", "less": "lt",
}  # fmt: skip
_FLIPPED = {"ge": "le", "gt": "lt", "le": "ge", "lt": "gt", "eq": "eq", "ne": "ne"}
_NEGATED = {"ge": "lt", "gt": "le", "le": "gt", "lt": "ge", "eq": "ne", "ne": "eq"}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "eq": "==", "ne": "!="}
_MOST_LENGTHS = 1 << 20  # elements of a tensor of lengths that is looked at


class Recognised:
    """The facts of one graph, which `simplify` went over.

    Attributes:
        reads, feedback, finished, bounds: as `fusedrnn.explanation.facts.Step` has them.
        draws: the number of random draws.
    """

    def __init__(self, graph: Graph, program: Program, names: Names, sizes: Sizes, tensors: Sequence[torch.Tensor]) -> None:
        self.graph, self.program, self.names, self.sizes, self.tensors = graph, program, names, sizes, tensors
        self.source_of: dict[Node, Source] = names.source_of
        self.outputs: dict[Target, Node] = dict(zip(program.targets, outputs(graph), strict=True))
        self.invariant = self._only(_INVARIANT)
        self.bounds: list[Bound] = []
        self.reads = list(self._reads())
        self.feedback = [self._feedback(target, node) for target, node in self.outputs.items() if target.kind == "inputs"]
        self.finished = list(self._finished())
        self.draws = sum(node.target is ops.draw for node in graph.nodes)

    def _only(self, kinds: Container[str]) -> set[Node]:
        """The nodes that depend on these kinds of sources only."""
        return made_of(self.graph, self.source_of.values(), kinds)

    # Reads

    def _reads(self) -> Iterator[Read]:
        for node in self.graph.nodes:
            if node.target is ops.read:
                x, index, dim = node.args
                yield self._read(node, x, index, dim % len(shape(x)))
                self._bound_of_read(x, index, dim % len(shape(x)))
            elif node.target in _LOOK_UPS and (found := self._looked_up(node)) is not None:
                yield self._read(node, *found)

    def _looked_up(self, node: Node) -> tuple[Node, Any, int] | None:
        """What, by which index and along which dimension a node looks up a place that is not known before the loop; None for the rows of a
        table, and for what the step itself made."""
        arguments: tuple[Any, ...] = node.args
        x = arguments[0]
        if x not in self.invariant and not (x in self.source_of and self.source_of[x].kind.endswith(" array")):
            return None
        if node.target is aten.index.Tensor:
            given = [(dim, index) for dim, index in enumerate(arguments[1]) if index is not None]
        else:
            given = [(arguments[1] % len(shape(x)), arguments[2])]
        moving = [(dim, index) for dim, index in given if index not in self.invariant]
        has_rows = len(given) > 1 or any(size == self.program.batch for size in shape(x))
        if not moving or not (has_rows or any(self._is_timed(index) for _, index in moving)):
            return None
        return x, moving[0][1], moving[0][0]

    def _is_timed(self, node: Any) -> bool:
        return any(self.source_of[found].kind == "time" for found in self._cone(node) if found in self.source_of)

    def _read(self, node: Node, x: Node, index: Any, dim: int) -> Read:
        per_row = is_tensor(index) and bool(shape(through(index)))
        return Read(
            self.names.text(x), self.sizes.of(x), dim, self.names.text(self._unclamped(index, x, dim)), per_row, location(node)
        )  # fmt: skip

    def _unclamped(self, index: Any, x: Node, dim: int) -> Any:
        """The index without the bound that every look-up has."""
        if isinstance(index, Node) and index.target is aten.clamp.default:
            low, high = (*index.args[1:], None, None)[:2]
            known = value(high)
            if low is None and isinstance(known, (int, torch.SymInt)) and expression(known) == shape(x)[dim] - 1:
                return index.args[0]
        return index

    def _bound_of_read(self, x: Node, index: Any, dim: int) -> None:
        """A row that is not finished may not look past the end."""
        place, size = affine(index, self._is_time), self.sizes.number(shape(x)[dim])
        if place is not None and place[0] == 1 and isinstance(size, int) and Target("past") in self.outputs:
            because = f"{self.names.text(x)} is read at {self.names.text(index)} and has {size}"
            self.bounds.append(Bound(max(size - place[1], 0), because))

    def _is_time(self, node: Any) -> bool:
        return node in self.source_of and self.source_of[node].kind == "time"

    # Feedback

    def _cone(self, *roots: Any, conditions: bool = True, stop: Any = None) -> set[Node]:
        """What nodes are made of, through the loop_state that the step before left; ``conditions``: also what only chooses."""
        found: set[Node] = set()
        waiting = [root for root in roots if isinstance(root, Node)]
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found.add(node)
            if node is stop:
                continue
            if node in self.source_of:
                source = self.source_of[node]
                before = self.outputs.get(Target(source.kind, source.place)) if source.kind == "loop_state" else None
                waiting += [] if before is None else [before]
            elif node.target in (ops.quiet, ops.guard):
                waiting.append(node.args[0])  # type: ignore[arg-type]
            elif not conditions and operator_name(node) == "where":
                waiting += [arg for arg in node.args[1:] if isinstance(arg, Node)]
            elif not conditions and operator_name(node) == "masked_fill":
                waiting += [arg for arg in (node.args[0], node.args[2]) if isinstance(arg, Node)]
            else:
                waiting += node.all_input_nodes
        return found

    def _kinds(self, cone: set[Node]) -> set[str]:
        return {self.source_of[node].kind for node in cone if node in self.source_of} - {"finished"}

    def _feedback(self, target: Target, node: Node) -> Feedback:
        cone = self._cone(node, conditions=False)
        picks = {found for found in cone if found.target in _PICKS and self._kinds(self._cone(found)) & {"state", "inputs"}}
        kind, pick = self._kind(node, cone, picks)
        embedding, token = self._embedding(cone, picks)
        if kind == "greedy" and token is not None and not self._is_pick(token):
            kind, pick = "computed", None
        return Feedback(self.names.source(Source("inputs", target.place)), kind, pick, embedding, location(through(node)) or location(node))

    def _kind(self, node: Node, cone: set[Node], picks: set[Node]) -> tuple[str, str | None]:
        if picks:
            drawn = any(found.target is ops.draw for pick in picks for found in self._cone(pick))
            pick = "sampled" if drawn else "greedy"
            for choice in cone:
                if operator_name(choice) != "where" or len(choice.args) != 3:
                    continue
                branches = [self._cone(branch) for branch in choice.args[1:]]
                picked = [bool(branch & picks) for branch in branches]
                if any(picked) and not all(picked) and self._is_read(branches[picked.index(False)]):
                    random = any(found.target is ops.draw for found in self._cone(choice.args[0]))
                    return ("scheduled" if random else "forced"), pick
            return pick, pick
        made_of, chosen_by = self._kinds(cone), self._kinds(self._cone(node))
        carried = {"state", "inputs", "loop_state", "state array", "loop_state array"}
        if not chosen_by & carried:
            return "none", None
        looked = through(node)
        if not made_of & carried or (isinstance(looked, Node) and (looked.target in _LOOK_UPS or looked.target is ops.read)):
            return "computed", None
        return ("output" if made_of & {"state", "inputs"} else "computed"), None

    def _is_read(self, branch: set[Node]) -> bool:
        return any(found.target is ops.read or found.target in _LOOK_UPS for found in branch)

    def _is_pick(self, token: Node) -> bool:
        """Whether a token is the best one itself, on some condition: not another one, nor computed from it."""
        waiting: list[Any] = [token]
        seen: set[Node] = set()
        while waiting:
            node = through(waiting.pop())
            if not isinstance(node, Node) or node in seen:
                continue
            seen.add(node)
            name = operator_name(node)
            if node.target in _PICKS:
                return bool(node.target is not aten.topk.default or node.args[1] == 1)
            if name in ("where", "masked_fill"):
                waiting += node.args[1:] if name == "where" else node.args[:1]
            elif name in ("getitem", "select", "slice"):
                waiting.append(node.args[0])
            elif node in self.source_of and self.source_of[node].kind == "loop_state":
                waiting.append(self.outputs.get(Target("loop_state", self.source_of[node].place)))
        return False

    def _embedding(self, cone: set[Node], picks: set[Node]) -> tuple[Embedding | None, Any]:
        """The table that tokens are looked up in, picked ones or such as are read, and the token."""
        for node in self.graph.nodes:
            if node not in cone:
                continue
            if node.target is aten.embedding.default:
                table, token = node.args[:2]
            elif node.target is aten.index_select.default and node.args[1] == 0:
                table, token = node.args[0], node.args[2]
            elif node.target is aten.index.Tensor and len(node.args[1]) == 1:
                table, token = node.args[0], node.args[1][0]
            else:
                continue
            behind = self._cone(token)
            if table in self.invariant and (behind & picks or (not picks and self._is_read(behind))):
                sizes = self.sizes.of(table)
                return Embedding(self.names.text(table), sizes, sizes[0], location(node)), token
        return None, None

    # Finished

    def _finished(self) -> Iterator[Finish]:
        for node in dict.fromkeys(self._alternatives(self.outputs[Target("finished")])):
            constant = _constant(node) if node.op == "call_function" else self.names.constant(node)
            if constant is None:
                yield self._condition(node)
            elif constant:
                self.bounds.append(Bound(1, "every row is finished after the first step"))
                yield Finish("steps", "True", location(node))

    def _alternatives(self, node: Any) -> Iterator[Node]:
        """The conditions that `or` joins, without that of having been finished before."""
        node = through(node)
        if isinstance(node, Node) and operator_name(node) in ("bitwise_or", "logical_or", "__or__"):
            for operand in node.args:
                yield from self._alternatives(operand)
        elif isinstance(node, Node) and not (node in self.source_of and self.source_of[node].kind == "finished"):
            yield node

    def _condition(self, node: Node) -> Finish:
        compared = self._compared(node)
        where = location(node)
        if compared is None:
            return Finish("computed", self.names.text(node), where)
        how, left, right = compared
        place = affine(left, self._is_time)
        if place is not None and place[0] == 1 and how in ("ge", "gt", "eq"):
            return self._reached(node, how, left, right, place[1] - (how == "gt"))
        made = through(left)
        picked = isinstance(made, Node) and not dtype(made).is_floating_point and dtype(made) != torch.bool
        if picked and how == "eq" and isinstance(right, (int, float)) and made not in self.invariant:
            made_by = self._cone(left)
            token = any(found.target in _PICKS for found in made_by) or any(
                "token" in self.names.text(found) for found in made_by & set(self.source_of)
            )
            if token:
                return Finish("token", f"token == {self.names.text(right)}", where)
        return Finish("computed", self.names.text(node), where)

    def _reached(self, node: Node, how: str, left: Any, right: Any, ahead: int) -> Finish:
        """The time, ``ahead`` of itself, reaches something."""
        where = location(node)
        text = f"{self.names.text(left)} {_SIGNS[how]} {self.names.text(right)}"
        limit: Any = value(right) if isinstance(right, Node) else right
        if isinstance(limit, (int, torch.SymInt)) and not isinstance(limit, bool):
            limit = self.sizes.number(limit)
            if isinstance(limit, int):
                self.bounds.append(Bound(max(limit - ahead, 1), text))
            return Finish("steps", text, where)
        if not is_tensor(right):
            return Finish("computed", text, where)
        if right not in self.invariant:
            return Finish("computed", text, where)
        lengths = self.source_of.get(through(right))
        if lengths is not None and lengths.kind == "tensor":
            tensor = self.tensors[lengths.place]
            if tensor.device.type == "cpu" and not tensor.is_floating_point() and 0 < tensor.numel() <= _MOST_LENGTHS:
                largest = int(tensor.max())
                self.bounds.append(Bound(max(largest - ahead, 0), f"the largest of {self.names.text(right)} is {largest}"))
        return Finish("lengths", text, where)

    def _compared(self, node: Node, negated: bool = False) -> tuple[str, Any, Any] | None:
        """A comparison as (how, left, right), the time on the left; of a constant the right."""
        node = through(node)
        if node.op != "call_function":
            return None
        name = operator_name(node)
        if name in ("bitwise_not", "logical_not"):
            return self._compared(node.args[0], not negated)  # type: ignore[arg-type]
        if name not in _COMPARISONS:
            return None
        how, (left, right) = _COMPARISONS[name], node.args
        if negated:
            how = _NEGATED[how]
        place = affine(right, self._is_time)
        if place is not None and place[0] != 0:
            how, left, right = _FLIPPED[how], right, left
        constant = _scalar(right)
        return how, left, right if constant is None else constant


def affine(node: Any, is_time: Any) -> tuple[int, int] | None:
    """A number as ``(slope, offset)``: slope * time + offset; None of anything else."""
    node = through(node)
    if isinstance(node, bool) or not isinstance(node, (int, Node)):
        return None
    if isinstance(node, int):
        return 0, node
    if is_time(node):
        return 1, 0
    if node.op != "call_function":
        return None
    name, constant = operator_name(node), _scalar(node)
    if constant is not None:
        return (0, constant) if isinstance(constant, int) else None
    if name not in ("add", "sub", "rsub", "mul", "neg") or node.kwargs:
        return None
    operands = [affine(arg, is_time) for arg in node.args]
    if any(operand is None for operand in operands):
        return None
    (a, b), (c, d) = (*operands, (0, 0))[:2]  # type: ignore[misc]
    if name == "mul":
        return (a * d + c * b, b * d) if not (a and c) else None
    if name == "rsub":
        (a, b), (c, d) = (c, d), (a, b)
    sign = {"add": 1, "sub": -1, "rsub": -1}.get(name, 0)
    return (-a, -b) if name == "neg" else (a + sign * c, b + sign * d)


def _scalar(node: Any) -> int | float | None:
    """The number that a node fills a tensor with."""
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    filled = node.args[1] if node.target is aten.full.default else node.args[0] if node.target is aten.scalar_tensor.default else None
    return filled if isinstance(filled, (int, float)) else None


def _constant(node: Node) -> bool | None:
    """The bool that a tensor is filled with."""
    filled = _scalar(node)
    if filled is not None:
        return bool(filled)
    return (
        {"zeros": False, "zeros_like": False, "ones": True, "ones_like": True}.get(operator_name(node))
        if node.op == "call_function"
        else None
    )
