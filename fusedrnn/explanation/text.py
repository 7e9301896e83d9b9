"""An explanation as text. In: its facts; out: lines of at most 110 characters, a label and what there is to say."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from .facts import Backward, Bound, Cost, Embedding, Facts, Feedback, Finish, Kernel, Read, Refusal, Rows, Step

_WIDTH = 110
_LABEL = 13
_OURS = str(Path(__file__).parents[2]) + os.sep
_FEEDBACK = {
    "none": "none: it does not depend on the steps before",
    "greedy": "greedy: an argmax of the step is the next token",
    "sampled": "sampled: a token is drawn and fed back",
    "scheduled": "scheduled: a random choice between a token that is read and one that is {pick}",
    "forced": "forced: a choice between a token that is read and one that is {pick}",
    "output": "output: the cell's output or state is fed back",
    "computed": "computed: the step decides what is fed back",
}
_PICKED = {"greedy": "the step's argmax", "sampled": "drawn", None: ""}
_UNITS = ("B", "KiB", "MiB", "GiB")


def report(facts: Facts) -> str:
    """The whole explanation."""
    rows = [("loop", f"{facts.cell}, {facts.loop_fn}{_at(facts.defined)}"), ("", f"{_count(facts.batch, 'row')} on {facts.device}")]
    rows += _executors(facts)
    if facts.step is not None:
        rows += _step(facts.step)
    return "\n".join(line for label, said in rows for line in _lines(label, said))


def max_steps(steps: int) -> Bound:
    return Bound(steps, "max_steps")


def shortened(location: str) -> str:
    """``file:line`` with the file as a reader knows it."""
    for start in (os.getcwd() + os.sep, _OURS):
        if location.startswith(start):
            return location.removeprefix(start)
    return location


def _lines(label: str, said: str) -> list[str]:
    lead = f"{label:<{_LABEL}}"
    wrapped = textwrap.wrap(
        said, _WIDTH, initial_indent=lead, subsequent_indent=" " * (_LABEL + 2), break_long_words=False, break_on_hyphens=False
    )  # fmt: skip
    return wrapped or [lead.rstrip()]


def _at(location: str | None) -> str:
    return "" if location is None else f"  ({shortened(location)})"


def _executors(facts: Facts) -> Iterator[tuple[str, str]]:
    choice = facts.choice
    yield "", ""
    yield "executor", f"{choice.executor or 'none'} (backend={choice.backend!r}): {choice.reason}"
    if facts.refused is not None:
        yield from _refused("", facts.refused)
    for name, why in choice.others.items():
        if why is not facts.refused:
            yield from _refused(f"  {name}", why)


def _refused(label: str, why: Refusal) -> Iterator[tuple[str, str]]:
    yield label, f"{why.reason}{_at(why.location)}"
    if why.line is not None:
        yield "", f"    {why.line}"
    if why.instead is not None:
        yield "", f"-> {why.instead}"


def _step(step: Step) -> Iterator[tuple[str, str]]:
    yield "", ""
    yield from _labelled("reads", [_read(read) for read in step.reads] or ["nothing along time"])
    yield from _labelled("feedback", [_feedback(fed, len(step.feedback) > 1) for fed in step.feedback])
    yield from _labelled("finished", [_finish(finish) for finish in step.finished] or ["never: nothing ends the loop but max_steps"])
    bounds = [f"{bound.steps}: {bound.because}" for bound in step.bounds]
    yield from _labelled("at most", bounds or ["no bound on the steps is known"])
    yield from _rows(step.rows)
    yield "random", f"{_count(step.draws, 'draw')} a step, all counter-based" if step.draws else "no draws"
    yield from _labelled("counts", step.counts)
    yield "", ""
    yield from _work(step)


def _labelled(label: str, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        yield label, line
        label = ""


def _read(read: Read) -> str:
    return (
        f"{read.tensor} {_shape(read.shape)} along dimension {read.dim} at {read.index}"
        f"{', an index a row' if read.per_row else ''}{_at(read.location)}"
    )  # fmt: skip


def _shape(sizes: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _feedback(fed: Feedback, several: bool) -> str:
    said = _FEEDBACK[fed.kind].format(pick=_PICKED[fed.pick])
    if fed.embedding is not None:
        said += f"; {_embedding(fed.embedding)}"
    return f"{fed.input + ' ' if several else ''}{said}{_at(fed.location)}"


def _embedding(embedding: Embedding) -> str:
    return f"looked up in {embedding.table} {_shape(embedding.shape)}, {embedding.vocabulary} tokens"


def _finish(finish: Finish) -> str:
    what = {"lengths": "lengths", "steps": "fixed steps", "token": "a token ends its row", "computed": "computed"}[finish.kind]
    return f"{what}: {finish.text}{_at(finish.location)}"


def _rows(rows: Rows) -> Iterator[tuple[str, str]]:
    local = "no row depends on another" if rows.local else "rows are computed together"
    fixed = f"; the step holds for a batch of {rows.batch} only{_at(rows.fixed_at)}" if rows.fixed else ""
    if rows.mixes is not None:
        yield from _refused("rows", Refusal(f"{local}: {rows.mixes.reason}", None, rows.mixes.location, rows.mixes.line))
        yield "", "rows stay to the end"
        return
    yield "rows", f"{local}{fixed}; " + ("rows leave when they finish" if rows.leave else f"rows stay to the end: {rows.why_not}")


def _work(step: Step) -> Iterator[tuple[str, str]]:
    for how, lines in step.moved.items():
        yield from _labelled(how, lines)
    if step.ahead:
        products = ", ".join(f"{product} with {product.weight}" for product in step.ahead)
        yield "ahead", f"made for several steps at once: {products}"
    if step.after:
        products = ", ".join(f"{product} with {product.weight}" for product in step.after)
        yield "after", f"made for all steps after the loop: {products}"
    if step.phases is not None:
        yield "step", _count(len(step.phases), "phase")
        for number, phase in enumerate(step.phases):
            parts = [f"{product} of {product.needs} with {product.weight}" for product in phase.products]
            if phase.elementwise:
                parts.append(f"{phase.elementwise} elementwise, fused")
            yield f"  phase {number}", "; ".join(parts + phase.others) or "nothing"
    if step.cost is not None:
        yield from _cost(step.cost)
    yield from _labelled(
        "bytes",
        [
            f"{one.weight} is {one.dtype}: off by {one.rms:.2%} rms, at most {one.largest:.2%} of its column's greatest"
            for one in step.quantized
        ],
    )
    yield from _backward(step.backward)
    yield "", ""
    yield from _kernel(step.kernel)


def _backward(backward: Backward | Refusal | None) -> Iterator[tuple[str, str]]:
    if backward is None:
        return
    if isinstance(backward, Refusal):
        yield from _refused("backward", backward)
        return
    gates, again = f"{_size(backward.gates_bytes)} a row", f"{_size(backward.again_bytes)} a row and makes the rest again"
    chosen, other = (again, gates) if backward.again else (gates, again)
    yield "backward", f"a loop from the last step to the first, for which a step keeps {chosen} (not: {other})"
    sums = [*backward.sums, *[f"{shape} is added up in the loop" for shape in backward.added]]
    yield from _labelled("", sums)


def _kernel(kernel: Kernel | Refusal) -> Iterator[tuple[str, str]]:
    if isinstance(kernel, Refusal):
        yield from _refused("kernel", Refusal(f"no persistent kernel: {kernel.reason}", kernel.instead, kernel.location, kernel.line))
        return
    where = kernel.device if kernel.here else f"planned for an {kernel.device}, which this loop is not on"
    yield "kernel", f"{where}: {_count(kernel.groups, 'group')} of {_count(kernel.programs, 'program')}, {kernel.batch_tile} rows each"
    barriers = _count(kernel.barriers, "barrier") if kernel.barriers else "no barrier"
    streamed = f", {_size(kernel.streamed_bytes)} streamed in every step" if kernel.streamed_bytes else ""
    yield "", f"{_count(kernel.phases, 'phase')} and {barriers} a step"
    yield "", f"{_size(kernel.resident_bytes)} of weights a program on-chip{streamed}"
    for line in kernel.lines:
        yield "", line


def _cost(cost: Cost) -> Iterator[tuple[str, str]]:
    total = cost.product_flops + cost.elementwise_flops
    apart = [f"{flops:,} {when}" for flops, when in ((cost.ahead_flops, "ahead"), (cost.after_flops, "after")) if flops]
    products = f"{cost.product_flops:,} in products{', of which ' + ' and '.join(apart) if apart else ''}"
    yield "work", f"{total:,} FLOPs per row and step ({products}; {cost.elementwise_flops:,} elementwise)"
    emits = f", emit {_size(cost.emit_bytes)} per row" if cost.emit_bytes else ""
    yield "memory", f"weights {_size(cost.weight_bytes)} per step, state {_size(cost.state_bytes)} per row{emits}"


def _size(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.1f} {_UNITS[unit]}" if unit else f"{int(count)} B"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
