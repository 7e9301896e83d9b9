"""What a model is to the engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..contract import LoopFn
from ..trees import Tree
from .rows import Row, Value

Values = Mapping[str, Value]


@dataclass(frozen=True)
class SlotLoop:
    """A loop over slots.

    Attributes:
        cell, loop_fn: as for `fusedrnn.raw_rnn`, with the slots as the batch. At time 0 loop_fn hands on what it closes over; it multiplies
            nothing there.
        rows: by name, the tensors that loop_fn closes over and that hold something of each slot, such as the initial state. They begin as
            zeros, and a slot's part is zeroed and written when a request is admitted to it.
    """

    cell: Any
    loop_fn: LoopFn
    rows: Mapping[str, Row]


class Model(ABC):
    """A recurrent model whose requests are rows of one loop.

    Attributes:
        name: for logs and addresses.
        wants_state: `ended` is given the row's last state.
    """

    name = "model"
    wants_state = False

    @abstractmethod
    def loop(self, slots: int) -> SlotLoop:
        """The loop over so many slots. An engine calls it a few times as it is made, with sizes from `slots` on; what it returns is made
        anew each time, but for the weights."""

    def check(self, request: Any) -> None:  # noqa: B027  a model may take anything
        """Refuse what is no request of this model, before it is queued. Called where requests come in, so it should be quick.

        Raises:
            TypeError, ValueError: what is wrong with it.
        """

    @abstractmethod
    def admit(self, requests: Sequence[Any]) -> Sequence[Values | Exception]:
        """What rows of these requests begin with: for each the values of the loop's `rows` by name, or what is wrong with it.

        A value is a tensor, a numpy array, or, where a row holds one number, that number. A request's values may not depend on the others
        that are admitted with it. Called in the engine's thread; `check`, `emit` and `ended` are called in that of the event loop, and may
        be at the same time.
        """

    @abstractmethod
    def emit(self, request: Any, values: Tree) -> Any:
        """A chunk of a request's output, or None where there is nothing to hand on yet.

        Args:
            values: the structure of loop_fn's emit, of numpy arrays ``[steps, ...]``: what the row emitted in the steps of one launch. They
                are views of arrays that hold all rows: copy what is kept.
        """

    def ended(self, request: Any, state: Tree) -> Any:
        """A last chunk of a request whose row has finished, or None; ``state`` is the cell's, without the batch dimension, if
        `wants_state` is set."""
        return None
