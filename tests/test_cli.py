"""The commands as a user meets them: what they print where, and the exit codes."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fusedrnn import PlanError, __version__, cli, executors
from fusedrnn.explanation import STAGES
from fusedrnn.kernels import device

HELLO, WORLD = "hello\tHH EH1 L OW0\n", "world\tW ER1 L D\n"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("FUSEDRNN_BACKEND", "reference")


@pytest.fixture
def typed(monkeypatch):
    """Puts bytes on standard input."""

    def put(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


def fails(capsys, *argv):
    """The one line that a command ends with, exit code 2."""
    assert cli.main(["g2p", *argv]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("fusedrnn g2p: ")
    assert err.count("\n") == 1
    return err, out


def test_words(capsys):
    assert cli.main(["g2p", "hello", "world"]) == 0
    assert capsys.readouterr() == (HELLO + WORLD, "")


def test_standard_input_with_empty_lines(capsys, typed):
    typed("\ufeffhello\r\n\n \t\nStraße\nworld".encode())
    assert cli.main(["g2p"]) == 0
    out, err = capsys.readouterr()
    assert out == HELLO + "Straße\tS T R EY1\n" + WORLD
    assert err == "fusedrnn g2p: line 2 is empty, skipped\nfusedrnn g2p: line 3 is empty, skipped\n"


def test_empty_word(capsys):
    assert cli.main(["g2p", "", "hello"]) == 0
    assert capsys.readouterr() == (HELLO, "fusedrnn g2p: word 1 is empty, skipped\n")


def test_file_and_nothing(capsys, tmp_path, typed):
    file = tmp_path / "words"
    file.write_bytes(b"world\nhello\n")
    assert cli.main(["g2p", "--file", str(file)]) == 0
    assert capsys.readouterr() == (WORLD + HELLO, "")
    typed(b"")
    assert cli.main(["g2p", "--file", "-", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("0 words in 0.000 s, 0 words/s; 0 steps")


def test_chunks_keep_the_order(capsys, typed, monkeypatch):
    monkeypatch.setattr(cli, "_CHUNK", 3)
    words = ["hello", "a", "world", "supercalifragilistic", "I", "elephant", "be"]
    typed("\n".join(words).encode())
    assert cli.main(["g2p", "--batch-size", "2", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == words
    assert err.startswith("7 words in ")
    assert err.endswith("in 5 batches; loops: 10 reference\n")


def test_json(capsys):
    assert cli.main(["g2p", "--json", "hello", "é"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[0]) == {"word": "hello", "phonemes": ["HH", "EH1", "L", "OW0"]}
    assert '"é"' in lines[1]


def test_input_that_is_not_utf8(capsys, typed, tmp_path):
    typed(b"hello\nw\xffrld\n")
    assert "standard input, line 2 is not UTF-8: invalid start byte at byte 2" in fails(capsys)[0]
    file = tmp_path / "words"
    file.write_bytes("hello".encode("utf-16"))
    assert f"{file}, line 1 is not UTF-8" in fails(capsys, "--file", str(file))[0]
    assert "word 2 is not UTF-8: '\\udcff'" in fails(capsys, "hello", "\udcff")[0]


def test_file_that_cannot_be_read(capsys, tmp_path):
    assert "cannot read /no/such: No such file or directory" in fails(capsys, "--file", "/no/such")[0]
    assert "Is a directory" in fails(capsys, "--file", str(tmp_path))[0]
    assert "not both" in fails(capsys, "--file", "x", "word")[0]


def test_closed_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed" in fails(capsys)[0]


def test_backends(capsys, monkeypatch):
    assert cli.main(["g2p", "--backend", "reference", "hello"]) == 0
    assert capsys.readouterr().out == HELLO
    assert "backend must be one of" in fails(capsys, "--backend", "fast", "hello")[0]
    monkeypatch.setenv("FUSEDRNN_BACKEND", "fast")
    assert "FUSEDRNN_BACKEND must be one of" in fails(capsys, "hello")[0]
    monkeypatch.setattr(executors.backends, "unavailable", lambda backend: "it needs a GPU")
    assert fails(capsys, "--backend", "persistent", "hello")[0] == "fusedrnn g2p: it needs a GPU\n"


def test_a_plan_error_on_the_way(capsys, monkeypatch):
    def run(*_):
        raise PlanError("the loop has no plan", "model.py:3")

    monkeypatch.setattr(executors, "execute", run)
    assert fails(capsys, "hello")[0] == "fusedrnn g2p: the loop has no plan (model.py:3)\n"


def test_missing_extra(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'fusedrnn[demo]'" in fails(capsys, "hello")[0]


@pytest.mark.parametrize("size", ["0", "-3", "two", "1.5", ""])
def test_bad_batch_size(capsys, size):
    with pytest.raises(SystemExit) as raised:
        cli.main(["g2p", "--batch-size", size, "hello"])
    assert raised.value.code == 2
    assert "--batch-size" in capsys.readouterr().err


def test_interrupted(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_words", interrupt)
    assert cli.main(["g2p", "hello"]) == 130
    assert capsys.readouterr() == ("", "")


def test_progress_bar_on_a_terminal_and_a_long_list(monkeypatch, capsys, typed):
    monkeypatch.setattr(cli, "_CHUNK", 2)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["g2p", "hello"]) == 0
    assert capsys.readouterr() == (HELLO, "")
    assert cli.main(["g2p", "--batch-size", "1", "hello", "world", "hello"]) == 0
    out, err = capsys.readouterr()
    assert out == HELLO + WORLD + HELLO
    assert "3/3" in err


def test_version_and_help(capsys):
    for argument, shown in (("--version", f"fusedrnn {__version__}\n"), ("--help", "g2p")):
        with pytest.raises(SystemExit) as raised:
            cli.main([argument])
        assert raised.value.code == 0
        assert shown in capsys.readouterr().out


def test_info(capsys, monkeypatch):
    monkeypatch.setenv("FUSEDRNN_BACKEND", "reference")
    gpu = device.Device(0, "NVIDIA H100", (9, 0), 132, 232448, 65536, 52428800, 85899345920)
    monkeypatch.setattr(device, "devices", lambda: [gpu])
    monkeypatch.setattr(device, "triton", lambda: device.Triton(None, "ModuleNotFoundError: no triton"))
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for shown in (__version__, "no triton", "132 SMs, 227 KiB", "9.0", "50 MiB L2, 80 GiB", "FUSEDRNN_BACKEND       reference"):
        assert shown in text
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["executors"]["reference"] is None
    assert set(found["executors"]) == {"persistent", "stepwise", "native", "reference"}
    assert found["devices"][0]["sms"] == 132
    assert found["environment"]["FUSEDRNN_BACKEND"] == "reference"


def test_info_survives_a_bad_environment(capsys, monkeypatch):
    monkeypatch.setenv("FUSEDRNN_BACKEND", "fast")
    monkeypatch.setattr(device, "devices", list)
    assert cli.main(["info"]) == 0
    assert "FUSEDRNN_BACKEND must be one of" in capsys.readouterr().out


def test_as_a_program():
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-m", "fusedrnn", "g2p", "é", "hello"], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("utf-8").splitlines()[1] == HELLO.strip()
    assert done.stdout.startswith("é\t".encode())


def test_a_reader_that_leaves():
    words = "hello\n" * 5000
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-m", "fusedrnn", "g2p", "--batch-size", "2048"], **pipes) as process:
        process.stdout.close()
        process.stdin.write(words.encode())
        process.stdin.close()
        process.stdin = None
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-m", "fusedrnn", "g2p", "hello"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("fusedrnn g2p: ")
    assert b"Traceback" not in done.stderr


def test_closed_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["info"]) == 2


def test_typed_words_are_answered_one_by_one(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    arguments = {"words": [], "file": None}
    assert cli._typed(SimpleNamespace(**arguments))
    assert not cli._typed(SimpleNamespace(words=["a"], file=None))


def test_explain_g2p(capsys):
    assert cli.main(["explain", "g2p"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    encode, decode = out.split("\n\ndecode\n")
    assert encode.startswith("encode\n")
    assert "graphemes [8, 3] along dimension 0 at time" in encode
    assert "greedy" in decode
    assert "token == 3" in decode

    assert cli.main(["explain", "g2p", "--json", "--backend", "stepwise"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["encode", "decode"]
    assert found["decode"]["choice"]["executor"] == "stepwise"
    assert [fed["kind"] for fed in found["decode"]["step"]["feedback"]] == ["greedy"]

    assert cli.main(["explain", "g2p", "--graph", "captured"]) == 0
    assert capsys.readouterr().out.count("\nreturn ") == 2
    assert cli._STAGES == STAGES


OWN = """
import torch
from torch import nn

def loop():
    x = torch.zeros(5, 2, 3)
    def loop_fn(time, output, state, loop_state):
        return time >= 5, x[time], torch.zeros(2, 4) if output is None else state, output, None
    return nn.GRUCell(3, 4), loop_fn

def branches():
    cell, loop_fn = loop()
    def branching(time, output, state, loop_state):
        if output is not None and output.sum() > 0:
            output = output * 2
        return loop_fn(time, output, state, loop_state)
    return cell, branching

def one():
    return loop()[0]

def broken():
    raise RuntimeError("no data")

def unlike():
    raise ValueError("first line\\nsecond line")

def wrong():
    return nn.GRUCell(3, 4), lambda time, output, state, loop_state: 1
"""


def test_explain_own_loop(capsys, monkeypatch, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", "own.py:loop"]) == 0
    out, _ = capsys.readouterr()
    assert "x [5, 2, 3] along dimension 0 at time  (own.py:8)" in out
    assert cli.main(["explain", "own.py:branches"]) == 0
    out, _ = capsys.readouterr()
    assert "(own.py:14)" in out
    assert "if output is not None and output.sum() > 0:" in out


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nonsense", "give g2p or path/to/file.py:function, got 'nonsense'"),
        ("missing.py:loop", "there is no file missing.py"),
        ("own.py:other", "own.py has no function other"),
        ("own.py:one", "own.py:one must return (cell, loop_fn), got GRUCell"),
        ("own.py:broken", "own.py:broken failed: RuntimeError: no data"),
        ("own.py:unlike", "own.py:unlike failed: ValueError: first line"),
        ("own.py:wrong", "loop_fn must return five values"),
        ("own.py:branches --graph lowered", "loop_fn decides in Python"),
        ("own.py:loop --backend fast", "backend must be one of"),
    ],
)
def test_explain_refuses(capsys, monkeypatch, tmp_path, target, says):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", *target.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fusedrnn explain: {says}")
    assert err.count("\n") == 1
