"""Capture of time 0. In: a call and what its time 0 settled; out: loop_fn's first call as a graph of the closed-over tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg

from .. import contract, trees
from ..contract import Call, Start
from ..tensor_array import TensorArray
from . import ops
from .ops import PYTHON
from .program import Source, Target
from .refusal import NotCapturable
from .sizes import Fits, expression
from .step import Capture, tracing
from .tracing import Tracing

aten = torch.ops.aten

_VIEWS = {
    aten.select.int, aten.slice.Tensor, aten.view.default, aten.expand.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.permute.default, aten.transpose.int, aten.t.default, aten.alias.default, aten.detach.default, aten.sym_size.int,
}  # fmt: skip

# Operators whose operand counts for its shape, dtype and device alone, and what they fill in.
_FILLS: dict[Any, Callable[[Node], Any]] = {
    aten.full_like.default: lambda node: node.args[1],
    aten.zeros_like.default: lambda _: 0,
    aten.ones_like.default: lambda _: 1,
    aten.new_full.default: lambda node: node.args[2],
    aten.new_zeros.default: lambda _: 0,
    aten.new_ones.default: lambda _: 1,
}


@dataclass(frozen=True)
class First:
    """loop_fn's call at time 0.

    Attributes:
        run: the graph as a function of what its sources name; None where it computes nothing.
        sources: "seed", "tensor" and "finished", of which only the size counts.
        known: what need not be computed: a constant or a closed-over tensor.
        targets: what `run` returns: "finished" (``[B]``), "inputs", "state", "loop_state", "past" (``[B]`` bool, as of a step) and, in the
            place of an input that is an embedding's row, "token" (``[B]`` int64, anywhere within or outside of the embedding).
        looked_at: the places of the closed-over tensors that something is computed of: not only views.
        fits: whether it holds for the closed-over tensors, and the batch size that it was captured for.
    """

    run: Callable[..., Sequence[torch.Tensor]] | None
    sources: tuple[Source, ...]
    known: tuple[tuple[Target, torch.Tensor | Source], ...]
    targets: tuple[Target, ...]
    looked_at: frozenset[int]
    fits: Fits


def capture_first(call: Call, begun: Start, tensors: Sequence[torch.Tensor], embeddings: Mapping[int, int]) -> First:
    """Raises as `fusedrnn.capture.step.capture`.

    Args:
        embeddings: of the inputs whose tokens are enough where they are rows of an embedding: its place among the tensors.
    """
    with tracing():
        return _First(call, begun, tensors, {}).first(embeddings)


class _First(Capture):
    def first(self, embeddings: Mapping[int, int]) -> First:
        module, fakes = self.traced()
        self._take_tokens(module, embeddings)
        holds, batch, _ = self.holds(fakes)
        if self.mode is not None and self.mode.met_stranger:
            raise NotCapturable("time 0 uses a tensor that was not found among what loop_fn closes over")
        known = self._take_known(module, self._constants(module, batch))
        used = self.without_unused(module)
        looked_at = self._looked_at(module, used)
        looked_at |= {source.place for target, source in known if target.kind == "token" and isinstance(source, Source)}
        for node in module.graph.nodes:
            node.target = PYTHON.get(node.target, node.target)  # without torch's dispatcher
        module.recompile()
        return First(module.forward if self.targets else None, used, known, tuple(self.targets), frozenset(looked_at), holds)

    def _take_tokens(self, module: GraphModule, embeddings: Mapping[int, int]) -> None:
        """Tokens in the place of inputs that are rows of the embeddings."""
        graph = module.graph
        output = next(node for node in reversed(graph.nodes) if node.op == "output")
        outputs: list[Node] = list(output.args[0])
        source_of = dict(zip([node for node in graph.nodes if node.op == "placeholder"], self.sources, strict=True))
        for at, target in enumerate(list(self.targets)):
            if target.kind != "inputs" or target.place not in embeddings:
                continue
            made: Any = outputs[at]
            is_read = made.target is aten.unsqueeze.default and made.args[1] == 0 and _is_row(made.args[0])  # in a batch of one
            if is_read:
                made = made.args[0]
            elif made.target is not aten.embedding.default:
                continue
            table, token = made.args[:2]
            if source_of.get(table) != Source("tensor", embeddings[target.place]) or token.meta["val"].ndim > 1:
                continue
            if is_read:
                self._drop_check(outputs, token)
            while token.target is aten.view.default and token.args[0].meta["val"].ndim < 2:
                token = token.args[0]
            with graph.inserting_before(output):
                outputs[at] = token if token.meta["val"].ndim else graph.call_function(aten.view.default, (token, [-1]))
                if token.meta["val"].dtype != torch.int64:
                    outputs[at] = graph.call_function(aten._to_copy.default, (outputs[at],), {"dtype": torch.int64})
            self.targets[at] = Target("token", target.place)
        output.args = (outputs,)

    def _drop_check(self, outputs: list[Node], token: Node) -> None:
        """That a token is within its embedding is checked by whoever takes the token, if nothing else was looked up."""
        at = next((at for at, target in enumerate(self.targets) if target.kind == "past"), None)
        if at is None or outputs[at].target is not aten.bitwise_and.Tensor:
            return
        looked_up: Any = outputs[at].args[0]
        if looked_up.target is aten.ge.Scalar and looked_up.args[0] is token:
            del outputs[at], self.targets[at]

    def _constants(self, module: GraphModule, batch: sympy.Expr) -> dict[Node, torch.Tensor]:
        """What depends on nothing but the batch size, computed."""
        found: dict[Node, torch.Tensor] = {}
        for node in module.graph.nodes:
            if node.target is aten.sym_size.int and expression(node.meta["val"]) == batch:
                node.replace_all_uses_with(self.begun.batch)
        for node in module.graph.nodes:
            if node.op == "get_attr":
                found[node] = getattr(module, node.target)
            elif node.target in _FILLS:
                made = node.meta["val"]
                shape = [self.begun.batch if expression(size) == batch else size for size in made.shape]
                fill = _FILLS[node.target](node)
                if all(isinstance(size, int) for size in shape) and isinstance(fill, (bool, int, float)):
                    found[node] = torch.full(shape, fill, dtype=made.dtype, device=made.device)
            elif node.target is aten.ge.Scalar and node.args[0] in found and isinstance(node.args[1], Node):  # the time, with a size
                left, size = found[node.args[0]], node.args[1].meta["val"]
                if left.ndim == 0 and statically_known_true(left.item() < size):
                    found[node] = torch.zeros((), dtype=torch.bool, device=left.device)
            elif node.op == "call_function" and all(operand in found for operand in node.all_input_nodes):
                with torch.no_grad():
                    constant = node.target(*map_arg(node.args, found.__getitem__), **node.kwargs)
                if isinstance(constant, torch.Tensor):
                    found[node] = constant
        return found

    def _take_known(self, module: GraphModule, constants: dict[Node, torch.Tensor]) -> tuple[tuple[Target, torch.Tensor | Source], ...]:
        """The outputs that need not be computed, which then are none of the graph's; constants elsewhere become its attributes."""
        graph = module.graph
        output = next(node for node in reversed(graph.nodes) if node.op == "output")
        source_of = dict(zip([node for node in graph.nodes if node.op == "placeholder"], self.sources, strict=True))
        known: list[tuple[Target, torch.Tensor | Source]] = []
        computed: list[tuple[Target, Node]] = []
        for target, node in zip(self.targets, output.args[0], strict=True):
            if node in source_of and source_of[node].kind == "tensor":
                known.append((target, source_of[node]))
            elif node in constants and target.kind not in ("state", "loop_state"):  # those go to the user, who may change them
                known.append((target, constants[node].contiguous()))
            else:
                computed.append((target, node))
        self.targets = [target for target, _ in computed]
        output.args = ([node for _, node in computed],)
        theirs = {node for target, node in computed if target.kind in ("state", "loop_state")}
        for node in reversed(graph.nodes):
            if node in theirs:
                theirs.update(node.all_input_nodes)
        for node, constant in constants.items():
            if node.op == "call_function" and node not in theirs:
                name = f"_known_{node.name}"
                module.register_buffer(name, constant)
                with graph.inserting_before(node):
                    node.replace_all_uses_with(graph.get_attr(name))
        return tuple(known)

    def _looked_at(self, module: GraphModule, sources: Sequence[Source]) -> set[int]:
        """The closed-over tensors that the graph does more with than to hand views of them on."""
        graph = module.graph
        computed = {
            node
            for target, node in zip(self.targets, next(node for node in reversed(graph.nodes) if node.op == "output").args[0], strict=True)
            if target.kind in ("token", "past")  # they are checked
        }
        for node in reversed(graph.nodes):
            viewed = node.op == "placeholder" or node.target in _VIEWS
            if node.op == "call_function" and (not viewed or node in computed):
                computed.update(node.all_input_nodes)
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        return {source.place for node, source in zip(placeholders, sources, strict=True) if node in computed and source.kind == "tensor"}

    def fakes(self) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        with self.fake_mode:  # for its size: the batch size may stand in no closed-over tensor
            self.sources.append(Source("finished"))
            found.append(torch.empty((self.batch,), dtype=torch.bool, device=self.begun.device))
        self.add_closed_over(found)
        return found

    def traced_outputs(self, mode: Tracing, by_kind: dict[str, dict[int, torch.Tensor]]) -> list[torch.Tensor]:
        mode.who, mode.starts = "loop_fn", True
        result = mode.stood_in(contract.asked(self.call, mode.clock, None, None, None))
        finished, inputs, state, _, loop_state = contract.unpacked(result, 0)
        begun = self.symbolic_start()
        outputs: list[torch.Tensor] = []

        def put(kind: str, place: int, value: torch.Tensor) -> None:
            self.targets.append(Target(kind, place))
            outputs.append(value)

        flags = contract.finished_flags(finished, begun.batch, begun.device, 0)
        put("finished", 0, flags)
        for kind, tree, port in (
            ("inputs", inputs, begun.inputs_port), ("state", state, begun.state_port), ("loop_state", loop_state, begun.loop_state_port),
        ):  # fmt: skip
            if port is None:
                continue
            for place, leaf in enumerate(port.check(tree, 0)):
                if isinstance(leaf, TensorArray):
                    raise NotCapturable(f"{kind}{trees.paths(port.structure)[place]} at time 0 is a TensorArray", None)
                put(kind, place, leaf)
        if mode.past_end:
            pasts = [past if past.ndim == 0 or past.shape == flags.shape else past.any() for past in mode.past_end]
            put("past", 0, functools.reduce(torch.bitwise_or, pasts) & ~flags)
        return outputs

    def clock_of(self, by_kind: dict[str, dict[int, Any]]) -> torch.Tensor:
        return torch.zeros((), dtype=torch.int32)


def _is_row(node: Any) -> bool:
    return node.target is ops.read and node.args[2] == 0
