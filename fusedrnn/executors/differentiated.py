"""Gradients of a compiled loop. In: a loop that keeps what its derivative needs; out: what the loop leaves, whose backward is a loop too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import fallback
from ..capture.program import Program, Source, Target
from ..capture.refusal import NotCapturable
from ..contract import Call, Start
from ..derivative.backward import Backward, backward
from ..derivative.forward import Forward, forward
from ..derivative.steps import AllSteps
from ..fallback import log
from ..frames import Frame
from . import stepwise
from .native_call import End
from .warm import Compiled

Compile = Callable[[Program, Start, Sequence[torch.Tensor]], Compiled]


def sources(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> dict[Source, Any]:
    """All that a result may depend on."""
    found: dict[Source, Any] = {}
    for kind, leaves in (("inputs", begun.inputs), ("state", begun.state), ("loop_state", begun.loop_state or [])):
        found |= {Source(kind, place): leaf for place, leaf in enumerate(leaves)}
    return found | {Source("tensor", place): tensors[place] for place in program.tensors}


def needs_gradients(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a result may need a gradient."""
    leaves = sources(begun, program, tensors).values()
    return torch.is_grad_enabled() and any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves)


def needed(begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> frozenset[Source]:
    """The sources that need a gradient."""
    found = sources(begun, program, tensors).items()
    return frozenset(source for source, leaf in found if isinstance(leaf, torch.Tensor) and leaf.requires_grad)


@dataclass(frozen=True)
class Differentiated:
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
        """The derivative."""
        if given not in self.backwards:
            self.backwards[given] = backward(self.forward, self.needed, given)
        return self.backwards[given]


def known(program: Program, begun: Start, tensors: Sequence[torch.Tensor]) -> Differentiated | NotCapturable | None:
    """The derivative, or why there is none, if that was asked for before."""
    found: Differentiated | NotCapturable | None = program.plans.get(_key(needed(begun, program, tensors)))
    return found


def _key(needed: frozenset[Source]) -> str:
    return f"derivative {sorted(needed)}"


def differentiated(program: Program, needed: frozenset[Source]) -> Differentiated:
    """The program with its derivative, made when first asked for.

    Raises:
        NotCapturable: there is no derivative as a loop.
    """
    key = _key(needed)
    if key not in program.plans:
        try:
            made = forward(program, needed)
            found = Differentiated(made, needed, {})
            found.backward(frozenset(made.joint.given))
            program.plans[key] = found
        except NotCapturable as refused:
            program.plans[key] = NotCapturable(refused.reason, refused.location)
        except Exception as error:  # a fault of the derivation must not be one of the loop
            log.exception("deriving a loop failed; this is a bug of fusedrnn")
            program.plans[key] = NotCapturable(f"deriving the step failed: {type(error).__name__}: {error}")
    made_before: Differentiated | NotCapturable = program.plans[key]
    if isinstance(made_before, NotCapturable):
        raise NotCapturable(made_before.reason, made_before.location)
    return made_before


def ended(compile: Compile, call: Call, frame: Frame, begun: Start, program: Program, tensors: Sequence[torch.Tensor]) -> End | None:
    """What a loop leaves, as a function of all that it depends on; None where a row looked where there is nothing.

    Args:
        compile: compiles a program for an executor.

    Raises:
        NotCapturable: the loop or its derivative cannot be compiled.
    """
    given = {source: leaf for source, leaf in sources(begun, program, tensors).items() if isinstance(leaf, torch.Tensor)}
    try:
        made: Differentiated | None = differentiated(program, needed(begun, program, tensors))
    except NotCapturable as refused:
        fallback.note(refused.reason, refused.location, "stepwise", level=logging.INFO)
        made = None
    run = _Run(made, compile, call, frame, begun, program, list(tensors), list(given))
    results = _Loop.apply(run, *given.values())  # type: ignore[no-untyped-call]
    return None if run.ended is None else run.ended.replaced(results)


class _Run:
    """One call."""

    def __init__(
        self, made: Differentiated | None, compile: Compile, call: Call, frame: Frame, begun: Start, program: Program, tensors: list[torch.Tensor],
        given: list[Source],
    ) -> None:  # fmt: skip
        self.made, self.compile, self.call, self.frame, self.program = made, compile, call, frame, program
        self.given = given
        self.ended: End | None = None
        self.seed: Any = frame.seed if program.draws else None
        self._tensors = len(tensors)
        self._others = {place: tensor for place, tensor in enumerate(tensors) if Source("tensor", place) not in given}
        self._begun = begun

    def forward(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Run the loop: its results, and what it kept."""
        program = self.program if self.made is None else self.made.forward.program
        begun, closed_over = self._from(tensors)
        loop = self.compile(program, begun, closed_over)
        ended = loop.bound(program, self.call, begun, closed_over, self.seed, {}).run()
        if ended is None:
            return [], []
        if self.made is None:
            self.ended = ended
            return ended.tensors(), []
        places = {Target("emit", place): node for node, place in self.made.forward.emits.items()}
        kept = {places[Target(*target)]: made for target, made in ended.made.items() if target in places}
        own = {target: made for target, made in ended.made.items() if target not in places}
        self.ended = End(ended.steps, own, ended.leaves, self.program.writes, ended.flags)
        by_rows = self.made.forward.by_rows
        return self.ended.tensors(), [kept[node] if by_rows[node] else kept[node][:, 0].contiguous() for node in self.made.forward.emits]

    def _from(self, tensors: Sequence[torch.Tensor]) -> tuple[Start, list[torch.Tensor]]:
        """Time 0 and the closed-over tensors, with these in the place of what was given."""
        values = dict(zip(self.given, tensors, strict=True))
        closed_over = [
            values[Source("tensor", place)] if Source("tensor", place) in values else self._others[place] for place in range(self._tensors)
        ]
        trees = {
            kind: None if leaves is None else [values.get(Source(kind, place), leaf) for place, leaf in enumerate(leaves)]
            for kind, leaves in (("inputs", self._begun.inputs), ("state", self._begun.state), ("loop_state", self._begun.loop_state))
        }
        return replace(self._begun, **trees), closed_over  # type: ignore[arg-type]

    def targets(self) -> list[Target]:
        """Of the results, in their order."""
        assert self.ended is not None
        found = [Target(*target) for target in self.ended.made]
        for kind, tree in self.ended.leaves.items():
            found += [Target(kind, place) for place, leaf in enumerate(tree) if isinstance(leaf, torch.Tensor)]
        return found

    def backward(
        self, tensors: Sequence[torch.Tensor], kept: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """The gradients of what was given."""
        assert self.ended is not None
        assert self.made is not None
        made, forward = self.made, self.made.forward
        incoming = {target: grad for target, grad in zip(self.targets(), gradients, strict=True) if grad is not None}
        derivative = made.backward(frozenset(target for target in incoming if target.kind in ("emit", "value")))
        begun, closed_over = self._from([tensor.detach() for tensor in tensors])
        known, leaves = self._known(begun, closed_over)
        steps, lengths = self.ended.steps, self.ended.lengths
        given = [incoming[target].contiguous() for target in derivative.given]
        read = [value.detach() for value in known] + [lengths, *kept, *given, torch.empty(steps, device=lengths.device)]
        start = self._start(derivative, incoming, begun, read)
        found = self._run(derivative.program, start, read)
        final: dict[Any, torch.Tensor] = {}
        for kind in ("state", "loop_state"):
            final |= zip(getattr(derivative, kind), found.leaves[kind], strict=True)
        tangents = dict(zip(forward.joint.given, forward.joint.tangents, strict=True))
        every = dict(zip(forward.emits, kept, strict=True))
        every |= {tangents[target]: grad for target, grad in zip(derivative.given, given, strict=True)}
        by_rows = derivative.by_rows
        for place, node in enumerate(derivative.emitted):
            emit = found.made["emit", place].flip(0)
            every[node] = emit if by_rows[node] else emit[:, 0]
        sums = {node: leaf for node, leaf in final.items() if not isinstance(node, Source)}
        all_steps = AllSteps(derivative.functions, every, sums, [value.detach() for value in known], lengths, forward.core.retires, steps)
        totals = {
            number: derivative.totals.of[gradient](all_steps)
            for number, gradient in derivative.wanted.items()
            if not isinstance(number, Source) and gradient is not None
        }
        of_known = self._of_known(known, leaves, totals)
        return [self._sum(final.get(source), of_known.get(source)) for source in self.given]

    def _run(self, program: Program, start: Start, tensors: Sequence[torch.Tensor]) -> End:
        """What the derivative leaves. Where it cannot be compiled it runs step by step."""
        call = Call(None, _no_loop_fn, self.call.parallel_iterations)
        try:
            ended = self.compile(program, start, tensors).bound(program, call, start, tensors, None, {}).run()
            assert ended is not None, "a derivative reads within its tensors"
        except NotCapturable as refused:
            fallback.note(f"the backward of a loop: {refused.reason}", refused.location, "stepwise", level=logging.INFO)
            steps = stepwise.steps(call, self.frame, start, program, tensors)
            assert steps is not None, "a derivative reads within its tensors"
            emits = {target: place for place, target in enumerate(program.targets) if target.kind == "emit"}
            made = {(*target,): torch.stack([outputs[place] for outputs in steps.outputs]) for target, place in emits.items()}
            ended = End(len(steps.outputs), made, steps.trees, (), (steps.trees["finished"][0], torch.empty(0, dtype=torch.int32)))  # type: ignore[arg-type]
        return ended

    def _known(self, begun: Start, closed_over: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], dict[Source, torch.Tensor]]:
        """What is known before the loop, with the leaves that its gradients go to."""
        core, needed = self.made.forward.core, self.made.needed
        given: list[torch.Tensor] = []
        leaves: dict[Source, torch.Tensor] = {}
        for source in core.needs:
            plain = Source("inputs", source.place) if source.kind == "initial inputs" else source
            if source.kind == "seed":
                value = torch.tensor(self.seed, dtype=torch.int64, device=begun.device)
            elif source.kind == "initial token":
                size = self._table_size(source.place, closed_over)
                value = torch.arange(size, size + begun.batch, device=begun.device)
            else:
                value = (closed_over if source.kind == "tensor" else begun.inputs)[source.place]
            if plain in needed:
                value = leaves[plain] = value.detach().requires_grad_()
            given.append(value)
        with torch.enable_grad():
            return list(core.made(*given)), leaves

    def _table_size(self, place: int, closed_over: Sequence[torch.Tensor]) -> int:
        size = self.made.forward.core.moved.tables[place]
        if isinstance(size, int):
            return size
        raise AssertionError("a table of a size that is not fixed")

    def _start(self, derivative: Backward, incoming: Mapping[Target, torch.Tensor], begun: Start, read: Sequence[torch.Tensor]) -> Start:
        """The step after the last one."""
        initial = dict(zip(self.given, self._from_given(begun), strict=True))
        program = derivative.program

        def leaf(of: Any) -> torch.Tensor:
            if not isinstance(of, Source):
                return derivative.zeros(of, begun.batch, read)
            found = incoming.get(Target(*of))
            return torch.zeros_like(initial[of]) if found is None else found.detach().contiguous()

        state, loop_state = ([leaf(of) for of in leaves] for leaves in (derivative.state, derivative.loop_state))
        return Start(
            begun.batch, begun.device, torch.zeros_like(begun.finished), [], program.inputs_port, state, program.state_port,
            loop_state or None, program.loop_state_port, program.emit_port,
        )  # fmt: skip

    def _from_given(self, begun: Start) -> list[Any]:
        trees = {"inputs": begun.inputs, "state": begun.state, "loop_state": begun.loop_state or []}
        return [trees[source.kind][source.place] if source.kind in trees else None for source in self.given]

    def _of_known(
        self, known: Sequence[torch.Tensor], leaves: Mapping[Source, torch.Tensor], totals: Mapping[int, torch.Tensor]
    ) -> dict[Source, torch.Tensor]:
        """Gradients of what the known values are made of."""
        pairs = [(known[number], total) for number, total in totals.items() if known[number].requires_grad]
        if not pairs or not leaves:
            return {}
        found = torch.autograd.grad(
            [value for value, _ in pairs], list(leaves.values()), [total.to(value.dtype) for value, total in pairs], allow_unused=True
        )
        return {source: grad for source, grad in zip(leaves, found, strict=True) if grad is not None}

    def _sum(self, one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
        if one is None or other is None:
            return other if one is None else one
        return one + other

    def again(self, tensors: Sequence[torch.Tensor]) -> dict[Target, torch.Tensor]:
        """The results once more, step by step, with autograd."""
        begun, closed_over = self._from(tensors)
        steps = stepwise.steps(self.call, self.frame, begun, self.program, closed_over)
        assert steps is not None, "the forward found it"
        made = {}
        for place, target in enumerate(self.program.targets):
            if target.kind in ("emit", "index", "value"):
                made[target] = torch.stack([outputs[place] for outputs in steps.outputs])
        for kind in ("state", "loop_state"):
            made |= {Target(kind, place): leaf for place, leaf in enumerate(steps.trees[kind]) if isinstance(leaf, torch.Tensor)}
        return made


def _no_loop_fn(*arguments: Any) -> Any:
    raise AssertionError("a derivative has no loop_fn")


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: _Run, *tensors: torch.Tensor) -> Any:
        ctx.run, ctx.count = run, len(tensors)
        results, kept = run.forward(tensors)
        ctx.save_for_backward(*tensors, *kept)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[result for result in results if not (result.is_floating_point() or result.is_complex())])
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        run: _Run = ctx.run
        saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.count], saved[ctx.count :]
        needed = ctx.needs_input_grad[1:]
        if all(gradient is None for gradient in gradients):
            return (None, *[None for _ in needed])
        if run.made is None or torch.is_grad_enabled():  # a gradient of these gradients may be asked for
            return (None, *_step_by_step(run, tensors, needed, gradients))
        found = run.backward(tensors, kept, gradients)
        return (None, *[grad if need else None for grad, need in zip(found, needed, strict=True)])


def _step_by_step(
    run: _Run, tensors: Sequence[torch.Tensor], needed: Sequence[bool], gradients: Sequence[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Gradients of the loop as it runs step by step, in a graph that is differentiable itself where that is asked for."""
    twice = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [tensor.view_as(tensor) if need else tensor for tensor, need in zip(tensors, needed, strict=True)]
        made = run.again(aliases)
        targets = zip(run.targets(), gradients, strict=True)
        pairs = [(made[target], grad) for target, grad in targets if grad is not None and made[target].requires_grad]
        wanted = [alias for alias, need in zip(aliases, needed, strict=True) if need]
        if not pairs:
            return [None for _ in needed]
        found = iter(torch.autograd.grad([r for r, _ in pairs], wanted, [g for _, g in pairs], create_graph=twice, allow_unused=True))
    return [next(found) if need else None for need in needed]
