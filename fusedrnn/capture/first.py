"""Capture of time 0. In: a call and what its time 0 settled; out: loop_fn's first call as a graph of the closed-over tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import contract, trees
from ..contract import Call, Start
from ..tensor_array import TensorArray
from .ops import PYTHON
from .program import Source, Target
from .refusal import NotCapturable
from .sizes import Fits
from .step import Capture, tracing
from .tracing import Tracing


@dataclass(frozen=True)
class First:
    """loop_fn's call at time 0.

    Attributes:
        run: the graph as a function of what its sources name.
        sources: "seed", "tensor" and "finished", of which only the size counts.
        targets: "finished" (``[B]``), "inputs", "state", "loop_state" and "past" (``[B]`` bool, as of a step).
        fits: whether it holds for a batch size and the closed-over tensors.
    """

    run: Callable[..., Sequence[torch.Tensor]]
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    fits: Fits


def capture_first(call: Call, begun: Start, tensors: Sequence[torch.Tensor]) -> First:
    """Raises as `fusedrnn.capture.step.capture`."""
    with tracing():
        return _First(call, begun, tensors, {}).first()


class _First(Capture):
    def first(self) -> First:
        module, fakes = self.traced()
        used = self.without_unused(module)
        holds, _, _ = self.holds(fakes)
        if self.mode is not None and self.mode.met_stranger:
            raise NotCapturable("time 0 uses a tensor that was not found among what loop_fn closes over")
        for node in module.graph.nodes:
            node.target = PYTHON.get(node.target, node.target)  # without torch's dispatcher
        module.recompile()
        return First(module.forward, used, tuple(self.targets), holds)

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
