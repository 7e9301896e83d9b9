"""Gradients of a compiled loop. In: what a loop depends on; out: what it leaves, whose backward is a compiled loop too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Node

from .. import checkpoints, fallback, memory
from ..capture.program import Program, Source, Target
from ..capture.refusal import NotCapturable
from ..capture.sizes import function_of
from ..capture.turn import one_at_a_time
from ..contract import Call, Start
from ..derivative.backward import Backward, backward
from ..derivative.forward import Forward, forward
from ..derivative.steps import AllSteps
from ..fallback import log
from ..frames import Frame
from ..optimise.bounds import bounds
from . import stepwise
from .native_call import End
from .warm import Compiled

Compile = Callable[[Program, Start, Sequence[torch.Tensor]], Compiled]
Gradients = dict[Source, torch.Tensor]

_TREES = ("inputs", "state", "loop_state")
STACKED = ("emit", "value")
_MOST_KEPT = 0.5  # of the free memory: what is kept may take so much, else products are made again


def sources(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> dict[Source, torch.Tensor]:
    """The tensors that a result may depend on."""
    found: dict[Source, Any] = {}
    for kind, leaves in zip(_TREES, (begun.inputs, begun.state, begun.loop_state or []), strict=True):
        found |= {Source(kind, place): leaf for place, leaf in enumerate(leaves)}
    found |= {Source("tensor", place): tensors[place] for place in program.tensors}
    return {source: leaf for source, leaf in found.items() if isinstance(leaf, torch.Tensor)}


def needed(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> frozenset[Source]:
    """The sources that need a gradient."""
    return frozenset(source for source, leaf in sources(begun, program, tensors).items() if leaf.requires_grad)


def needs_gradients(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a result may need a gradient."""
    return torch.is_grad_enabled() and any(leaf.requires_grad for leaf in sources(begun, program, tensors).values())


@dataclass(frozen=True)
class Derived:
    """A loop and its derivative, for the gradients that are needed.

    Attributes:
        forward: the loop, which keeps what the derivative reads.
        needed: the sources of the gradients.
        backwards: the derivative, by the emits that gradients come in of.
    """

    forward: Forward
    needed: frozenset[Source]
    backwards: dict[frozenset[Target], Backward]

    def backward(self, given: frozenset[Target]) -> Backward:
        """The derivative.

        Raises:
            NotCapturable: it cannot be a loop.
        """
        if given not in self.backwards:
            try:
                self.backwards[given] = one_at_a_time(backward)(self.forward, self.needed, given)
            except NotCapturable:
                raise
            except Exception as error:  # a fault of the derivation must not be one of the loop
                log.exception("deriving a loop failed; this is a bug of fusedrnn")
                raise NotCapturable(f"deriving the step failed: {type(error).__name__}: {error}") from error
        return self.backwards[given]


def known(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> Derived | NotCapturable | None:
    """The derivative, or why there is none, if that was asked for before."""
    found: Derived | NotCapturable | None = program.plans.get(_key(needed(begun, program, tensors)))
    return found


def _key(needed: frozenset[Source], again: bool = False) -> str:
    return f"derivative {sorted(needed)}{' again' if again else ''}"


@one_at_a_time
def derived(program: Program, needed: frozenset[Source], again: bool = False) -> Derived:
    """The program with its derivative, made when first asked for.

    Args:
        again: keep what is carried alone, and make the rest again.

    Raises:
        NotCapturable: there is no derivative as a loop.
    """
    key = _key(needed, again)
    if key not in program.plans:
        made: Derived | NotCapturable
        try:
            ahead = forward(program, needed, again=again)
            made = Derived(ahead, needed, {})
            made.backward(frozenset(target for target in ahead.joint.given if target.kind in STACKED))
        except NotCapturable as refused:
            made = NotCapturable(refused.reason, refused.location)
        except Exception as error:  # a fault of the derivation must not be one of the loop
            log.exception("deriving a loop failed; this is a bug of fusedrnn")
            made = NotCapturable(f"deriving the step failed: {type(error).__name__}: {error}")
        program.plans[key] = made
    found: Derived | NotCapturable = program.plans[key]
    if isinstance(found, NotCapturable):
        raise NotCapturable(found.reason, found.location)
    return found


def ended(compile: Compile, call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> End | None:
    """What a loop leaves, as a function of all that it depends on; None where a row looked where there is nothing.

    Args:
        compile: compiles a program for an executor.

    Raises:
        NotCapturable: the loop cannot be compiled.
    """
    given = sources(begun, program, tensors)
    run = Run(compile, call, frame, begun, program, list(tensors), list(given))
    try:
        run = _with_derivative(run, needed(begun, program, tensors), len(tensors))
    except NotCapturable as refused:
        fallback.note(f"the backward of a loop: {refused.reason}", refused.location, "stepwise", level=logging.INFO)
    try:
        results = _Loop.apply(run, *given.values())  # type: ignore[no-untyped-call]
    except NotCapturable as refused:
        if not isinstance(run, DerivedRun):
            raise
        # It keeps more than the loop itself does: that alone may be what cannot be compiled.
        fallback.note(f"the backward of a loop: {refused.reason}", refused.location, "stepwise", level=logging.INFO)
        run = Run(compile, call, frame, begun, program, list(tensors), list(given))
        results = _Loop.apply(run, *given.values())  # type: ignore[no-untyped-call]
    return run.handed_over(results)


def _with_derivative(run: Run, needed: frozenset[Source], tensors: int) -> Run:
    """The same call with a compiled backward."""
    every = checkpoints.every()
    if every is None:
        made = derived(run.program, needed)
        return DerivedRun(derived(run.program, needed, again=True) if takes_too_much(made, run.bound, run.begun) else made, run)
    from .checkpointed import CheckpointedRun, derived_segment, segments  # it stands on this module

    return CheckpointedRun(derived_segment(run.program, tensors, needed), run, every, segments(run.program, tensors))


def makes_again(made: Derived, call: Call, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a call would keep what is carried alone."""
    return takes_too_much(made, most_steps(call, begun, program, tensors), begun)


def takes_too_much(made: Derived, steps: int | None, begun: Start) -> bool:
    """Whether what so many steps keep takes more of the free memory than it may; not where no bound on the steps is known."""
    return (steps or 0) * begun.batch * made.forward.kept.bytes_per_row > memory.free(begun.device) * _MOST_KEPT


class Run:
    """One call. Its backward runs the loop once more, step by step, and differentiates that.

    Attributes:
        given: the sources of the tensors that it is a function of.
        ended: what it left; without its tensors once it is handed over, as autograd would hold them for as long as they live.
        targets: of the results, in their order.
    """

    def __init__(
        self,
        compile: Compile,
        call: Call,
        frame: Frame,
        begun: Start,
        program: Program,
        tensors: list[torch.Tensor],
        given: list[Source],
    ) -> None:
        # Not the call itself, nor its frame: loop_fn may close over what comes out of the loop, and autograd keeps this as long as that.
        self.call = Call(None, _no_loop_fn, call.parallel_iterations, call.swap_memory, call.max_steps)
        self.frame = Frame(frame.lineage)
        self.frame.seed = frame.seed if program.draws else 0
        self.compile, self.program, self.given = compile, program, given
        self.seed: Any = frame.seed if program.draws else None
        self.ended: End | None = None
        self.targets: list[Target] = []
        self.bound = most_steps(call, begun, program, tensors)
        self._others = [None if Source("tensor", place) in given else tensor.detach() for place, tensor in enumerate(tensors)]
        bare = {
            kind: None if leaves is None else [self._other(kind, place, leaf) for place, leaf in enumerate(leaves)]
            for kind, leaves in trees(begun).items()
        }
        self.begun = replace(begun, **bare)  # type: ignore[arg-type]

    def _other(self, kind: str, place: int, leaf: Any) -> Any:
        """A leaf that is not given: what is given must not be kept by what autograd keeps."""
        return None if Source(kind, place) in self.given else leaf

    def started(self, tensors: Sequence[torch.Tensor]) -> tuple[Start, list[torch.Tensor]]:
        """Time 0 and the closed-over tensors, of what is given."""
        values = dict(zip(self.given, tensors, strict=True))
        closed_over: list[Any] = [values.get(Source("tensor", place), other) for place, other in enumerate(self._others)]
        leaves = {
            kind: None if tree is None else [values.get(Source(kind, place), leaf) for place, leaf in enumerate(tree)]
            for kind, tree in trees(self.begun).items()
        }
        return replace(self.begun, **leaves), closed_over  # type: ignore[arg-type]

    def forward(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run the loop; what has to be kept for the backward."""
        begun, closed_over = self.started(tensors)
        self.ended = self.run(self.program, begun, closed_over, self.call)
        return []

    def run(self, program: Program, begun: Start, tensors: Sequence[torch.Tensor], call: Call) -> End | None:
        """What a loop leaves."""
        return self.compile(program, begun, tensors).bound(program, call, begun, tensors, self.seed if program.draws else None, {}).run()

    def results(self) -> list[torch.Tensor]:
        """What it left, as tensors; the targets are noted."""
        if self.ended is None:
            return []
        self.targets = [Target(*target) for target in self.ended.made]
        for kind, tree in self.ended.leaves.items():
            self.targets += [Target(kind, place) for place, leaf in enumerate(tree) if isinstance(leaf, torch.Tensor)]
        # Views would be refused where they are changed in place.
        return [result if result._base is None else result.clone() for result in self.ended.tensors()]

    def handed_over(self, results: Sequence[torch.Tensor]) -> End | None:
        """What it left, with these results in the place of its own."""
        if self.ended is None:
            return None
        found = self.ended.replaced(results)
        self.ended = End(self.ended.steps, {}, {}, (), self.ended.flags)
        return found

    def backward(self, tensors: Sequence[torch.Tensor], kept: Sequence[torch.Tensor], incoming: Mapping[Target, torch.Tensor]) -> Gradients:
        """The gradients of what is given, of those of the results."""
        return self.step_by_step(tensors, incoming)

    def step_by_step(self, tensors: Sequence[torch.Tensor], incoming: Mapping[Target, torch.Tensor]) -> Gradients:
        """The gradients of the loop as it runs step by step, themselves functions where gradients of them are asked for."""
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            aliases = [tensor.view_as(tensor) if tensor.requires_grad else tensor for tensor in tensors]
            made = self._again(aliases)
            pairs = [(made[target], grad) for target, grad in incoming.items() if made[target].requires_grad]
            wanted = {source: alias for source, alias in zip(self.given, aliases, strict=True) if alias.requires_grad}
            if not pairs or not wanted:
                return {}
            found = torch.autograd.grad(
                [result for result, _ in pairs], list(wanted.values()), [grad for _, grad in pairs], create_graph=twice, allow_unused=True
            )
        return {source: grad for source, grad in zip(wanted, found, strict=True) if grad is not None}

    def _again(self, tensors: Sequence[torch.Tensor]) -> dict[Target, torch.Tensor]:
        """The results once more, with autograd."""
        begun, closed_over = self.started(tensors)
        steps = stepwise.steps(self.call, self.frame, begun, self.program, closed_over)
        assert steps is not None, "the forward found it"
        made = {}
        for place, target in enumerate(self.program.targets):
            if target.kind in ("emit", "index", "value"):
                made[target] = torch.stack([outputs[place] for outputs in steps.outputs])
        for kind in ("state", "loop_state"):
            made |= {Target(kind, place): leaf for place, leaf in enumerate(steps.trees[kind]) if isinstance(leaf, torch.Tensor)}
        return made


def most_steps(call: Call, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> int | None:
    """The most steps that the loop takes, if that is known."""
    found = [] if call.max_steps is None else [call.max_steps]
    for size, names in map(function_of, bounds(program)):
        at = {name: program.symbols.get(name) for name in names}
        found.append(size({name: begun.batch if place is None else tensors[place[0]].shape[place[1]] for name, place in at.items()}))
    return min(found, default=None)


def trees(begun: Start) -> dict[str, list[Any] | None]:
    return {"inputs": begun.inputs, "state": begun.state, "loop_state": begun.loop_state}


class DerivedRun(Run):
    """One call whose backward is a loop."""

    def __init__(self, made: Derived, run: Run) -> None:
        self.__dict__.update(run.__dict__)
        self.made = made

    def forward(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        ahead = self.made.forward
        begun, closed_over = self.started(tensors)
        found = self.run(ahead.program, begun, closed_over, self.call)
        if found is None:
            return []
        self.ended, kept = parted(ahead, found, self.program)
        return kept

    def backward(self, tensors: Sequence[torch.Tensor], kept: Sequence[torch.Tensor], incoming: Mapping[Target, torch.Tensor]) -> Gradients:
        assert self.ended is not None
        begun, closed_over = self.started([tensor.detach() for tensor in tensors])
        values, leaves = self.known(begun, closed_over)
        carried = {Source(*target): grad for target, grad in incoming.items() if target.kind in _TREES}
        stacked = {target: grad for target, grad in incoming.items() if target.kind in STACKED}
        totals: dict[int, torch.Tensor] = {}
        final = self.segment(begun, values, kept, stacked, carried, self.ended, totals)
        sums = of_known(values, leaves, totals)
        found = {source: grad for source, grad in final.items() if source in self.made.needed}
        for source, grad in sums.items():
            found[source] = found[source] + grad if source in found else grad
        return found

    def segment(
        self,
        begun: Start,
        values: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor],
        stacked: Mapping[Target, torch.Tensor],
        carried: Mapping[Source, torch.Tensor],
        left: End,
        totals: dict[int, torch.Tensor],
    ) -> dict[Source, torch.Tensor]:
        """Go back over steps: gradients of what was carried into the first of them, of those of what the last one carried on.

        Args:
            begun: time 0 of the steps.
            values: what is known before the loop.
            kept: of the steps.
            stacked: the gradients of the emits and writes.
            left: what the steps left.
            totals: by known value, to which its gradients are added.
        """
        ahead, derivative = self.made.forward, self.made.backward(frozenset(stacked))
        given = [stacked[target].contiguous() for target in derivative.given]
        known = [value.detach() for value in values]
        lengths = left.lengths + ~left.finished  # of a row that goes on the last step is none of these
        read = [*known, lengths, *kept, *given, torch.empty(left.steps, device=begun.device)]
        found = self._ran(derivative.program, _start(derivative, carried, begun, read), read)
        final: dict[Any, torch.Tensor] = {}
        for kind in ("state", "loop_state"):
            final |= zip(getattr(derivative, kind), found.leaves[kind], strict=True)
        tangents = dict(zip(ahead.joint.given, ahead.joint.tangents, strict=True))
        onwards = dict(zip(ahead.emits, kept, strict=True))
        onwards |= {tangents[target]: grad for target, grad in zip(derivative.given, given, strict=True)}
        for target, node in tangents.items():
            if target.kind in STACKED and target not in derivative.given:
                zeros = derivative.zeros(node, begun.batch, read)
                onwards[node] = zeros.expand(left.steps, *zeros.shape)
        every: dict[Node, torch.Tensor] = {}
        for place, node in enumerate(derivative.emitted):
            emit = found.made["emit", place]
            every[node] = emit if derivative.by_rows[node] else emit[:, 0]
        sums = {node: leaf for node, leaf in final.items() if not isinstance(node, Source)}
        steps = AllSteps(derivative.functions, every, onwards, sums, known, lengths, left.steps)
        made: dict[Node, torch.Tensor] = {}
        for number, gradient in derivative.wanted.items():
            if not isinstance(number, Source) and gradient is not None:
                if gradient in made:  # two biases have one gradient, and each its own memory
                    total = made[gradient].clone()
                else:
                    total = made[gradient] = derivative.totals.of[gradient](steps)
                totals[number] = totals[number] + total if number in totals else total
        return {source: grad for source, grad in final.items() if isinstance(source, Source)}

    def _ran(self, program: Program, start: Start, tensors: Sequence[torch.Tensor]) -> End:
        """What the derivative leaves. Where it cannot be compiled it runs step by step."""
        call = replace(self.call, max_steps=None)
        try:
            found = self.run(program, start, tensors, call)
        except NotCapturable as refused:
            fallback.note(f"the backward of a loop: {refused.reason}", refused.location, "stepwise", level=logging.INFO)
            steps = stepwise.steps(call, self.frame, start, program, tensors)
            assert steps is not None, "a derivative reads within its tensors"
            emits = {target: place for place, target in enumerate(program.targets) if target.kind == "emit"}
            made = {(*target,): torch.stack([outputs[place] for outputs in steps.outputs]) for target, place in emits.items()}
            return End(len(steps.outputs), made, steps.trees, (), (start.finished, start.finished))
        assert found is not None, "a derivative reads within its tensors"
        return found

    def first_tokens(self, place: int, begun: Start, closed_over: Sequence[torch.Tensor]) -> torch.Tensor:
        """``[B]`` int64: what stands for the first inputs, the rows behind their table."""
        size = self.made.forward.core.table_size(place, closed_over)
        return torch.arange(size, size + begun.batch, device=begun.device)

    def known(self, begun: Start, closed_over: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Gradients]:
        """What is known before the loop, with the leaves that its gradients go to."""
        core = self.made.forward.core
        given: list[torch.Tensor] = []
        leaves: Gradients = {}
        for source in core.needs:
            plain = Source("inputs", source.place) if source.kind == "initial inputs" else source
            if source.kind == "seed":
                value = torch.full((), self.seed, dtype=torch.int64, device=begun.device)
            elif source.kind == "initial token":
                value = self.first_tokens(source.place, begun, closed_over)
            else:
                value = (closed_over if source.kind == "tensor" else begun.inputs)[source.place]
            if plain in self.made.needed:
                value = leaves[plain] = value.detach().requires_grad_()
            given.append(value)
        with torch.enable_grad():
            return list(core.made(*given)), leaves


def parted(ahead: Forward, found: End, program: Program) -> tuple[End, list[torch.Tensor]]:
    """What a loop left for the user, and what it kept."""
    own = {target: made for target, made in found.made.items() if target[0] != "emit" or target[1] not in ahead.emits.values()}
    kept = [found.made["emit", place] for place in ahead.emits.values()]
    kept = [made if ahead.by_rows[node] else made[:, 0].contiguous() for node, made in zip(ahead.emits, kept, strict=True)]
    return End(found.steps, own, found.leaves, program.writes, found.flags), kept


def _start(derivative: Backward, carried: Mapping[Source, torch.Tensor], begun: Start, read: Sequence[torch.Tensor]) -> Start:
    """The step after the last one."""
    program, initial = derivative.program, trees(begun)

    def leaf(of: Any) -> torch.Tensor:
        if not isinstance(of, Source):
            return derivative.zeros(of, begun.batch, read)
        if of in carried:
            return carried[of].detach().contiguous()
        leaves = initial[of.kind]
        assert leaves is not None
        return torch.zeros_like(leaves[of.place])

    state, loop_state = ([leaf(of) for of in leaves] for leaves in (derivative.state, derivative.loop_state))
    return Start(
        begun.batch,
        begun.device,
        torch.zeros_like(begun.finished),
        [],
        program.inputs_port,
        state,
        program.state_port,
        loop_state or None,
        program.loop_state_port,
        program.emit_port,
    )


def of_known(values: Sequence[torch.Tensor], leaves: Gradients, totals: Mapping[int, torch.Tensor]) -> Gradients:
    """Gradients of what the known values are made of."""
    pairs = [(values[number], total.to(values[number].dtype)) for number, total in totals.items() if values[number].requires_grad]
    if not pairs or not leaves:
        return {}
    found = torch.autograd.grad([value for value, _ in pairs], list(leaves.values()), [total for _, total in pairs], allow_unused=True)
    return {source: grad for source, grad in zip(leaves, found, strict=True) if grad is not None}


def _no_loop_fn(*arguments: Any) -> Any:
    raise AssertionError("a derivative has no loop_fn")


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: torch.Tensor) -> Any:
        ctx.run, ctx.count = run, len(tensors)
        kept = run.forward(tensors)
        ctx.save_for_backward(*tensors, *kept)
        ctx.set_materialize_grads(False)
        results = run.results()
        ctx.mark_non_differentiable(*[result for result in results if not (result.is_floating_point() or result.is_complex())])
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        run: Run = ctx.run
        incoming = {target: grad for target, grad in zip(run.targets, gradients, strict=True) if grad is not None}
        if not incoming:
            return (None, *[None] * ctx.count)
        saved = ctx.saved_tensors  # once: each time they are unpacked
        tensors, kept = saved[: ctx.count], saved[ctx.count :]
        twice = torch.is_grad_enabled()  # gradients of these gradients may be asked for
        if not twice:
            try:
                found = run.backward(tensors, kept, incoming)
            except NotCapturable as refused:
                fallback.note(f"the backward of a loop: {refused.reason}", refused.location, "stepwise", level=logging.INFO)
                twice = True
        if twice:
            found = run.step_by_step(tensors, incoming)
        return (None, *[found.get(source) if need else None for source, need in zip(run.given, ctx.needs_input_grad[1:], strict=True)])
