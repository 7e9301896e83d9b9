"""By which names a server goes: a page elsewhere must not reach it by having its own name resolve here."""

from __future__ import annotations

import socket

import httpx
import pytest

from fusedrnn.serve import CharactersModel
from fusedrnn.serve.http.hosts import name_of
from tests.serve.http.conftest import Running, characters_engine


@pytest.mark.parametrize(
    "path", ["/", "/status", "/v2/health/live", "/v2/models/chars/generate", "/v1/models", "/nowhere", "/openapi.json"]
)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "[", "a b", "@"])
def test_other_names_are_refused(both: Running, path: str, host: str) -> None:
    with both.client() as client:
        answer = client.request("POST" if "generate" in path else "GET", path, headers={"Host": host})
        assert answer.status_code == 421
        error = answer.json()["error"]
        assert "--allow-host" in (error["message"] if path.startswith("/v1") else error)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8000", "192.0.2.7:9", "::1"])
def test_addresses_and_localhost_are_known(both: Running, host: str) -> None:
    with both.client() as client:
        assert client.get("/v2/health/ready", headers={"Host": host}).status_code == (421 if host == "::1" else 200)


def test_a_request_without_a_name_is_of_no_browser(both: Running) -> None:
    with socket.create_connection(("127.0.0.1", both.port), 10) as sock:
        sock.sendall(b"GET /v2/health/ready HTTP/1.0\r\n\r\n")
        assert b" 200 " in sock.recv(1000)


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost:1", 200), ("HTTP://LOCALHOST:1", 200), ("http://localhost:2", 403), ("https://evil.example", 403), ("null", 403)],
)
def test_pages_of_other_origins(both: Running, origin: str, status: int) -> None:
    with both.client() as client:
        headers = {"Host": "localhost:1", "Origin": origin, "Content-Type": "text/plain"}
        assert client.post("/v2/models/chars/generate", content=b'{"text_input": "a"}', headers=headers).status_code == status


def test_names_that_are_allowed(characters: CharactersModel) -> None:
    with Running(characters_engine(characters), hosts=["Models.example"]) as running, running.client() as client:
        assert client.get("/status", headers={"Host": "models.example:8000"}).status_code == 200
        assert client.get("/status", headers={"Host": "models.example.evil"}).status_code == 421
        responses = client.get("/openapi.json").json()["paths"]["/status"]["get"]["responses"]
        assert {"403", "421"} <= set(responses)


@pytest.mark.parametrize("how", [{"hosts": ["*"]}, {"token": "geheim"}])
def test_any_name_where_all_are_allowed_or_a_token_is_asked_for(characters: CharactersModel, how: dict[str, object]) -> None:
    with Running(characters_engine(characters), **how) as running, running.client() as client:  # type: ignore[arg-type]
        headers = {"Host": "evil.example", "Origin": "https://evil.example", "Authorization": "Bearer geheim"}
        assert client.get("/status", headers=headers).status_code == 200
        assert "421" not in client.get("/openapi.json").json()["paths"]["/status"]["get"]["responses"]


def test_names_in_headers() -> None:
    found = [name_of(host) for host in ("a:1", "A", "[::1]:1", "", ":1", "u@h:2", "[x")]
    assert found == ["a", "a", "::1", None, None, "h", None]


def test_a_client_of_its_own_sees_why(both: Running) -> None:
    answer = httpx.get(f"{both.url}/status", headers={"Host": "x" * 500 + ".example"}, trust_env=False)
    assert answer.status_code == 421
    assert len(answer.json()["error"]) < 200
