"""Who may ask, and where a server may listen without asking."""

from __future__ import annotations

import socket

import pytest

from fusedrnn.serve import CharactersModel
from fusedrnn.serve.http import application
from fusedrnn.serve.http.authorisation import OPEN
from fusedrnn.serve.http.server import listener, loopback
from tests.serve.http.conftest import Running, characters_engine


def test_a_token(characters: CharactersModel) -> None:
    with Running(characters_engine(characters), token="geheim") as running, running.client() as client:
        for path in OPEN:
            assert client.get(path).status_code == 200
        closed = ["/status", "/metrics", "/v2", "/v2/models/chars", "/v1/models", "/v1/completions", "/nowhere", "/docs"]
        for path in closed:
            for shown in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer geheimer"}, {"Authorization": "Basic geheim"}):
                answer = client.get(path, headers=shown)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
        assert "token" in client.get("/v1/models").json()["error"]["message"]
        right = {"Authorization": "Bearer geheim"}
        assert client.get("/status", headers=right).status_code == 200
        assert client.get("/status", headers={"Authorization": "bearer geheim"}).status_code == 200  # schemes have no case
        assert client.get("/status", headers={"Authorization": "Bearer Geheim"}).status_code == 401
        body = {"model": "chars", "prompt": "a"}
        assert client.post("/v1/completions", json=body).status_code == 401
        assert client.post("/v1/completions", json=body, headers=right).status_code == 200
        assert client.get("/openapi.json").json()["security"] == [{"token": []}]
    assert running.engine.metrics.accepted == 1


def test_an_empty_token_is_none(characters: CharactersModel) -> None:
    app = application(characters_engine(characters), token="")
    with pytest.raises(ValueError, match="token must not be empty"):
        app.build_middleware_stack()


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True)])
def test_loopback(host: str, own: bool) -> None:
    assert loopback(host) == own


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "127.0.0.1.example.org"])
def test_other_machines_are_let_in_only_with_a_token_or_when_it_is_asked_for(host: str) -> None:
    assert not loopback(host)
    with pytest.raises(ValueError, match="other machines may reach"):
        listener(host, 0, token=None)


def test_listening_for_all_when_asked_to() -> None:
    with listener("0.0.0.0", 0, token="x") as one, listener("0.0.0.0", 0, token=None, open_to_all=True) as other:
        assert one.getsockname()[1] != other.getsockname()[1]
        with pytest.raises(OSError, match=r"cannot listen at 127.0.0.1:\d+: "), listener("127.0.0.1", _taken(one), token=None):
            pass


def test_answers_do_not_wait_for_more() -> None:
    """asyncio sets TCP_NODELAY on sockets that name their protocol; without it every answer took 40 ms more."""
    with listener("127.0.0.1", 0, token=None) as sock:
        assert sock.proto == socket.IPPROTO_TCP


def _taken(sock: object) -> int:
    sock.listen()  # type: ignore[attr-defined]
    return int(sock.getsockname()[1])  # type: ignore[attr-defined]
