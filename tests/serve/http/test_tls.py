"""HTTPS, by `fusedrnn serve` as a process, and what is no certificate."""

from __future__ import annotations

import signal
import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from fusedrnn.cli import main
from fusedrnn.serve.http import Certificate
from tests.serve.http.test_command import served


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Certificate and key."""
    folder, made = tmp_path_factory.mktemp("tls"), authority.issue_cert("localhost", "127.0.0.1")
    (chain, *_), key = made.cert_chain_pems, made.private_key_pem
    chain.write_to_path(folder / "cert.pem")
    key.write_to_path(folder / "key.pem")
    return str(folder / "cert.pem"), str(folder / "key.pem")


@pytest.mark.slow
def test_https(authority: trustme.CA, files: tuple[str, str]) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with served("--slots", "2", "--tls-cert", files[0], "--tls-key", files[1], verify=trusting) as (process, url):
        assert url.startswith("https://127.0.0.1:")
        with httpx.Client(base_url=url, verify=trusting, trust_env=False, timeout=30) as client:
            body = {"text_input": "inter", "parameters": {"max_tokens": 200, "temperature": 1.0, "seed": 1, "one_word": False}}
            assert client.get("/v2/health/ready").status_code == 200
            whole = client.post("/v2/models/chars/generate", json=body).json()["text_output"]
            with client.stream("POST", "/v2/models/chars/generate_stream", json=body) as answer:
                assert sum(line.startswith("data: ") for line in answer.iter_lines()) > 1
            assert len(whole) == 200
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{url}/v2/health/ready", trust_env=False)
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as plain:  # no TLS
            plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert not plain.recv(1000).startswith(b"HTTP/1.1 200")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(old)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", port), 10) as plain, pytest.raises(OSError, match=r"(?i)protocol|alert|reset"):
            old.wrap_socket(plain, server_hostname="localhost")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_what_is_no_certificate(files: tuple[str, str], tmp_path: Path) -> None:
    chain, key = files
    assert Certificate(chain, key) == Certificate(chain, key)
    nothing, other = str(tmp_path / "nothing"), tmp_path / "other.pem"
    other.write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    locked = tmp_path / "locked.pem"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n")
    for given, said in (
        ((nothing, key), f"cannot read the certificate {nothing}"),
        ((chain, nothing), "No such file"),
        ((key, chain), "must be a certificate and its key in PEM"),
        ((chain, str(other)), "key values mismatch"),
        ((chain, str(locked)), "must be a certificate and its key|has a password"),
    ):
        with pytest.raises(ValueError, match=said):
            Certificate(*given)


def test_arguments(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "chars", "--port", "0", "--tls-cert", files[0]]) == 2
    assert "give --tls-cert and --tls-key together" in capsys.readouterr().err
    assert main(["serve", "chars", "--port", "0", "--tls-cert", files[0], "--tls-key", files[0]]) == 2
    assert "must be a certificate and its key in PEM" in capsys.readouterr().err
