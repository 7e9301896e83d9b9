"""What an explanation says, as data. All of it is plain: numbers, strings, lists."""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field


def line_of_code(location: str | None) -> str | None:
    """The text of a ``file:line``."""
    if location is None:
        return None
    name, _, number = location.rpartition(":")
    return linecache.getline(name, int(number)).strip() or None


@dataclass(frozen=True)
class Refusal:
    """Why something cannot be done.

    Attributes:
        reason: what stands in the way.
        instead: what to write or do instead; None where the reason says all.
        location: ``file:line`` of the user's code, or None.
        line: the text of that line, or None.
    """

    reason: str
    instead: str | None = None
    location: str | None = None
    line: str | None = None


@dataclass(frozen=True)
class Choice:
    """Which executor a call runs on.

    Attributes:
        backend: what was asked for, FUSEDRNN_BACKEND considered.
        executor: what runs; None where the call raises `PlanError`.
        reason: why this one.
        others: for every other executor why it is not the one.
    """

    backend: str
    executor: str | None
    reason: str
    others: dict[str, Refusal]


@dataclass(frozen=True)
class Read:
    """A look-up along time, or at a place that the step computes.

    Attributes:
        tensor: what is read, as Python would write it.
        shape: its sizes in this call.
        dim: the dimension that is indexed.
        index: the index, as Python would write it.
        per_row: every row has an index of its own.
        location: ``file:line``.
    """

    tensor: str
    shape: list[int | str]
    dim: int
    index: str
    per_row: bool
    location: str | None


@dataclass(frozen=True)
class Embedding:
    """A table whose rows are looked up by tokens."""

    table: str
    shape: list[int | str]
    vocabulary: int | str
    location: str | None


@dataclass(frozen=True)
class Feedback:
    """Where one input of the cell comes from.

    Attributes:
        input: the leaf, ``input`` or its path.
        kind: "none" (read, or made from the time), "greedy" (an argmax), "sampled" (random draws before it), "scheduled" (a random choice
            between a read and a picked token), "forced" (another choice between the two), "output" (the cell's output or state) or
            "computed" (anything else that a step makes).
        pick: how a token is picked where there is one: "greedy" or "sampled".
        embedding: the table in which a token is looked up, if one is.
        location: ``file:line``.
    """

    input: str
    kind: str
    pick: str | None
    embedding: Embedding | None
    location: str | None


@dataclass(frozen=True)
class Finish:
    """One of the conditions that finish a row.

    Attributes:
        kind: "lengths" (the time reaches a tensor), "steps" (it reaches a number), "token" (a token is a constant), "computed" or "never".
        text: the condition, as Python would write it.
        location: ``file:line``.
    """

    kind: str
    text: str
    location: str | None


@dataclass(frozen=True)
class Bound:
    """A bound on the number of steps, and what sets it."""

    steps: int
    because: str


@dataclass(frozen=True)
class Rows:
    """How the rows of the batch go together.

    Attributes:
        batch: of this call.
        fixed: the program holds for this batch size only; ``fixed_at`` is the line that makes it so.
        local: no row depends on another.
        mixes: what breaks that.
        leave: rows that are finished are not computed any more.
        why_not: why they are.
    """

    batch: int
    fixed: bool
    fixed_at: str | None
    local: bool
    mixes: Refusal | None
    leave: bool
    why_not: str | None


@dataclass(frozen=True)
class Product:
    """A product ``[M, K] @ [K, N]``.

    Attributes:
        m, k, n: its sizes; ``m`` for the whole batch.
        weight: the matrix, as Python would write it.
        ahead: it waits for nothing but the time, and is made for several steps at once.
        location: ``file:line``.
        needs: what keeps it in the step: the carried leaves that it depends on, or why it is not made ahead; "" outside the step.
    """

    m: int | str
    k: int | str
    n: int | str
    weight: str
    ahead: bool
    location: str | None
    needs: str

    def __str__(self) -> str:
        return f"[{self.m} x {self.k} x {self.n}]"


@dataclass(frozen=True)
class Phase:
    """The part of a step between products and the next ones.

    Attributes:
        products: those that it waits for.
        elementwise: how many elementwise operators are fused in it.
        others: the names of its operators that are not elementwise, look-ups and reductions mostly; not views.
    """

    products: list[Product]
    elementwise: int
    others: list[str]


@dataclass(frozen=True)
class Cost:
    """What a step costs, from shapes alone.

    Attributes:
        product_flops: of products, per row and step: 2 K N each; ``ahead_flops`` of them before the steps, ``after_flops`` after the loop.
        elementwise_flops: per row and step, one an element.
        weight_bytes: of the matrices that a step reads: not those of products made before or after.
        state_bytes, emit_bytes: per row.
    """

    product_flops: int
    ahead_flops: int
    after_flops: int
    elementwise_flops: int
    weight_bytes: int
    state_bytes: int
    emit_bytes: int


@dataclass(frozen=True)
class Quantized:
    """A weight that is stored as one byte each, with a scale for each column of its product.

    Attributes:
        largest: the greatest error, in parts of the greatest weight of its column.
        rms: the root of the mean square of the errors, in parts of that of the weights.
    """

    weight: str
    dtype: str
    largest: float
    rms: float


@dataclass(frozen=True)
class Kernel:
    """The persistent kernel of a loop, as it would be laid out.

    Attributes:
        device: what it is planned for; ``here``: the loop is on it.
        groups: that run at once, each of ``programs`` blocks, with ``batch_tile`` rows.
        phases, barriers: of a step.
        resident_bytes, streamed_bytes: of a program's weights that stay on-chip, and that come through the level-2 cache in every step.
        shared_bytes: of a program, about.
        microseconds: of a step, by the model of `fusedrnn.plan.cost`; no measurement.
        lines: products, exchanges and costs in words.
    """

    device: str
    here: bool
    groups: int
    programs: int
    batch_tile: int
    phases: int
    barriers: int
    resident_bytes: int
    streamed_bytes: int
    shared_bytes: int
    microseconds: float
    lines: list[str]


@dataclass(frozen=True)
class Backward:
    """The derivative of a loop, which is a loop from the last step to the first.

    Attributes:
        gates_bytes: that a step keeps of a row for it: what products and reductions made (an LSTM's gates), and what is carried.
        again_bytes: that it keeps where all but what is carried is made again, in the backward.
        again: the second is what a call of this size would do: the first takes more than half of the free memory.
        sums: gradients that are products behind the loop.
        added: sizes of what the loop itself adds up, a row or the whole: sums that are no product of what its steps emit.
    """

    gates_bytes: int
    again_bytes: int
    again: bool
    sums: list[str]
    added: list[str]


@dataclass(frozen=True)
class Step:
    """A captured step.

    Attributes:
        phases: None where the step cannot be lowered.
        ahead, after: products that are made for several steps at once, and those of emits that are made after the loop, for all steps.
        moved: what waits for the loop no longer, by how: "inputs", "hoisted", "folded", "sunk": a line each.
        quantized: the weights that `fusedrnn.quantize` has made bytes of.
        counts: Python state that the step changes and nothing reads, a sentence each: it changes where loop_fn is called only.
        draws: how many places draw random numbers, all of them counter-based.
        cost: None where a size is not known.
        kernel: the persistent kernel, or why there can be none.
        backward: the derivative, or why it is none of its own; None where nothing needs a gradient.
    """

    reads: list[Read]
    feedback: list[Feedback]
    finished: list[Finish]
    bounds: list[Bound]
    rows: Rows
    moved: dict[str, list[str]]
    phases: list[Phase] | None
    ahead: list[Product]
    after: list[Product]
    draws: int
    cost: Cost | None
    kernel: Kernel | Refusal
    quantized: list[Quantized]
    counts: list[str]
    backward: Backward | Refusal | None


@dataclass(frozen=True)
class Facts:
    """An explanation.

    Attributes:
        cell, loop_fn: their names; ``defined`` is where loop_fn is.
        batch, device: of the call.
        refused: why the loop cannot be captured; then ``step`` is None.
    """

    cell: str
    loop_fn: str
    defined: str | None
    batch: int
    device: str
    choice: Choice
    refused: Refusal | None = None
    step: Step | None = field(default=None)
