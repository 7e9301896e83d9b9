"""Loads over HTTP. In: which server; out: a process that serves at a port of this machine, and a client that costs little."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from fusedrnn.serve import Continuation

from ..case import Missing

_NEEDS = {"fusedrnn": ("starlette", "uvicorn", "prometheus_client"), "litserve": ("litserve",)}
_SECONDS_TO_START = 120.0


class OverHttp:
    """A server in a process of its own; called with a request it gives the answer as one chunk.

    Args:
        who: "fusedrnn" or "litserve".
        options: of `bench.serving.process`.

    Raises:
        Missing: a package that it needs is not installed.
    """

    def __init__(self, who: str, *options: str) -> None:
        if missing := [name for name in _NEEDS[who] if importlib.util.find_spec(name) is None]:
            raise Missing(f"No module named {missing[0]!r}; pip install {missing[0].replace('_', '-')}")
        self.who, self._options = who, options
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  open while the process runs

    async def __aenter__(self) -> OverHttp:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self._port = sock.getsockname()[1]
        command = [sys.executable, "-m", "bench.serving.process", self.who, str(self._port), *self._options]
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, stderr=self._said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))},
            process_group=0,
        )  # fmt: skip
        try:
            await asyncio.wait_for(self._started(), _SECONDS_TO_START)
        except BaseException:
            self._stop()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for _, writer in self._free:
            writer.close()
        await asyncio.gather(*[writer.wait_closed() for _, writer in self._free], return_exceptions=True)
        self._stop()

    def _stop(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._said.close()

    async def _started(self) -> None:
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                self._said.seek(0)
                raise RuntimeError(
                    f"the server of {self.who} has ended with {self._process.returncode}: {self._said.read()[-2000:].decode()}"
                )
            try:
                [answer async for answer in self(Continuation("a", 2, one_word=False))]
            except (OSError, RuntimeError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.1)
            else:
                return

    async def __call__(self, request: Continuation) -> AsyncIterator[str]:
        if self.who == "fusedrnn":
            parameters = {
                "max_tokens": request.most, "temperature": request.temperature, "top_k": request.top_k, "seed": request.seed,
                "one_word": request.one_word,
            }  # fmt: skip
            sent = {name: value for name, value in parameters.items() if value is not None}
            answer = await self._posted("/v2/models/chars/generate", {"text_input": request.prompt, "parameters": sent})
            yield answer["text_output"]
        else:
            answer = await self._posted("/predict", {"prompt": request.prompt, "most": request.most, "seed": request.seed})
            yield answer["text"]

    async def _posted(self, path: str, body: dict[str, Any]) -> Any:
        """On a connection that is kept, like those of any client; as many as there are requests at once."""
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():
                break
            writer.close()  # the server closes those that no one uses for some seconds
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        sent = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
        try:
            writer.write(head.encode() + sent)
            answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(line for line in answered.split("\r\n") if line.startswith("content-length:"))
            found = await reader.readexactly(int(length.split(":")[1]))
        except BaseException:
            writer.close()
            raise
        self._free.append((reader, writer))
        if " 200 " not in answered.split("\r\n", 1)[0]:
            raise RuntimeError(f"{answered.splitlines()[0]}: {found[:200]!r}")
        return json.loads(found)
