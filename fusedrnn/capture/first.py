"""Capture of time 0. In: a call and what its time 0 settled; out: loop_fn's first call as a graph of the closed-over tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .. import contract, trees
from ..contract import Call, Start
from ..tensor_array import TensorArray
from . import ops
from .ops import PYTHON
from .program import Source, Target
from .refusal import NotCapturable
from .sizes import Fits
from .step import Capture, tracing
from .tracing import Tracing

aten = torch.ops.aten


@dataclass(frozen=True)
class First:
    """loop_fn's call at time 0.

    Attributes:
        run: the graph as a function of what its sources name.
        sources: "seed", "tensor" and "finished", of which only the size counts.
        targets: "finished" (``[B]``), "inputs", "state", "loop_state", "past" (``[B]`` bool, as of a step) and, in the place of an input
            that is an embedding's row, "token" (``[B]`` int64, anywhere within or outside of the embedding).
        fits: whether it holds for a batch size and the closed-over tensors.
    """

    run: Callable[..., Sequence[torch.Tensor]]
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
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
        used = self.without_unused(module)
        holds, _, _ = self.holds(fakes)
        if self.mode is not None and self.mode.met_stranger:
            raise NotCapturable("time 0 uses a tensor that was not found among what loop_fn closes over")
        self._fold_constants(module)
        for node in module.graph.nodes:
            node.target = PYTHON.get(node.target, node.target)  # without torch's dispatcher
        module.recompile()
        return First(module.forward, used, tuple(self.targets), holds)

    def _take_tokens(self, module: GraphModule, embeddings: Mapping[int, int]) -> None:
        """Tokens in the place of inputs that are rows of the embeddings."""
        graph = module.graph
        output = next(node for node in reversed(graph.nodes) if node.op == "output")
        outputs: list[Node] = list(output.args[0])
        source_of = dict(zip([node for node in graph.nodes if node.op == "placeholder"], self.sources, strict=True))
        for at, target in enumerate(list(self.targets)):
            if target.kind != "inputs" or target.place not in embeddings:
                continue
            made = outputs[at]
            read: Any = made.args[0] if made.target is aten.unsqueeze.default and made.args[1] == 0 else made
            if read.target is aten.embedding.default:
                table, token = read.args[:2]
            elif read is not made and read.target is ops.read and read.args[2] == 0:  # in a batch of one
                table, token = read.args[:2]
                self._drop_check(outputs, token)
            else:
                continue
            if source_of.get(table) != Source("tensor", embeddings[target.place]) or token.meta["val"].ndim > 1:
                continue
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
        past: Any = None if at is None else outputs[at]
        if at is not None and past.target is aten.bitwise_and.Tensor and past.args[0].target is aten.ge.Scalar and past.args[0].args[0] is token:
            del outputs[at], self.targets[at]

    def _fold_constants(self, module: GraphModule) -> None:
        """Compute once what depends on nothing, unless it goes to the user, who may change it."""
        graph = module.graph
        output = next(node for node in reversed(graph.nodes) if node.op == "output")
        known: dict[Node, torch.Tensor] = {}
        theirs = [node for node, target in zip(output.args[0], self.targets, strict=True) if target.kind in ("state", "loop_state")]
        for node in graph.nodes:
            if node.op == "get_attr":
                known[node] = getattr(module, node.target)
            elif node.op == "call_function" and all(operand in known for operand in node.all_input_nodes):
                with torch.no_grad():
                    made = node.target(*torch.fx.map_arg(node.args, known.__getitem__), **node.kwargs)
                if isinstance(made, torch.Tensor):
                    known[node] = made
        within = set(theirs)
        for node in reversed(graph.nodes):
            if node in within:
                within.update(node.all_input_nodes)
        for node, constant in known.items():
            if node.op == "call_function" and node not in within:
                name = f"_folded_{node.name}"
                module.register_buffer(name, constant)
                with graph.inserting_before(node):
                    node.replace_all_uses_with(graph.get_attr(name))
        graph.eliminate_dead_code()

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
