"""Greedy decoding: one persistent kernel against a step under a CUDA graph and an eager loop, in turn. Tokens a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fusedrnn.models import G2P, g2p_checkpoint

from ..loops import Greedy, plan_of
from . import Row, Where
from .timing import in_turn, profiled, ratio, spread

_LETTERS = "etaoinshrdlu"


def cases(where: Where) -> list[Row]:
    if where.dry:
        return [{"model": "g2p", "B": 1, "dtype": "float32"}, {"model": "lstm", "H": 16, "V": 20, "B": 3, "T": 3, "dtype": "bfloat16"}]
    found: list[Row] = [{"model": "g2p", "B": rows, "dtype": "bfloat16"} for rows in (64, 1, 256)]
    found += [{"model": "lstm", "H": 512, "V": words, "B": 8, "T": 128, "dtype": "bfloat16"} for words in (1000, 8000)]
    found += [{"model": "g2p", "B": 64, "dtype": "float32"}]
    return found + [{"model": "lstm", "H": 512, "V": words, "B": 64, "T": 128, "dtype": "bfloat16"} for words in (1000, 8000)]


def measure(case: Row, where: Where, seconds: float) -> list[Row]:
    """A row for each that decodes. What is counted are the tokens of unfinished rows."""
    greedy, weights = _made(case, where)
    loops = {name: greedy.loop(name) for name in ("persistent", "stepwise", "reference")}
    tokens = {name: loop().emit_ta.stack() for name, loop in loops.items()}
    count = int(loops["persistent"]().lengths.sum())
    works: dict[str, Callable[[], Any]] = {name: lambda loop=loop: loop().emit_ta.stack() for name, loop in loops.items()}  # type: ignore[misc]
    works["graphed by hand"] = _graphed(greedy, where)
    times = in_turn(works, where, 11)
    about = {"weights": weights, "tokens": count, "steps": len(tokens["persistent"])} | plan_of(loops["persistent"])

    def row(name: str) -> Row:
        found = {"who": name, "us": spread(times[name]), "tokens_per_second": round(count / spread(times[name])["median"] * 1e6)}
        if name == "persistent":
            return found | about | profiled(loops[name], where)
        equal = _equal(tokens["persistent"], tokens.get(name))
        return found | {"ratio": ratio(times["persistent"], times[name]), "rows_equal": equal}

    return [row(name) for name in works]


def _equal(tokens: torch.Tensor, others: torch.Tensor | None) -> float | None:
    """The part of the rows that have the same tokens; in half precision near ties differ."""
    if others is None:
        return None
    steps = min(len(tokens), len(others))
    return round((tokens[:steps] == others[:steps]).all(0).float().mean().item(), 4)


def _made(case: Row, where: Where) -> tuple[Greedy, str]:
    dtype = getattr(torch, case["dtype"])
    if case["model"] != "g2p":
        return Greedy.made(case["model"], case["H"], case["V"], case["B"], case["T"], dtype), "random"
    weights = "published"
    try:
        model = G2P.pretrained()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        model, weights = G2P(), f"random: {error}".splitlines()[0]
    model = model.to(where.device, dtype)
    lengths = torch.randint(3, 12, (case["B"],))
    letters = torch.randint(0, len(_LETTERS), (int(lengths.max()), case["B"]))
    places = torch.tensor([g2p_checkpoint.GRAPHEMES.index(letter) for letter in _LETTERS])
    state = model.encode(places[letters], lengths, "reference")
    start, end, most = g2p_checkpoint.PHONEME_START, g2p_checkpoint.PHONEME_END, g2p_checkpoint.MAX_STEPS
    return Greedy(model.decoder, model.phoneme_embedding, model.project, start, end, state, most), weights


def _graphed(greedy: Greedy, where: Where) -> Callable[[], None]:
    """The step as one would write it for a CUDA graph, replayed as often as the loop may last; without a GPU it is called."""
    many = isinstance(greedy.state, tuple)
    initial = [part.clone() for part in (greedy.state if many else (greedy.state,))]
    state = [part.clone() for part in initial]
    token = torch.full((len(initial[0]),), greedy.start)
    finished = torch.zeros(len(token), dtype=torch.bool)
    out = torch.zeros(greedy.steps, len(token), dtype=torch.int64)
    at = torch.zeros(1, dtype=torch.int64)

    def step() -> None:
        new = greedy.cell(greedy.embedding(token), tuple(state) if many else state[0])
        parts = list(new) if many else [new]
        best = greedy.project(parts[0]).argmax(-1)
        out.index_copy_(0, at, torch.where(finished, 0, best)[None])
        for old, part in zip(state, parts, strict=True):
            old.copy_(torch.where(finished[:, None], old, part))
        token.copy_(best)
        finished.logical_or_(best == greedy.end)
        at.add_(1)

    def reset() -> None:
        for old, part in zip(state, initial, strict=True):
            old.copy_(part)
        token.fill_(greedy.start)
        finished.zero_()
        at.zero_()

    once = step
    if not where.dry:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            reset()
            step()
        torch.cuda.current_stream().wait_stream(side)
        reset()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        once = graph.replay

    def run() -> None:
        reset()
        for _ in range(greedy.steps):
            once()

    return run
