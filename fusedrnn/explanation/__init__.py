"""explain: what fusedrnn makes of a cell and a loop_fn. In: the arguments of `raw_rnn`; out: an `Explanation`, to print or as plain data.

loop_fn is called at time 0 and the step is captured, as running the loop would; the loop itself does not run and nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.fx import Graph

from .. import branches, contract, executors, frames
from ..capture import cache
from ..capture.program import Program, Source
from ..capture.refusal import NotCapturable, place
from ..contract import Call, LoopFn, Start
from ..errors import PlanError
from ..executors import captured, persistent, reference
from ..lowering.operators import Unlowered
from ..lowering.source import LoopSource, loop_source
from ..optimise.going_on import going_on
from ..optimise.graph import copied, show
from ..optimise.hoist import hoist
from ..optimise.simplify import simplify
from ..quantization import error_of
from . import cost, gradients, text
from .facts import Choice, Facts, Phase, Product, Quantized, Refusal, Rows, Step, line_of_code
from .kernel import kernel
from .names import Names, Sizes, tensor_names
from .recognise import Recognised

STAGES = ("captured", "simplified", "hoisted", "lowered")

_SLOWER = {
    "stepwise": "slower: it calls torch's operators step by step",
    "reference": "slower: it runs the cell and loop_fn as they are, in Python",
}
_FOLLOWS = "it follows when the loop has run step by step for about 2 s, which is what compiling takes"
_COMPILE_NOW = "loop = fusedrnn.compile(cell, loop_fn); loop.warmup() compiles now"


class Explanation:
    """What fusedrnn makes of a loop; `explain` makes it. ``print`` it, or take `as_dict`.

    Attributes:
        facts: all that it says.
        executor: what the call would run on; None where it would raise `PlanError`.
    """

    def __init__(self, facts: Facts, program: Program | None, source: LoopSource | None, tensors: Sequence[str]) -> None:
        self.facts = facts
        self.executor = facts.choice.executor
        self._program, self._source, self._tensors = program, source, tensors

    def __str__(self) -> str:
        return text.report(self.facts)

    def __repr__(self) -> str:
        return f"<Explanation of {self.facts.loop_fn}: {self.executor}>"

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, numbers, strings and None."""
        return asdict(self.facts)

    def graph(self, stage: str = "lowered") -> str:
        """The graph of a step, an operator a line: as it was "captured", "simplified", "hoisted", or "lowered".

        Raises:
            ValueError: no such stage.
            PlanError: the loop did not come so far; the message says why.
        """
        if stage not in STAGES:
            raise ValueError(f"stage must be one of {', '.join(map(repr, STAGES))}, got {stage!r}")
        program, refused = self._program, self.facts.refused
        if program is None:
            assert refused is not None
            raise PlanError(refused.reason, refused.location)
        if stage == "captured":
            return self._shown(program.module.graph, program.sources)
        if stage == "simplified":
            return self._shown(_simplified(program), program.sources)
        if stage == "hoisted":
            hoisted, _ = hoist(going_on(program))
            return self._shown(hoisted.module.graph, hoisted.sources)
        if self._source is None:
            native = self.facts.choice.others["native"]
            raise PlanError(native.reason, native.location)
        return self._shown(self._source.module.graph, self._source.program.sources)

    def _shown(self, graph: Graph, sources: Sequence[Source]) -> str:
        """The graph, its inputs with what they are."""
        assert self._program is not None
        names = Names(graph, sources, self._program, self._tensors)
        lines = show(graph).splitlines()
        for number, source in enumerate(names.source_of.values()):
            lines[number] += f"  # {names.source(source)}"
        return "\n".join(lines)


def explain(cell: Any, loop_fn: LoopFn, *, backend: str = "auto", max_steps: int | None = None) -> Explanation:
    """What `raw_rnn` with these arguments would make of a loop, and why: the executor, what a step reads, what feeds back, how rows finish,
    what is computed before the loop or in fewer steps, and what a step costs.

    ``print(fusedrnn.explain(cell, loop_fn))`` shows it. loop_fn is called once at time 0 and once to capture the step; the capture is kept
    for the `raw_rnn` call that follows.

    Args:
        cell, loop_fn, backend, max_steps: as in `raw_rnn`.

    Raises:
        TypeError, ValueError, IndexError, and whatever the cell and loop_fn raise: as `raw_rnn`, of what the first step shows.
    """
    backend = executors.checked_backend(backend)
    call = Call.checked(cell, loop_fn, max_steps=max_steps)
    with _same_generator(), frames.running() as frame, branches.taken():
        begun = contract.start(call, frame)
        program: Program | None = None
        tensors: list[torch.Tensor] = []
        refused: Refusal | None = None
        try:
            captured.refuse_surroundings(begun)
            program, tensors = cache.captured(call, frame, begun)
        except NotCapturable as error:
            refused = _refusal(error.reason, error.location)
        except Exception as error:
            frame.past_end.clear()
            reference.run(replace(call, max_steps=1), frame, begun)  # what the loop itself does wrong is raised as the loop would
            first = (str(error).splitlines() or [""])[0]
            refused = _refusal(f"the step cannot be traced: {type(error).__name__}: {first}", place(error), split=False)
        return _explained(cell, call, backend, begun, program, tensors, refused)


def _explained(
    cell: Any, call: Call, backend: str, begun: Start, program: Program | None, tensors: list[torch.Tensor], refused: Refusal | None
) -> Explanation:
    source, unlowered = (None, None) if program is None else _lowered(program)
    choice = _choice(call, backend, begun, program, tensors, refused, unlowered)
    step: Step | None = None
    names: list[str] = []
    if program is not None:
        known = tensor_names(call)
        names = [known.get(id(tensor), f"a tensor {list(tensor.shape)}") for tensor in tensors]
        step = _step(call, begun, program, source, tensors, names)
    code = getattr(call.loop_fn, "__code__", None)
    facts = Facts(
        type(cell).__name__, getattr(call.loop_fn, "__qualname__", type(call.loop_fn).__name__),
        None if code is None else f"{code.co_filename}:{code.co_firstlineno}", begun.batch, str(begun.device), choice, refused, step,
    )  # fmt: skip
    return Explanation(facts, program, source, names)


@contextmanager
def _same_generator() -> Iterator[None]:
    """torch's generator is left as it was."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _simplified(program: Program) -> Graph:
    graph = copied(program.module.graph)
    simplify(graph)
    return graph


def _lowered(program: Program) -> tuple[LoopSource | None, Refusal | None]:
    compiled = getattr(program.plans.get("native"), "source", None)
    if isinstance(compiled, LoopSource):
        return compiled, None
    try:
        return loop_source(program, program.batch), None
    except Unlowered as error:
        return None, Refusal(
            error.reason, "use an operator that it has, or backend='stepwise'", error.location, line_of_code(error.location)
        )


def _refusal(reason: str, location: str | None, *, split: bool = True) -> Refusal:
    """A reason is one line: what stands in the way, and after the last colon what to do instead."""
    what, colon, instead = reason.rpartition(": ") if split else (reason, "", "")
    return Refusal(what, instead, location, line_of_code(location)) if colon else Refusal(reason, None, location, line_of_code(location))


def _choice(
    call: Call,
    backend: str,
    begun: Start,
    program: Program | None,
    tensors: list[torch.Tensor],
    refused: Refusal | None,
    unlowered: Refusal | None,
) -> Choice:
    """As `fusedrnn.executors.execute` decides."""
    others = {name: Refusal(reason) for name, reason in _SLOWER.items()}
    for name in ("persistent", "native"):
        unavailable = executors.unavailable(name)
        if unavailable is not None:
            others[name] = _split_at_semicolon(unavailable)
    if refused is not None:
        others |= dict.fromkeys(("persistent", "native", "stepwise"), refused)
    elif "native" not in others:
        native = unlowered or _native_refusal(call, begun, program, tensors)
        if native is not None:
            others["native"] = native
    if (
        refused is None
        and begun.device.type == "cpu"
        and program
        and isinstance(kernel(program, begun.batch, begun.device, tensors), Refusal)
    ):
        others["persistent"] = Refusal("there is no kernel for it: the last lines say why")
    elif refused is None and "persistent" not in others:
        persistent = _persistent_refusal(begun, program, tensors)
        if persistent is not None:
            others["persistent"] = persistent
    executor, reason = _executor(call, backend, begun, program, tensors, refused, others)
    if executor is not None:
        others.pop(executor, None)
    if "native" not in others and executor != "native":
        follows = backend == "auto" and executor == "stepwise"
        others["native"] = Refusal(_FOLLOWS if follows else "another was asked for", _COMPILE_NOW if follows else None)
    if "persistent" not in others and executor != "persistent":
        others["persistent"] = Refusal("another was asked for" if backend != "auto" else "emulated, it runs where it is named")
    order = [name for name in executors.BACKENDS if name in others]
    return Choice(backend, executor, reason, {name: others[name] for name in order})


def _native_refusal(call: Call, begun: Start, program: Program | None, tensors: list[torch.Tensor]) -> Refusal | None:
    assert program is not None
    refused = captured.native_refusal(call, begun, program, tensors)
    return None if refused is None else _refusal(refused.reason, refused.location, split=False)


def _persistent_refusal(begun: Start, program: Program | None, tensors: list[torch.Tensor]) -> Refusal | None:
    assert program is not None
    if begun.device.type == "cpu":  # emulated: what fits an H100 will do
        made = kernel(program, begun.batch, begun.device, tensors)
        return made if isinstance(made, Refusal) else _refused_place(persistent.refusal(begun, program, tensors))
    loop = persistent.prepared(begun, program, tensors)
    return _refused_place(loop) if isinstance(loop, NotCapturable) else None


def _refused_place(refused: NotCapturable | None) -> Refusal | None:
    return None if refused is None else _refusal(refused.reason, refused.location)


def _executor(
    call: Call,
    backend: str,
    begun: Start,
    program: Program | None,
    tensors: list[torch.Tensor],
    refused: Refusal | None,
    others: dict[str, Refusal],
) -> tuple[str | None, str]:
    if backend != "auto" and backend in others and backend not in _SLOWER:
        gradients = backend == "native" and others[backend].reason.startswith("gradients")  # named, it runs those too
        if not gradients:
            return None, f"the call raises PlanError: {others[backend].reason}"
    if backend == "reference":
        return backend, "asked for"
    if call.max_steps == 0 or bool(begun.finished.all()):
        return "reference", "there is no step to run: " + ("max_steps is 0" if call.max_steps == 0 else "all rows are finished at time 0")
    if refused is not None:
        if backend != "auto":
            return None, f"the call raises PlanError: {refused.reason}"
        return "reference", "the step cannot be captured"
    if backend != "auto":
        return backend, "asked for"
    assert program is not None
    if begun.device.type == "cuda" and "persistent" not in others:
        return "persistent", "the whole loop is one launch"
    if "native" in others:
        return "stepwise", f"the loop does not run natively: {others['native'].reason.partition(',')[0].partition(':')[0]}"
    if captured.worth_compiling(begun, program, tensors):
        return "native", "it is compiled" if "native" in program.plans else "the loop has cost what compiling costs: this call compiles it"
    return "stepwise", "the loop is not compiled yet"


def _split_at_semicolon(reason: str) -> Refusal:
    what, _, instead = reason.partition("; ")
    if not instead:
        what, _, instead = reason.partition(": ")
    return Refusal(what, instead or None)


def _step(
    call: Call, begun: Start, program: Program, source: LoopSource | None, tensors: list[torch.Tensor], tensor_names: list[str]
) -> Step:
    sizes = Sizes(program, begun, tensors)
    graph = _simplified(program)
    found = Recognised(graph, program, Names(graph, program.sources, program, tensor_names), sizes, tensors)
    bounds = list(found.bounds)
    if call.max_steps is not None:
        bounds.append(text.max_steps(call.max_steps))
    phases: list[Phase] | None = None
    ahead: list[Product] = []
    moved: dict[str, list[str]] = {}
    after: list[Product] = []
    state = [(leaf.shape[1:], leaf.dtype) for leaf in program.state_port.leaves if leaf.shape]
    emits = [((leaf.shape or ())[1:], leaf.dtype) for leaf in program.emit_port.leaves]
    if source is None:
        costs = cost.cost(graph, program.sources, state, emits, sizes)
    else:
        names = Names(source.module.graph, source.program.sources, program, tensor_names)
        phases, ahead = cost.phases(source, names, sizes)
        moved = {how: lines for how, lines in vars(source.moved).items() if isinstance(lines, list) and lines}
        moved = _with_inputs_looked_up(moved, program, source)
        after = cost.after(source, names, sizes)
        if source.sunk.lines:
            moved["sunk"] = source.sunk.lines
        made_ahead = {product.node for product in source.stages.products if product.ahead}
        costs = cost.cost(source.module.graph, source.program.sources, state, emits, sizes, made_ahead, after)
    return Step(
        found.reads, found.feedback, found.finished, sorted(bounds, key=lambda bound: bound.steps), _rows(begun, program, source), moved,
        phases, ahead, after, found.draws, costs, kernel(program, begun.batch, begun.device, tensors),
        _quantized(tensor_names, tensors), list(program.plans.get("counts", ())), gradients.backward(call, begun, program, tensors),
    )  # fmt: skip


def _quantized(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> list[Quantized]:
    found = []
    for name, tensor in zip(names, tensors, strict=True):
        error = error_of(tensor)
        if error is not None:
            weight = name.replace(".parametrizations.", ".").removesuffix(".0.scale")
            found.append(Quantized(weight, str(error.dtype).removeprefix("torch."), error.largest, error.rms))
    return found


def _with_inputs_looked_up(moved: dict[str, list[str]], program: Program, source: LoopSource) -> dict[str, list[str]]:
    """With the inputs that are not carried from step to step any more."""
    names = Names(program.module.graph, program.sources, program, [])
    carried = {target for target in source.program.targets if target.kind in ("inputs", "token")}
    lines = []
    for target in program.targets:
        if target.kind == "inputs" and target not in carried:
            token = any(other.kind == "token" and other.place == target.place for other in carried)
            name = names.source(Source("inputs", target.place))
            lines.append(
                f"{name} is carried as a token, not as its embedding" if token else f"{name} is not carried: each step makes its own"
            )
    return {"inputs": lines, **moved} if lines else moved


def _rows(begun: Start, program: Program, source: LoopSource | None) -> Rows:
    fixed = bool(program.batch.is_number)
    if source is None:
        return Rows(
            begun.batch, fixed, program.fixed_at, False, None, False, "the step is not lowered, so it is not known where the rows are"
        )
    mixes = None
    if source.mixes is not None:
        mixes = Refusal(source.mixes.reason, None, source.mixes.location, line_of_code(source.mixes.location))
    why_not = None
    if not source.retires:
        if mixes is not None:
            why_not = "rows depend on one another"
        elif source.locality is None:
            why_not = "where they are is not known"
        else:
            why_not = (
                "an array is written at every step" if program.writes else "loop_state holds something of each row, which never freezes"
            )
    return Rows(begun.batch, fixed, program.fixed_at, source.locality is not None, mixes, source.retires, why_not)


__all__ = ["STAGES", "Explanation", "explain"]
