"""What is measured, declared: a work, its peers, its shapes. In: nothing; out: cases. `bench.runner` runs them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

Shape = dict[str, Any]


class Missing(Exception):
    """Why a peer does not run here, in one line that says what is missing."""


@dataclass(frozen=True)
class Run:
    """One who does the work.

    Attributes:
        call: what is timed. A float that it returns is its own measurement of its seconds.
        outputs: what is compared before anything is timed; None: what `call` returns.
        version: of whoever does it, where `bench.measure.circumstances` does not tell.
    """

    call: Callable[[], Any]
    outputs: Callable[[], Sequence[Any]] | None = None
    version: str | None = None

    def results(self) -> Sequence[Any]:
        """Arrays, tensors or lists, in one order for everyone who does the same work."""
        found: Sequence[Any] = (self.outputs or self.call)()
        return found


class Work(Protocol):
    """The work of one shape. ``count`` of the case's unit are done by one call."""

    count: float

    def fused(self) -> Run:
        """fusedrnn's."""


@dataclass(frozen=True)
class Peer:
    """Someone else who can do the work.

    Attributes:
        make: of the work, its run; raises `Missing`.
        where: whether it is asked at a shape.
    """

    make: Callable[[Any], Run]
    where: Callable[[Shape], bool] = lambda shape: True


def within(tolerance: float) -> Callable[[Any, Sequence[Any], Sequence[Any]], str | None]:
    """A comparison: floating-point outputs may differ by so much of the peer's greatest element, or of 1; all else is equal."""

    def differ(work: Any, ours: Sequence[Any], theirs: Sequence[Any]) -> str | None:
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if not isinstance(one, torch.Tensor):
                if one != other:
                    return f"output {place} is another one"
                continue
            mine, peer = one.detach().double(), torch.from_numpy(np.array(other)).double() if not isinstance(other, torch.Tensor) else other
            if mine.shape != peer.shape:
                return f"output {place} has shape {list(mine.shape)}, the peer's {list(peer.shape)}"
            worst = float((mine - peer.detach().double()).abs().max() / peer.detach().abs().max().double().clamp(min=1.0))
            if not worst <= tolerance:  # NaN is not
                return f"output {place} differs by {worst:.2g}, allowed are {tolerance:.2g}"
        return None

    return differ


@dataclass(frozen=True)
class Case:
    """One work at several shapes against its peers.

    Attributes:
        name: of the file in `bench.cases`.
        about: what it is, in a few words.
        unit: "us/step" (less is better) or "tokens/s", "words/s" (more is better), of `Work.count`.
        axes: the shapes: of each mapping, every combination of its values.
        quick: those of ``--quick``.
        make: the work of a shape.
        peers: by the name that tables print.
        differ: of the work, fusedrnn's outputs and the peer's: what is wrong, or None.
        fit: axes along which times are fitted by a power, all others being as in the first shape.
    """

    name: str
    about: str
    unit: str
    axes: Sequence[Mapping[str, Sequence[Any]]]
    quick: Sequence[Mapping[str, Sequence[Any]]]
    make: Callable[[Shape], Work]
    peers: Mapping[str, Peer]
    differ: Callable[[Any, Sequence[Any], Sequence[Any]], str | None] = within(1e-4)  # noqa: RUF009
    fit: Sequence[str] = ()

    def shapes(self, quick: bool = False, given: Mapping[str, Sequence[Any]] | None = None) -> list[Shape]:
        """Every shape once. ``given`` replaces the values of axes that the case has."""
        found: list[Shape] = []
        for axes in self.quick if quick else self.axes:
            values = {name: (given or {}).get(name, some) for name, some in axes.items()}
            found += [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
        return [shape for place, shape in enumerate(found) if shape not in found[:place]]


def text(shape: Shape) -> str:
    """A shape as tables print it."""
    return " ".join(str(value) if isinstance(value, str) else f"{name}={value}" for name, value in shape.items())
