"""Files of text through Ray Data. In: a dataset with a column of text; out: the dataset with what a model makes of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...extras import needed
from ..errors import QueueFull
from ..http.problems import Problem
from ..work import Ticket
from .served import Served, checked, made

Column = npt.NDArray[Any]


class Decoder:
    """One process's part of the work: batches whose rows come and go in the slots, as in a server, so that none waits for the longest.

    Args:
        served, column, output, parameters, threads: as `decode` has them.
        engine: arguments of `Engine`.

    Raises:
        TypeError: the model makes no text.
    """

    def __init__(
        self, served: Served, column: str, output: str, parameters: Mapping[str, Any], threads: int, engine: Mapping[str, Any]
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        self._face = made(served, **engine)
        if not self._face.generates:
            raise TypeError(f"the model {self._face.name!r} makes no text of a text")
        self._scheduler = self._face.engine.scheduler
        self._column, self._output, self._parameters = column, output, self._face.known(parameters)

    def __call__(self, batch: dict[str, Column]) -> dict[str, Column]:
        """The batch with two columns more."""
        tickets, errors = list[Ticket | None](), list[str]()
        for text in batch[self._column].tolist():
            ticket, error = None, ""
            try:
                ticket = self._submitted(self._face.row(text, self._parameters))
            except (TypeError, ValueError, Problem) as refused:
                error = str(refused)
            tickets.append(ticket)
            errors.append(error)
        while self._scheduler.step():
            pass
        texts = ["" if ticket is None else self._text(ticket) for ticket in tickets]
        failed = ["" if ticket is None or ticket.error is None else str(ticket.error) for ticket in tickets]
        return {
            **batch,
            self._output: np.array(texts, dtype=object),
            "error": np.array([error or late for error, late in zip(errors, failed, strict=True)], dtype=object),
        }

    def _submitted(self, request: Any) -> Ticket:
        while True:
            try:
                return self._scheduler.submit(request)
            except QueueFull:
                self._scheduler.step()

    def _text(self, ticket: Ticket) -> str:
        return "" if ticket.error else "".join(self._face.text(chunk, not place) for place, chunk in enumerate(ticket.chunks))


def decode(
    dataset: Any,
    model: Served = "g2p",
    *,
    column: str = "text",
    output: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    workers: int = 2,
    cpus: float = 0.5,
    batch_size: int = 2048,
    slots: int = 256,
    **engine: Any,
) -> Any:
    """A dataset with what a model makes of a column of text.

    Args:
        dataset: a `ray.data.Dataset`, such as of `ray.data.read_text`.
        model: "g2p", "chars", or a function that makes a `Model` or an `http.Face` with text. It is called once in each worker.
        column: the text's.
        output: the column that is made; None: "phonemes" for g2p, else "output".
        parameters: for every row, as ``generate`` has them: of chars ``max_tokens``, ``temperature``, ``seed`` and others.
        workers: processes.
        cpus: that Ray counts for each of them. All of them together must leave one of the cluster's: Ray reads and writes with it.
        batch_size: rows of a batch.
        slots, engine: as `Engine` has them.

    Returns:
        A `ray.data.Dataset` with that column and a column ``error``: "", or what is wrong with this row, whose output is then "".
        Nothing is computed before the dataset is read. Ray gives rows in the order in which they are done, unless its
        ``preserve_order`` is set.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ValueError, TypeError: an argument is not as it should be.
    """
    strategy, ray = needed("ray.data", "ray").ActorPoolStrategy, needed("ray", "ray")
    for name, number in (("workers", workers), ("batch_size", batch_size), ("slots", slots)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {number!r}")
    there = ray.cluster_resources().get("CPU", 0.0) if ray.is_initialized() else math.inf
    if workers * cpus > there - 1:
        warnings.warn(
            f"{workers} workers of {cpus:g} CPUs leave none of the cluster's {there:g} to read and to write with: unless it grows, nothing "
            "will ever be done. Take fewer workers, or fewer cpus for each",
            RuntimeWarning,
            stacklevel=2,
        )
    made_column = output or ("phonemes" if model == "g2p" else "output")
    threads = max(1, math.floor(cpus))
    return dataset.map_batches(
        Decoder,
        fn_constructor_args=(checked(model), column, made_column, dict(parameters or {}), threads, {"slots": slots, **engine}),
        batch_size=batch_size,
        batch_format="numpy",
        compute=strategy(size=workers),
        num_cpus=cpus,
    )
