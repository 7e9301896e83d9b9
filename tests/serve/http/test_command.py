"""`fusedrnn serve` as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from fusedrnn.cli import main

LONG = {"text_input": "", "parameters": {"max_tokens": 1500, "temperature": 1.0, "one_word": False}}


@pytest.mark.parametrize(
    ("arguments", "token", "said"),
    [
        (["--host", "0.0.0.0"], None, "other machines may reach 0.0.0.0"),
        ([], "", "FUSEDRNN_TOKEN is empty"),
        (["chars"], None, "each model once"),
        (["--slots", "1"], None, "slots must be an int of at least 2"),
        (["--host", "256.0.0.1", "--open-to-all"], None, "cannot listen at 256.0.0.1:0: "),
    ],
)
def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], token: str | None, said: str
) -> None:
    monkeypatch.delenv("FUSEDRNN_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("FUSEDRNN_TOKEN", token)
    assert main(["serve", "chars", *arguments, "--port", "0"]) == 2
    assert said in capsys.readouterr().err


@contextmanager
def served(*arguments: str, verify: ssl.SSLContext | bool = True, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and its address once it is ready."""
    command = [sys.executable, "-m", "fusedrnn", "serve", "chars", "--port", "0", "--threads", "1", *arguments]
    kept = {name: value for name, value in os.environ.items() if name != "FUSEDRNN_BACKEND"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**kept, **environment})
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        while "://" not in line:  # a compiler may have something to say first
            assert line, "the server ended"
            line = process.stderr.readline()
        (url,) = re.findall(r"https?://\S+", line)
        for _ in range(600):
            try:
                if httpx.get(f"{url}/v2/health/ready", trust_env=False, verify=verify).status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None
            time.sleep(0.05)
        else:
            raise AssertionError("the server is not ready after half a minute")
        yield process, url
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.slow
def test_sigterm_under_load_loses_nothing_that_was_accepted() -> None:
    async def one(client: httpx.AsyncClient, stream: bool) -> str:
        try:
            answer = await client.post("/v2/models/chars/generate" + ("_stream" if stream else ""), json=LONG)
        except httpx.ConnectError:
            return "no connection"
        except httpx.TransportError:  # a connection that was open, and nothing came: it had not been accepted
            return "closed"
        if answer.status_code != 200:
            return str(answer.status_code)
        if stream:
            texts = [json.loads(line[6:])["text_output"] for line in answer.text.split("\n") if line.startswith("data: ")]
        return "whole" if len("".join(texts) if stream else answer.json()["text_output"]) == 1500 else "cut"

    async def load(process: subprocess.Popen[str], url: str) -> tuple[Counter[str], int]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits) as client:
            flying = set[asyncio.Task[str]]()
            for number in range(60):
                flying.add(asyncio.create_task(one(client, number % 2 == 0)))
                await asyncio.sleep(0.01)
                if number == 40:
                    status = (await client.get("/status")).json()["models"]["chars"]
                    accepted = status["accepted"]
                    assert status["running"]
                    process.send_signal(signal.SIGTERM)
            return Counter(await asyncio.gather(*flying)), accepted

    with served("--slots", "4", "--queue", "100") as (process, url):
        found, accepted = asyncio.run(load(process, url))
        assert process.wait(60) == 0
    assert found["whole"] >= accepted > 4
    assert found["cut"] == 0
    assert found["503"] + found["no connection"] + found["closed"] + found["whole"] == 60
    assert found["503"]


@pytest.mark.slow
def test_a_token_from_the_environment_and_ctrl_c() -> None:
    with served("--slots", "2", FUSEDRNN_TOKEN="geheim") as (process, url):
        assert httpx.get(f"{url}/status", trust_env=False).status_code == 401
        assert httpx.get(f"{url}/status", trust_env=False, headers={"Authorization": "Bearer geheim"}).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""  # nothing to tell


@pytest.mark.slow
def test_a_worker_that_is_killed_answers_no_one_and_another_serves_on() -> None:
    path = "/v2/models/chars/generate"
    with served("--slots", "2") as (first, url), served("--slots", "2") as (_, other), httpx.Client(trust_env=False, timeout=60) as client:
        with client.stream("POST", f"{url}{path}_stream", json=LONG) as answer:
            lines = answer.iter_lines()
            next(lines)
            first.kill()
            with pytest.raises(httpx.TransportError):
                list(lines)
        assert client.post(f"{other}{path}", json=LONG).status_code == 200
