"""Generated sources are files that stay whole, and modules that Triton can read."""

import inspect
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")
from fusedrnn.kernels.gpu import source

TEXT = '"""{}"""\nimport triton\n\n\n@triton.jit\ndef kernel(x):\n    pass\n'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEDRNN_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_the_source_is_a_file_and_readable(folder):
    module = source.load(TEXT.format("one"), "loop of LSTM/B=3")
    (file,) = folder.iterdir()
    assert str(file) == module.__file__
    assert file.name.startswith("loop_of_LSTM_B_3_")
    assert file.read_text() == TEXT.format("one")
    file.unlink()
    assert "def kernel(x)" in inspect.getsource(module.kernel.fn)


def test_the_same_text_is_the_same_module():
    module = source.load(TEXT.format("same"), "a")
    assert source.load(TEXT.format("same"), "b") is module
    assert source.load(TEXT.format("other"), "a") is not module


def test_a_torn_file_is_replaced(folder):
    text = TEXT.format("torn")
    path = source.load(text, "torn").__file__
    (folder / path).write_text(text[:20])
    source._modules.clear()
    assert source.load(text, "torn").__file__ == path
    assert (folder / path).read_text() == text


def test_a_folder_that_cannot_be_written_is_no_hindrance(folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setenv("FUSEDRNN_CACHE_DIR", str(folder / "file"))
    module = source.load(TEXT.format("elsewhere"), "elsewhere")
    assert os.path.exists(module.__file__)


def test_a_source_that_fails_leaves_no_module():
    before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        source.load("1 / 0\n", "failing")
    assert set(sys.modules) == before


def test_processes_may_load_the_same_at_a_time(folder):
    program = f"from fusedrnn.kernels.gpu import source\nassert source.load({TEXT.format('many')!r}, 'many').kernel"
    running = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    assert [file.read_text() for file in folder.glob("*.py")] == [TEXT.format("many")]
