"""The load, on servers whose speed is known; and both servers of the comparison on a few requests."""

from __future__ import annotations

import argparse
import asyncio
import json

import numpy as np
import pytest

from bench import serve
from bench.serving import over_http
from bench.serving.batch_and_wait import BatchAndWait
from bench.serving.load import Curve, Report, arrivals, driven, heavy_tailed
from fusedrnn.serve import Engine
from tests.serve.loops import Say, Sayer

pytestmark = pytest.mark.usefixtures("auto")


def test_arrivals_are_a_poisson_process_of_that_rate():
    gaps = np.diff(arrivals(200.0, 20_000, seed=1))
    assert (gaps > 0).all()
    assert abs(gaps.mean() * 200 - 1) < 0.03
    assert abs(gaps.std() * 200 - 1) < 0.05  # of an exponential distribution it is the mean
    assert arrivals(200.0, 5, seed=1) == arrivals(200.0, 5, seed=1) != arrivals(200.0, 5, seed=2)


def test_lengths_are_within_bounds_and_a_few_are_most_of_the_work():
    lengths = np.sort(heavy_tailed(10_000, 0, least=8, most=1024, shape=1.1))
    assert lengths[0] == 8
    assert lengths[-1] == 1024
    assert np.median(lengths) < 20
    assert lengths[-1000:].sum() > lengths.sum() / 2


def test_a_load_counts_from_when_a_request_was_due_and_notes_failures():
    async def server(request):
        await asyncio.sleep(0.02)
        if request == "bad":
            raise ValueError("bad")
        yield "ab"
        await asyncio.sleep(0.03)
        yield "c"

    report = asyncio.run(driven(server, ["x", "bad", "y", "z"], [0.0, 0.01, 0.02, 0.03], len))
    assert report.failed == 1
    assert 0.02 <= report.first["p50"] < 0.045
    assert 0.05 <= report.total["p50"] < 0.09
    assert report.units == pytest.approx(3 * report.served)
    assert report.offered == pytest.approx(4 / 0.03)


def report(rate, late, failed=0):
    return Report(rate, rate, rate, failed, {"p99": late / 2}, {"p99": late})


def test_what_is_served_within_a_limit_is_read_between_two_loads():
    curve = Curve([report(200, 0.09), report(50, 0.01), report(100, 0.03)])
    assert curve.served("total", 0.005) is None
    assert curve.served("total", 0.01) == 50
    assert curve.served("total", 0.02) == pytest.approx(75)
    assert curve.served("total", 0.06) == pytest.approx(150)
    assert curve.served("total", 1.0) == 200
    assert curve.served("first", 0.01) == pytest.approx(75)
    assert Curve([report(50, 0.01), report(100, 0.02, failed=1)]).served("total", 1.0) == 50


def test_both_servers_give_the_same_answers():
    requests = [Say(seed, seed % 8) for seed in range(23)]

    async def answers(server):
        async def joined(request):
            return [piece async for chunk in server(request) for piece in chunk]

        return await asyncio.gather(*[joined(request) for request in requests])

    async def main():
        async with Engine(Sayer(), 5) as engine, BatchAndWait(Sayer(), 5, 0.001) as batches:
            made = await answers(engine.generate), await answers(batches)
            return *made, batches.batches

    continuous, waited, count = asyncio.run(main())
    assert continuous == waited
    assert all(len(answer) <= request.most for answer, request in zip(waited, requests, strict=True))
    assert 5 <= count <= 23


def test_a_batch_takes_all_that_is_there_without_waiting():
    async def main():
        async with BatchAndWait(Sayer(), 8, 0.0) as batches:

            async def answer(seed):
                return [chunk async for chunk in batches(Say(seed, 5))]

            await asyncio.gather(*[answer(seed) for seed in range(24)])
            return batches.batches

    assert asyncio.run(main()) == 3


def test_the_command_measures_both(tmp_path, capsys):
    pytest.importorskip("safetensors")
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    options = ["--slots", "4", "--seconds", "0.1", "--rates", "2", "--repeats", "1", "--most", "32", "--hidden", "8", "--only", "process"]
    assert serve.run(parser.parse_args([*options, "--json", str(tmp_path / "serve.json")])) == 0
    stored = json.loads((tmp_path / "serve.json").read_text())
    assert {"machine", "versions", "commit", "command"} <= stored.keys()
    measured = stored["measured"]["process"]
    assert all(len(loads) in (1, 2) for loads in measured["loads"].values())  # on a busy machine these tiny answers are far too late
    assert [row["of"] for row in measured["served"]] == ["total"] * 6 + ["first"] * 6
    for row in measured["served"]:
        assert row["limit_seconds"] == pytest.approx(row["limit_times_alone"] * measured["alone_seconds"])
    assert "requests/s with the p99 of the whole answer within" in capsys.readouterr().out


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(over_http.importlib.util, "find_spec", lambda name: None)
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    assert serve.run(parser.parse_args(["--only", "http"])) == 0
    assert "servers over HTTP are left out: No module named 'starlette'; pip install starlette" in capsys.readouterr().out


@pytest.mark.slow
def test_servers_over_http_answer_as_the_engine_does(tmp_path):
    for name in ("safetensors", "starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(name)
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    options = ["--slots", "4", "--seconds", "0.2", "--rates", "1", "--repeats", "1", "--most", "16", "--hidden", "8", "--only", "http"]
    assert serve.run(parser.parse_args([*options, "--json", str(tmp_path / "serve.json")])) == 0
    loads = json.loads((tmp_path / "serve.json").read_text())["measured"]["http"]["loads"]
    assert "continuous, HTTP" in loads
    assert all(load["failed"] == 0 for each in loads.values() for load in each)
