"""Models to serve in tests, small enough to compile in a second. Each can also be run alone, through `raw_rnn`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import fusedrnn
from fusedrnn.serve import Engine, Model, Row, SlotLoop

SIZE, VOCABULARY, END = 16, 12, 3


def weights(seed: int = 0) -> tuple[nn.GRUCell, nn.Embedding, nn.Linear]:
    torch.manual_seed(seed)
    parts = nn.GRUCell(8, SIZE), nn.Embedding(VOCABULARY, 8), nn.Linear(SIZE, VOCABULARY)
    for part in parts:
        part.requires_grad_(False)
    parts[2].weight.mul_(4)
    return parts


@dataclass(frozen=True)
class Say:
    """Go on from a state made of a seed, for so many steps at most."""

    seed: int
    most: int = 9
    spoiled: str = ""

    def values(self) -> dict[str, torch.Tensor]:
        state = torch.randn(SIZE, generator=torch.Generator().manual_seed(self.seed))
        if self.spoiled == "nan":
            state = torch.full_like(state, torch.nan)
        if self.spoiled == "shape":
            state = state[:3]
        start = VOCABULARY + 5 if self.spoiled == "start" else 1
        return {"state": state, "most": torch.tensor(self.most), "start": torch.tensor(start), "jump": torch.tensor(self._jump)}

    @property
    def _jump(self) -> int:
        return 1000 if self.spoiled == "jump" else 0


class Sayer(Model):
    """Tokens of a greedy decoder with its logits; a row that jumps looks a token up that there is not, at its third step."""

    name = "sayer"

    def __init__(self) -> None:
        self.cell, self.embedding, self.project = weights()

    def loop(self, slots: int) -> SlotLoop:
        cell, embedding, project = self.cell, self.embedding, self.project
        state, most = torch.zeros(slots, SIZE), torch.zeros(slots, dtype=torch.int64)
        start, jump = torch.zeros(slots, dtype=torch.int64), torch.zeros(slots, dtype=torch.int64)

        def loop_fn(time: torch.Tensor, output: Any, cell_state: Any, _: Any) -> Any:
            if output is None:
                example = torch.zeros((), dtype=torch.int64), torch.zeros(VOCABULARY)
                return most <= 0, embedding(start), state, example, None
            logits = project(output)
            token = logits.argmax(-1)
            fed = torch.where(time == 3, token + jump, token)
            return (token == END) | (time >= most), embedding(fed), cell_state, (token, logits), None

        rows = {"state": Row(state), "most": Row(most), "start": Row(start), "jump": Row(jump)}
        return SlotLoop(cell, loop_fn, rows)

    def check(self, request: Any) -> None:
        if not isinstance(request, Say):
            raise TypeError(f"a request must be a Say, got {type(request).__name__}")

    def admit(self, requests: Sequence[Say]) -> list[Any]:
        return [request.values() for request in requests]

    def emit(self, request: Say, values: Any) -> Any:
        tokens, logits = values
        return list(zip(tokens.tolist(), [row.tobytes() for row in logits], strict=True))


def alone(model: Model, request: Any, slots: int = 2, slot: int = 0, backend: str = "reference") -> tuple[list[torch.Tensor], Any]:
    """The emits of a request's row ``[steps, ...]`` from `raw_rnn`, and its final state; the other rows do nothing of interest."""
    loop = model.loop(slots)
    (values,) = model.admit([request])
    for name, row in loop.rows.items():
        value = torch.as_tensor(values[name])
        to = row.tensor.select(row.dim, slot)
        (to[: len(value)] if value.ndim else to).copy_(value)
    result = fusedrnn.raw_rnn(loop.cell, loop.loop_fn, backend=backend, max_steps=200)
    steps = int(result.lengths[slot])
    emits = [leaf.stack()[:steps, slot] for leaf in fusedrnn.trees.leaves(result.emit_ta)]
    return emits, fusedrnn.trees.map_leaves(lambda leaf: leaf[slot], result.final_state)


@dataclass(frozen=True)
class Read:
    """A sequence to be read, with a seed of its own."""

    seed: int
    length: int
    most: int = 7

    def values(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.length, 8, generator=generator)
        return {"x": x, "length": torch.tensor(self.length), "seed": torch.tensor(self.seed), "gain": torch.rand(4, generator=generator)}


class Reader(Model):
    """All that a step can make of its time: reads, comparisons, a table, a loop_state that is one for all rows, draws."""

    name = "reader"
    wants_state = True
    capacity = 11

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.cell = fusedrnn.LSTMCell(8, SIZE)
        self.cell.requires_grad_(False)
        self.table = torch.randn(5, SIZE)
        self.positions = torch.randn(16, 4)
        self.mix = torch.randn(4, SIZE)

    def loop(self, slots: int) -> SlotLoop:
        cell, table, positions, mix, capacity = self.cell, self.table, self.positions, self.mix, self.capacity
        x, length = torch.zeros(capacity, slots, 8), torch.zeros(slots, dtype=torch.int64)
        seed, gain = torch.zeros(slots, dtype=torch.int64), torch.zeros(slots, 4)

        def loop_fn(time: torch.Tensor, output: Any, state: Any, carried: Any) -> Any:
            if output is None:
                now = torch.zeros((), dtype=torch.int64), torch.ones(3), gain * 2
                return length <= 0, x[0], cell.zero_state(slots), (torch.zeros(SIZE), torch.zeros(())), now
            count, decay, kept = carried
            noise = fusedrnn.random.uniform((SIZE,), seed) * (gain @ mix)
            seen = output + noise + table[time % 5] * 0.5 + (positions[time] @ mix) + torch.where(time > 3, decay.sum(), count * 0.1)
            seen = seen + kept.sum(-1, keepdim=True) + (time.to(torch.float32) / 7).sin()
            step = x[time.clamp(max=capacity - 1)] + (time / 2) * 0.25
            return time >= length, step, state, (seen, seen.max(-1).values), (count + 1, decay * 0.75, kept * 0.5)

        return SlotLoop(cell, loop_fn, {"x": Row(x, 1), "length": Row(length), "seed": Row(seed), "gain": Row(gain)})

    def admit(self, requests: Sequence[Read]) -> list[Any]:
        return [request.values() for request in requests]

    def emit(self, request: Read, values: Any) -> Any:
        return values

    def ended(self, request: Read, state: Any) -> Any:
        return state


def slowed(engine: Engine, seconds: float = 0.02) -> Engine:
    """The engine with launches that take at least so long: what these tests serve is over before anyone looks."""
    launch = engine.scheduler.slots.launch

    def slow(steps: int) -> Any:
        time.sleep(seconds)
        return launch(steps)

    engine.scheduler.slots.launch = slow  # type: ignore[method-assign]
    return engine
