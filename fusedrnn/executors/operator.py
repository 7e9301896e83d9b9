"""A prepared loop as one PyTorch operator, for torch.compile and torch.export. In: the closed-over tensors; out: what the loop leaves.

``fusedrnn::loop(Tensor[] tensors, Tensor? seed, str key) -> Tensor[]`` gives the leaves of the emits ``[T_run, B, ...]``, of the final
state and of the final loop_state, then lengths ``[B]`` int32 and finished ``[B]`` bool. The key names a loop of this process.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._library.fake_impl import allocate_size

from ..capture.sizes import function_of
from ..contract import Call, Leaf
from ..frames import Frame
from ..optimise.bounds import exact
from ..result import Result
from ..tensor_array import EmitArray
from . import differentiated, native, persistent
from .warm import Warm

_numbers = itertools.count()
_COMPILES: dict[str, differentiated.Compile] = {"native": native.for_call, "persistent": persistent.for_call}


@dataclass(eq=False)
class Operand:
    """A loop that the operator runs.

    Attributes:
        call, warm: the loop.
        key: its name.
    """

    call: Call
    warm: Warm
    key: str = field(default_factory=lambda: f"loop {next(_numbers)}")

    def __post_init__(self) -> None:
        begun = self.warm.begun
        self.draws = self.warm.draws
        self.autocast = _autocast(begun.device.type)
        self.emits, self.state = self.warm.emit_port, begun.state_port
        self.loop_state = begun.loop_state_port
        self.device = begun.device
        finished = next((known for (kind, _), known in self.warm.first.known if kind == "finished"), None)
        starts = isinstance(finished, torch.Tensor) and not bool(finished.any())
        found = [function_of(size) for size in (exact(self.warm.program) if starts else [])]
        self._exact, self._symbols = [size for size, _ in found], {name for _, names in found for name in names}
        _operands[self.key] = self

    def suits(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether it holds for these tensors and torch's settings."""
        return self.warm.fits(tensors) and _autocast(self.device.type) == self.autocast

    def seed(self) -> torch.Tensor | None:
        """A seed for one run, from torch's default CPU generator; None where the loop draws nothing."""
        return torch.randint(2**63 - 1, (), dtype=torch.int64) if self.draws else None

    def result(self, made: Sequence[torch.Tensor]) -> Result:
        """What the loop returns, of what the operator gave."""
        lengths, finished = made[-2], made[-1]

        def get_lengths() -> torch.Tensor:
            return lengths

        def truncated() -> torch.Tensor:
            return ~finished

        def array(emit: torch.Tensor, leaf: Leaf) -> EmitArray:
            return EmitArray(lambda: emit, get_lengths, truncated, dtype=leaf.dtype, element_shape=leaf.shape, device=self.device)

        of_state = len(self.emits.leaves)
        of_loop_state = of_state + len(self.state.leaves)
        arrays = [array(emit, leaf) for emit, leaf in zip(made[:of_state], self.emits.leaves, strict=True)]
        loop_state = None if self.loop_state is None else self.loop_state.tree(list(made[of_loop_state:-2]))
        state = self.state.tree(list(made[of_state:of_loop_state]))
        return Result(self.emits.tree(arrays), state, loop_state, get_lengths, truncated, self.warm.loop.executor)

    def fakes(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Tensors like those that the operator gives."""
        device, batch = self.device, self.warm.begun.batch
        steps = self.steps(tensors)
        if steps is None:
            # The context's new_dynamic_size does the same where torch._dynamo.config.capture_dynamic_output_shape_ops is set, which is not
            # the default: it would keep the operator out of the graph, and the graph is what is asked for.
            steps = allocate_size(torch.library.get_ctx()._shape_env)  # type: ignore[no-untyped-call]
        emits = [torch.empty((steps, *(leaf.shape or ())), dtype=leaf.dtype, device=device) for leaf in self.emits.leaves]
        carried = [*self.state.leaves, *([] if self.loop_state is None else self.loop_state.leaves)]
        return [
            *emits, *[torch.empty(leaf.shape or (), dtype=leaf.dtype, device=device) for leaf in carried],
            torch.empty(batch, dtype=torch.int32, device=device), torch.empty(batch, dtype=torch.bool, device=device),
        ]  # fmt: skip

    def steps(self, tensors: Sequence[torch.Tensor]) -> Any:
        """How many steps the loop takes, where the sizes tell; else None."""
        if not self._exact:
            return None
        places, batch, limit = self.warm.program.symbols, self.warm.begun.batch, self.call.max_steps
        values = {name: tensors[places[name][0]].shape[places[name][1]] if name in places else batch for name in self._symbols}
        return min([size(values) for size in self._exact] + ([] if limit is None else [limit]))

    def run(self, tensors: Sequence[torch.Tensor], seed: torch.Tensor | None) -> list[torch.Tensor]:
        """What the operator gives. On a GPU the host waits only where it has to learn how many steps there were."""
        frame, ended = _frame(seed), None
        with outside(), torch.no_grad():
            settled = self.warm.started(tensors, frame)
            if settled is not None:
                number: Any = frame.seed if self.warm.program.draws else None
                bound = self.warm.loop.bound(self.warm.program, self.call, settled[0], tensors, number, settled[1])
                ended = bound.run(self.steps(tensors))
            if ended is None:
                raise IndexError(
                    "a row that was not finished read past the end of an input: run the loop outside of torch.compile to learn where"
                )
            emits = [ended.made["emit", place] for place in range(len(self.emits.leaves))]
            return [*emits, *ended.leaves["state"], *ended.leaves["loop_state"], ended.lengths, ended.finished]

    def recorded(self, tensors: Sequence[torch.Tensor]) -> Result:
        """A run that a CUDA graph records: every replay writes the same tensors.

        Raises:
            RuntimeError: it draws, or the number of its steps depends on more than sizes.
        """
        if self.draws:
            raise RuntimeError("a CUDA graph is being captured, and this loop draws at random: every replay would repeat the same draws")
        if self.steps(tensors) is None:
            raise RuntimeError(
                "a CUDA graph is being captured, and the number of steps of this loop depends on its data: let all rows finish at a time "
                "that is known, such as that of max_steps or of the inputs' end, and cut the emits with their lengths"
            )
        return self.result(self.run(tensors, None))

    def gradients(
        self,
        tensors: Sequence[torch.Tensor],
        seed: torch.Tensor | None,
        of: Sequence[torch.Tensor],
        places: Sequence[int],
        needed: Sequence[bool],
    ) -> list[torch.Tensor]:
        """The gradients of the needed tensors, from those of the results in some places: the loop runs again, and keeps what its
        derivative needs."""
        warm, frame = self.warm, _frame(seed)
        with outside(), torch.enable_grad():
            lifted = [tensor.detach().requires_grad_(need) for tensor, need in zip(tensors, needed, strict=True)]
            sources = [tensor for tensor, need in zip(lifted, needed, strict=True) if need]
            settled = warm.started(lifted, frame)
            assert settled is not None, "the forward found it"
            started, tokens = settled
            for place, token in tokens.items():
                started.inputs[place] = lifted[warm.loop.embeddings[place]][token]
            ended = differentiated.ended(_COMPILES[warm.loop.executor], self.call, frame, started, warm.program, lifted)
            assert ended is not None, "the forward found it"
            results = [ended.made["emit", place] for place in range(len(self.emits.leaves))]
            results += [*ended.leaves["state"], *ended.leaves["loop_state"]]
            given = [(results[place], grad) for place, grad in zip(places, of, strict=True)]
            pairs = [(result, grad) for result, grad in given if result is not None and result.requires_grad]
            found: Sequence[torch.Tensor | None] = [None] * len(sources)
            if pairs:
                found = torch.autograd.grad([result for result, _ in pairs], sources, [grad for _, grad in pairs], allow_unused=True)
        return [torch.zeros_like(source) if grad is None else grad for source, grad in zip(sources, found, strict=True)]


_operands: weakref.WeakValueDictionary[str, Operand] = weakref.WeakValueDictionary()


def _known(key: str) -> Operand:
    operand = _operands.get(key)
    if operand is None:
        raise RuntimeError(
            f"{key!r} is no loop of this process, or it is gone: keep a fusedrnn.compile'd loop for as long as what calls it"
        )
    return operand


def _frame(seed: torch.Tensor | None) -> Frame:
    frame = Frame(0)
    if seed is not None:
        frame.seed = int(seed)
    return frame


def _keys() -> tuple[Any, Any]:
    return torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


with ThreadPoolExecutor(1) as _pool:
    _OUTSIDE = _pool.submit(_keys).result()  # of the dispatcher in a thread that is in nothing


@contextmanager
def outside() -> Iterator[None]:
    """Torch as it is outside of an operator, in which the dispatcher leaves out autograd, and vmap in what torch.compile made. Casts are
    in the captured programs, which want no others."""
    with torch._C._ForceDispatchKeyGuard(*_OUTSIDE), torch.inference_mode(False):
        yield


def _autocast(kind: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


@torch.library.custom_op("fusedrnn::loop", mutates_args=())
def loop(tensors: list[torch.Tensor], seed: torch.Tensor | None, key: str) -> list[torch.Tensor]:
    """As the module says.

    Raises:
        IndexError: a row that was not finished read past the end of an input.
        RuntimeError: there is no such loop.
    """
    given = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    made = _known(key).run(tensors, seed)
    return [result.clone() if result.untyped_storage().data_ptr() in given else result for result in made]


@loop.register_fake
def _(tensors: list[torch.Tensor], seed: torch.Tensor | None, key: str) -> list[torch.Tensor]:
    return _known(key).fakes(tensors)


@torch.library.custom_op("fusedrnn::loop_backward", mutates_args=())
def loop_backward(
    tensors: list[torch.Tensor], seed: torch.Tensor | None, gradients: list[torch.Tensor], places: list[int], needed: list[bool], key: str
) -> list[torch.Tensor]:
    """The gradients of the needed tensors, from those of the results in some places.

    Raises:
        RuntimeError: there is no such loop.
    """
    return _known(key).gradients(tensors, seed, gradients, places, needed)


@loop_backward.register_fake
def _(
    tensors: list[torch.Tensor], seed: torch.Tensor | None, gradients: list[torch.Tensor], places: list[int], needed: list[bool], key: str
) -> list[torch.Tensor]:
    return [torch.empty_like(tensor) for tensor, need in zip(tensors, needed, strict=True) if need]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    tensors, seed, ctx.key = inputs
    ctx.needed = [tensor.requires_grad for tensor in tensors]
    ctx.draws = seed is not None
    ctx.save_for_backward(*tensors, *([] if seed is None else [seed]))


def _backward(ctx: Any, gradients: list[torch.Tensor | None]) -> Any:
    tensors = list(ctx.saved_tensors)
    seed = tensors.pop() if ctx.draws else None
    given = [(place, gradient) for place, gradient in enumerate(gradients) if gradient is not None and gradient.is_floating_point()]
    made = iter(loop_backward(tensors, seed, [gradient for _, gradient in given], [place for place, _ in given], ctx.needed, ctx.key))
    return [next(made) if need else None for need in ctx.needed], None, None


loop.register_autograd(_backward, setup_context=_save)
