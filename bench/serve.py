"""Continuous batching against servers that gather a batch and wait for all of it, the same model behind each: requests a second at the
same p99, under open-loop load."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fusedrnn.serve import Engine

from . import measure
from .case import Missing
from .serving import characters
from .serving.batch_and_wait import BatchAndWait
from .serving.load import Curve, Report, Server, arrivals, driven
from .serving.over_http import OverHttp

_LIMITS = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)  # of the p99, by what the longest answer takes alone
_RATES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15)  # of what continuous batching serves where all come at once
_MINE, _BATCHES, _MINE_OVER_HTTP, _LITSERVE = "continuous", "batch-and-wait", "continuous, HTTP", "LitServe, HTTP"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--slots", type=int, default=64, help="requests at once, of each server (default 64)")
    parser.add_argument("--hidden", type=int, help="units of an LSTM with random weights (default: the shipped model, 192)")
    parser.add_argument(
        "--shape", type=float, default=1.1, help="of the Pareto distribution of lengths: the less, the heavier (default 1.1)"
    )
    parser.add_argument("--least", type=int, default=8, help="characters of the shortest answers (default 8)")
    parser.add_argument("--most", type=int, default=1024, help="characters of the longest answers (default 1024)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (default 5)")
    parser.add_argument("--rates", type=int, default=12, metavar="N", help="offer the first N of the twelve rates (default 12)")
    parser.add_argument("--repeats", type=int, default=2, help="of each load; the one with the least p99 counts (default 2)")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that a batch waits for more requests (default 0)")
    parser.add_argument("--threads", type=int, default=1, help="of a launch (default 1: the load and Python need a core too)")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, arrivals and draws (default 0)")
    parser.add_argument("--only", choices=["process", "http"], help="servers in this process alone, or those over HTTP")
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
    found: dict[str, Any] = {}
    for group, open_group in (("process", _in_process), ("http", _over_http)):
        if args.only not in (None, group):
            continue
        async with AsyncExitStack() as stack:
            try:
                servers = await open_group(args, stack)
            except Missing as error:
                print(f"servers over HTTP are left out: {error}", flush=True)
                continue
            if not await _same(_requests(args, 3 * args.slots), *servers.values()):
                print("the servers' answers differ")
                return None
            gc.collect()
            gc.freeze()  # a collection of all that importing torch has made takes 0.15 s, and stops every request
            found[group] = await _compared(args, servers)
    return found


async def _in_process(args: argparse.Namespace, stack: AsyncExitStack) -> dict[str, Server]:
    model = characters.model(args.hidden, args.most)
    engine = await stack.enter_async_context(Engine(model, args.slots, queue=1 << 20))

    def continuous(request: Any) -> AsyncIterator[Any]:
        return engine.generate(request)

    return {_MINE: continuous, _BATCHES: await stack.enter_async_context(BatchAndWait(model, args.slots, args.wait))}


async def _over_http(args: argparse.Namespace, stack: AsyncExitStack) -> dict[str, Server]:
    names = ("hidden", "most", "slots", "threads", "wait")
    options = [word for name in names if getattr(args, name) is not None for word in (f"--{name}", str(getattr(args, name)))]
    servers: dict[str, Server] = {}
    for name, who in ((_MINE_OVER_HTTP, "fusedrnn"), (_LITSERVE, "litserve")):
        try:
            servers[name] = await stack.enter_async_context(OverHttp(who, *options))
        except Missing as error:
            if who == "fusedrnn":
                raise
            print(f"{name} is left out: {error}", flush=True)
    return servers


async def _compared(args: argparse.Namespace, servers: Mapping[str, Server]) -> dict[str, Any]:
    """Loads at rising rates, each server in turn, so that what else the machine does meets all; a server that is far too late is let be."""
    mine = next(iter(servers))
    alone, highest = await _alone(args, servers[mine]), await _highest(args, servers[mine])
    print(f"the longest answer alone takes {alone * 1e3:.0f} ms; all at once, {mine} serves {highest:.0f} requests/s")
    print(_line("server", "offered/s", "served/s", "chars/s", ["first p50", "p95", "p99", "total p50", "p95", "p99"]))
    loads: dict[str, list[Report]] = {name: [] for name in servers}
    for rate in _RATES[: args.rates]:
        for name, server in servers.items():
            if loads[name] and loads[name][-1].total["p99"] > 2 * _LIMITS[-1] * alone:
                continue
            reports = [await driven(server, *_load(args, rate * highest), len) for _ in range(args.repeats)]
            loads[name].append(min(reports, key=lambda report: (report.failed, report.total["p99"])))
            print(_shown(name, loads[name][-1]), flush=True)
    curves = {name: Curve(reports) for name, reports in loads.items()}
    served = _table(curves, alone, first=_BATCHES in curves)  # over HTTP whole answers are asked for
    print()
    return {
        "alone_seconds": alone, "all_at_once": highest, "served": served,
        "loads": {name: [asdict(report) for report in reports] for name, reports in loads.items()},
    }  # fmt: skip


def _table(curves: Mapping[str, Curve], alone: float, *, first: bool) -> list[dict[str, Any]]:
    """Printed and returned: requests a second of each server at the same p99, and the ratios of the first to the others."""
    mine, *others = curves
    rows = []
    for of, what in (("total", "the whole answer"), ("first", "the first chunk"))[: 1 + first]:
        print(
            f"\nrequests/s with the p99 of {what} within\n{'':<20}"
            + "".join(f"{name:>18}" for name in curves)
            + f"{'ratio':>10}" * len(others)
        )
        for times in _LIMITS:
            served = {name: curve.served(of, times * alone) for name, curve in curves.items()}
            ratios = {name: _ratio(served[mine], served[name]) for name in others}
            rows.append({"of": of, "limit_seconds": times * alone, "limit_times_alone": times, "served": served, "ratios": ratios})
            print(
                f"{1e3 * times * alone:>8.0f} ms ({times:.3g} x)".ljust(20)
                + "".join(f"{'-' if rate is None else f'{rate:.0f}':>18}" for rate in served.values())
                + "".join(f"{'-' if ratio is None else f'{ratio:.2f}':>10}" for ratio in ratios.values())
            )
    return rows


def _ratio(mine: float | None, theirs: float | None) -> float | None:
    return None if mine is None or theirs is None else mine / theirs


def _requests(args: argparse.Namespace, count: int) -> list[Any]:
    return characters.requests(count, args.seed, least=args.least, most=args.most, shape=args.shape)


def _load(args: argparse.Namespace, rate: float) -> tuple[Sequence[Any], Sequence[float]]:
    count = max(int(rate * args.seconds), 50)
    return _requests(args, count), arrivals(rate, count, args.seed)


async def _joined(chunks: AsyncIterator[str]) -> str:
    return "".join([chunk async for chunk in chunks])


async def _same(wanted: Sequence[Any], *servers: Callable[[Any], AsyncIterator[Any]]) -> bool:
    """Whether all servers give the same answers, which also warms them up."""
    answers = [await asyncio.gather(*[_joined(server(request)) for request in wanted]) for server in servers]
    return all(answer == answers[0] for answer in answers)


async def _alone(args: argparse.Namespace, server: Server) -> float:
    """Seconds of the longest answer where there is no other."""
    longest = characters.request("", args.most, 1)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        await _joined(server(longest))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


async def _highest(args: argparse.Namespace, server: Server) -> float:
    """Requests a second where all are there from the start."""
    wanted = _requests(args, 1000)
    reports = [await driven(server, wanted, [0.001] * len(wanted), len) for _ in range(2)]
    return max(report.served for report in reports)


def _line(name: str, offered: str, served: str, units: str, times: Sequence[str]) -> str:
    return f"{name:<18}{offered:>11}{served:>10}{units:>9}" + "".join(
        f"{text:>{11 if place % 3 == 0 else 8}}" for place, text in enumerate(times)
    )


def _shown(name: str, report: Report) -> str:
    times = [f"{1e3 * times[key]:.0f}" for times in (report.first, report.total) for key in ("p50", "p95", "p99")]
    return _line(name, f"{report.offered:.1f}", f"{report.served:.1f}", f"{report.units:.0f}", times)
