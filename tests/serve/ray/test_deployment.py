"""A deployment on a cluster of two replicas, and what can be said of it without Ray."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from fusedrnn.serve import Engine
from fusedrnn.serve.http import Limits
from fusedrnn.serve.ray import app, application, deployment
from fusedrnn.serve.ray.served import checked
from tests.serve.http.test_inference import pushed, recogniser_server
from tests.serve.ray.models import FEATURES, recogniser, slow

KEY = b"a key of the whole cluster"
STREAM = "/v2/models/chars/generate_stream"
NAME = "fusedrnn-two"


def test_without_ray_there_is_a_way_out() -> None:
    blocked = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'ray':\n"
        "            raise ModuleNotFoundError('no ray', name='ray')\n"
        "sys.meta_path.insert(0, Without())\n"
        "import fusedrnn.serve.ray as there\n"
        "for call in (lambda: there.application('g2p'), lambda: there.app({}), lambda: there.decode(None)):\n"
        "    try: call()\n"
        "    except ModuleNotFoundError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["ray is not installed: pip install 'fusedrnn[ray]', or in a clone pip install -e '.[ray]'"] * 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: checked("gpt"), "there is no shipped model 'gpt'"),
        (lambda: checked(recogniser()), "or a function that makes one, got a RecogniserModel"),  # type: ignore[arg-type]
        (lambda: deployment._scaled(0, None, 4), "replicas must be at least 1"),
        (lambda: deployment._scaled(2, {"upscale_delay_s": 1}, 4), "a pair"),
        (lambda: deployment._scaled((3, 2), None, 4), "a pair .fewest, most. that rises"),
        (lambda: deployment._scaled((0, 0), None, 4), "a pair"),
    ],
)
def test_what_is_refused(call: Callable[[], Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        call()


def test_a_replica_is_well_while_its_engines_are(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = SimpleNamespace(get_replica_context=lambda: SimpleNamespace(replica_id=SimpleNamespace(unique_id="one")))
    monkeypatch.setattr(deployment, "needed", lambda *_: serve)

    async def main() -> None:
        replica = deployment.Replica([recogniser], {"slots": 2, "threads": 1, "backend": "native"}, {"limits": Limits()}, None)
        asgi = replica.__serve_build_asgi_app__()
        async with asgi.router.lifespan_context(asgi):
            await replica.check_health()
            engine: Engine = replica._faces[0].engine
            await engine.close()
            with pytest.raises(RuntimeError, match="the engine of recogniser has stopped"):
                await replica.check_health()

    try:
        asyncio.run(main())
    finally:
        gc.unfreeze()  # which a process of its own does not need


@pytest.fixture(scope="module")
def url(cluster: Any) -> Iterator[str]:
    """Two replicas, and a third where more than four requests for each are there."""
    from ray import serve

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR", "enable_access_log": False})
    delays = {"upscale_delay_s": 0.5, "downscale_delay_s": 1.0, "look_back_period_s": 2.0, "target_ongoing_requests": 4}
    two = application(
        recogniser, slow, replicas=(2, 3), autoscaling=delays, cpus=1, slots=4, queue=20, session_key=KEY, name=NAME, steps=1,
        backend="native",
    )  # fmt: skip
    serve.run(two, name="two")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60, trust_env=False, limits=httpx.Limits(max_connections=40)) as client:
        yield client


def replica_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-fusedrnn-replica"])


def replicas(client: httpx.Client) -> set[str]:
    """Those that answer to some requests."""
    with ThreadPoolExecutor(8) as pool:
        return set(pool.map(lambda _: replica_of(client.get("/status")), range(40)))


def processes() -> list[int]:
    """Of the replicas."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"ray::ServeReplica:two:{NAME}".encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it has ended
                continue
    return found


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come to pass"
        time.sleep(0.1)


def streamed(client: httpx.Client, length: int, begun: list[str] | None = None) -> tuple[str, int]:
    """The replica, and how many characters came; ``begun``: is told of those that have begun to come."""
    parameters = {"max_tokens": length, "temperature": 1.0, "one_word": False}
    with client.stream("POST", STREAM, json={"text_input": "", "parameters": parameters}) as answer:
        replica, come = replica_of(answer), 0
        for line in answer.iter_lines():
            if line.startswith("data: "):
                if begun is not None and not come:
                    begun.append(replica)
                come += len(json.loads(line[6:])["text_output"])
    return replica, come


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.filterwarnings("ignore")
class TestCluster:
    """In this order: the last one ends the deployment."""

    def test_both_replicas_serve(self, client: httpx.Client) -> None:
        assert len(replicas(client)) == 2
        found = client.get("/v2/models/recogniser")
        assert found.json()["inputs"][0]["shape"] == [-1, FEATURES]
        assert f'replica="{replica_of(client.get("/metrics"))}"' not in client.get("/v2").text
        assert client.get("/metrics").text.count('fusedrnn_slots{model="chars",replica="') == 1
        for path in ("/", "/openapi.json", "/v2/health/ready", "/v1/models"):
            replica_of(client.get(path))
        assert client.post("/v2/models/chars/generate", json={"text_input": 1}).status_code == 422
        assert client.get("/status", headers={"Host": "evil.example"}).status_code == 421

    def test_a_stream_goes_on_at_any_replica_with_the_same_bits(self, client: httpx.Client, url: str) -> None:
        streams = np.random.default_rng(0).standard_normal((8, 40, FEATURES), np.float32)

        def whole(frames: np.ndarray, one: httpx.Client) -> bytes:
            first, at = pushed(one, frames[:16], None, True)
            second, at = pushed(one, frames[16:32], at, True)
            return b"".join(part.tobytes() for part in (first, second, pushed(one, frames[32:], at, True)[0]))

        def by_frames(frames: np.ndarray) -> tuple[bytes, list[str]]:
            served, made, state = list[str](), list[np.ndarray](), None
            hooks = {"response": [lambda answer: served.append(answer.headers["x-fusedrnn-replica"])]}
            with httpx.Client(base_url=url, timeout=60, trust_env=False, event_hooks=hooks) as mine:
                for place, frame in enumerate(frames):
                    seen, state = pushed(mine, frame[None], state, place % 2 == 0)
                    made.append(seen)
            return np.concatenate(made).tobytes(), served

        with recogniser_server(recogniser().model, KEY) as alone, alone.client() as one:
            expected = [whole(frames, one) for frames in streams]
        with ThreadPoolExecutor(len(streams)) as pool:  # at once, so that there is work for both
            found = list(pool.map(by_frames, streams))
        assert [made for made, _ in found] == expected
        changes = [sum(one != other for one, other in pairwise(served)) for _, served in found]
        assert len({each for _, served in found for each in served}) == 2
        assert max(changes) > 3

    def test_a_client_that_leaves_frees_its_slot(self, client: httpx.Client) -> None:
        with client.stream("POST", STREAM, json={"text_input": "", "parameters": {"max_tokens": 4096, "one_word": False}}) as answer:
            replica = replica_of(answer)
            next(answer.iter_lines())

        def left() -> bool:
            numbers = client.get("/status").json()
            chars = numbers["models"]["chars"]
            return numbers["replica"] == replica and chars["cancelled"] == 1 and not chars["running"]

        until(left, 20)

    @pytest.mark.exhaustive  # they wait for what Ray does in its own time
    def test_a_replica_that_is_killed_is_replaced_and_requests_go_on(self, client: httpx.Client) -> None:
        until(lambda: len(processes()) == 2)  # streams of the tests before may have called a third
        before, (first, second) = replicas(client), processes()
        os.kill(first, signal.SIGKILL)
        answered = Counter[str]()

        def replaced() -> bool:
            answered[replica_of(client.post("/v2/models/chars/generate", json={"text_input": "inter"}))] += 1
            return len(answered) == 2 + (len(before & set(answered)) == 2)

        until(replaced)
        survivor = before & set(answered)
        assert answered[max(survivor, key=answered.__getitem__)] > 5  # while the other was made anew
        until(lambda: len(processes()) == 2 and second in processes())

    @pytest.mark.exhaustive
    def test_replicas_are_added_where_queues_form_and_go_again(self, client: httpx.Client) -> None:
        until(lambda: len(processes()) == 2)
        lengths, begun, full = list[int](), list[str](), list[bool]()
        with ThreadPoolExecutor(16) as pool:

            def load() -> None:
                while not full:
                    lengths.append(streamed(client, 300, begun)[1])

            working = [pool.submit(load) for _ in range(16)]
            try:
                until(lambda: len(set(begun)) == 3 or any(each.done() for each in working))
            finally:
                full.append(True)
            for each in working:
                each.result()
        assert set(lengths) == {300}
        assert len(set(begun)) == 3
        until(lambda: len(processes()) == 2)

    @pytest.mark.exhaustive
    def test_nothing_that_was_accepted_is_lost_when_it_ends(self, client: httpx.Client) -> None:
        from ray import serve

        with ThreadPoolExecutor(16) as pool:
            begun = list[str]()
            answers = [pool.submit(streamed, client, 1000, begun) for _ in range(14)]
            until(lambda: len(set(begun)) >= 2 or any(answer.done() for answer in answers))
            time.sleep(0.5)  # all have been sent: at most eight run, the others wait
            assert [answer.result() for answer in answers if answer.done()] == []
            serve.delete("two")
            assert {answer.result()[1] for answer in answers} == {1000}
            assert len({answer.result()[0] for answer in answers}) >= 2
        until(lambda: processes() == [])
        assert client.get("/v2/health/ready").status_code == 404


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_arguments_of_the_command() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    with pytest.raises(ValueError, match="'slot' is not known; known: models, replicas"):
        app({"slot": "3"})
    for arguments, said in (
        ({"replicas": "two"}, "replicas must be a whole number, got 'two'"),
        ({"replicas": "1-"}, "replicas must be a whole number, got ''"),
        ({"cpus": "half"}, "cpus must be a number, got 'half'"),
        ({"deadline": "soon"}, "deadline must be a number, got 'soon'"),
    ):
        with pytest.raises(ValueError, match=said):
            app(arguments)
    with pytest.raises(ValueError, match="must have one model"):
        application()
    with pytest.raises(ValueError, match="session_key must have 16 bytes or more, got 3"):
        application("g2p", session_key=b"abc")
