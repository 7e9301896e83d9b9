"""Continuous batching against batch-and-wait, in one process over the same model: throughput at the same p99 under open-loop load."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fusedrnn.models import Characters
from fusedrnn.models.characters import CharacterSizes
from fusedrnn.serve import CharactersModel, Continuation, Engine

from . import measure
from .serving.batch_and_wait import BatchAndWait
from .serving.load import Report, Search, arrivals, driven, heavy_tailed

_PROMPTS = ("", "in", "un", "the ", "re", "s", "co", "mac")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--slots", type=int, default=64, help="requests at once, of either server (default 64)")
    parser.add_argument("--hidden", type=int, help="units of an LSTM with random weights (default: the shipped model, 192)")
    parser.add_argument(
        "--shape", type=float, default=1.1, help="of the Pareto distribution of lengths: the less, the heavier (default 1.1)"
    )
    parser.add_argument("--least", type=int, default=8, help="characters of the shortest answers (default 8)")
    parser.add_argument("--most", type=int, default=1024, help="characters of the longest answers (default 1024)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load (default 8)")
    parser.add_argument("--trials", type=int, default=7, help="rates that each server is offered (default 7)")
    parser.add_argument("--repeats", type=int, default=2, help="of a load that is over the limit, before it counts (default 2)")
    parser.add_argument("--of", choices=["total", "first"], default="total", help="whose p99: the whole answer's or the first chunk's")
    parser.add_argument("--limit", type=float, help="seconds of that p99 (default: twice what the longest answer takes alone)")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that batch-and-wait waits for more requests (default 0)")
    parser.add_argument("--threads", type=int, default=1, help="of a launch (default 1: the load and Python need a core too)")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, arrivals and draws (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")


def run(args: argparse.Namespace) -> int:
    """Measure; 1 where the servers' answers differ."""
    torch.set_num_threads(args.threads)
    try:
        measured = asyncio.run(_measured(args))
    finally:
        gc.unfreeze()
    if measured is None:
        return 1
    if args.json:
        arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        args.json.write_text(json.dumps({**measure.circumstances(), "arguments": arguments, "measured": measured}, indent=2) + "\n")
    return 0


async def _measured(args: argparse.Namespace) -> dict[str, Any] | None:
    torch.manual_seed(args.seed)
    characters = Characters.pretrained() if args.hidden is None else Characters(CharacterSizes(hidden_size=args.hidden))
    model = CharactersModel(characters, most=args.most)
    engine = Engine(model, args.slots, queue=1 << 20)
    async with engine, BatchAndWait(model, args.slots, args.wait) as batches:

        def continuous(request: Any) -> AsyncIterator[Any]:
            return engine.generate(request)

        if not await _same(requests(args, 3 * args.slots), continuous, batches):
            print("the servers' answers differ")
            return None
        alone = await _alone(args, continuous)
        highest = await _highest(args, continuous)
        limit = args.limit or 2 * alone
        gc.collect()
        gc.freeze()  # a collection of all that importing torch has made takes 0.15 s, and stops every request
        print(f"the longest answer alone takes {alone * 1e3:.0f} ms; all at once, {highest:.0f} requests/s; p99 up to {limit * 1e3:.0f} ms")
        print(_line("server", "offered/s", "served/s", "chars/s", ["first p50", "p95", "p99", "total p50", "p95", "p99"]))
        found: dict[str, Any] = {"alone_seconds": alone, "limit_seconds": limit, "all_at_once": highest}
        servers = {"batch-and-wait": batches, "continuous": continuous}
        searches = {name: Search(args.of, limit, 1.2 * highest) for name in servers}
        loads: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
        for _ in range(args.trials):
            for name, server in servers.items():  # in turn: what else the machine does meets both
                search = searches[name]
                for _ in range(args.repeats):  # a load that is over because of something else is not over again
                    report = await driven(server, *_load(args, search.rate), len)
                    loads[name].append({**asdict(report), "within": search.within(report)})
                    print(_shown(name, report) + ("" if search.within(report) else "  over"), flush=True)
                    if search.within(report):
                        break
                search.note(report)
        for name, search in searches.items():
            found[name] = {"best": None if search.best is None else asdict(search.best), "loads": loads[name]}
    if found["continuous"]["best"] and found["batch-and-wait"]["best"]:
        found["ratio"] = found["continuous"]["best"]["served"] / found["batch-and-wait"]["best"]["served"]
        within = f"within {limit * 1e3:.0f} ms ({args.of} p99)"
        print(f"continuous batching serves {found['ratio']:.2f} times the requests of batch-and-wait {within}")
    found["metrics"] = {"occupancy": engine.metrics.occupancy.mean, "steps_per_launch": engine.metrics.steps_per_launch.mean}
    return found


def requests(args: argparse.Namespace, count: int) -> list[Continuation]:
    """So many requests with heavy-tailed lengths, the same for each server."""
    lengths = heavy_tailed(count, args.seed, least=args.least, most=args.most, shape=args.shape)
    return [
        Continuation(_PROMPTS[place % len(_PROMPTS)], length, temperature=0.8, top_k=20, seed=place, one_word=False)
        for place, length in enumerate(lengths)
    ]


def _load(args: argparse.Namespace, rate: float) -> tuple[Sequence[Any], Sequence[float]]:
    count = max(int(rate * args.seconds), 50)
    return requests(args, count), arrivals(rate, count, args.seed)


async def _joined(chunks: AsyncIterator[str]) -> str:
    return "".join([chunk async for chunk in chunks])


async def _same(wanted: Sequence[Any], *servers: Callable[[Any], AsyncIterator[Any]]) -> bool:
    """Whether all servers give the same answers, which also warms them up."""
    answers = [await asyncio.gather(*[_joined(server(request)) for request in wanted]) for server in servers]
    return all(answer == answers[0] for answer in answers)


async def _alone(args: argparse.Namespace, server: Callable[[Any], AsyncIterator[Any]]) -> float:
    """Seconds of the longest answer where there is no other."""
    longest = Continuation("", args.most, temperature=0.8, seed=1, one_word=False)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        await _joined(server(longest))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


async def _highest(args: argparse.Namespace, server: Callable[[Any], AsyncIterator[Any]]) -> float:
    """Requests a second where all are there from the start."""
    wanted = requests(args, 1000)
    report = await driven(server, wanted, [0.001] * len(wanted), len)
    return report.served


def _line(name: str, offered: str, served: str, units: str, times: Sequence[str]) -> str:
    return f"{name:<18}{offered:>11}{served:>10}{units:>9}" + "".join(
        f"{text:>{11 if place % 3 == 0 else 8}}" for place, text in enumerate(times)
    )


def _shown(name: str, report: Report) -> str:
    times = [f"{1e3 * times[key]:.0f}" for times in (report.first, report.total) for key in ("p50", "p95", "p99")]
    return _line(name, f"{report.offered:.1f}", f"{report.served:.1f}", f"{report.units:.0f}", times)
