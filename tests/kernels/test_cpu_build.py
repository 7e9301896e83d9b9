"""build.py: what is compiled, what is kept and what happens where that fails."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from fusedrnn.kernels.cpu import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("FUSEDRNN_CACHE_DIR", str(path))
    return path


@pytest.fixture
def compilations(monkeypatch):
    runs = []
    run = build._run

    def counted(*args):
        runs.append(args)
        run(*args)

    monkeypatch.setattr(build, "_run", counted)
    return runs


def test_second_load_compiles_nothing(folder, compilations):
    assert build.load(SOURCE, name="a b/c").answer() == 42
    assert build.load(SOURCE, name="a b/c").answer() == 42
    assert len(compilations) == 1
    assert sorted(f.suffix for f in folder.iterdir()) == [".cpp", ".so", ".sum"]
    assert next(folder.glob("*.cpp")).read_text() == SOURCE
    assert all(f.name.startswith("a_b_c-") for f in folder.iterdir())


def test_other_source_flags_or_processor_compile_again(folder, compilations, monkeypatch):
    build.load(SOURCE, name="x")
    assert build.load(SOURCE.replace("42", "43"), name="x").answer() == 43
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DX"))
    build.load(SOURCE, name="x")
    monkeypatch.setattr(build, "_processor", lambda: "other")
    build.load(SOURCE, name="x")
    assert len(compilations) == 4


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"x" + b[1:], lambda b: b[:-1] + b"?"])
def test_damaged_file_is_built_again(folder, compilations, damage):
    build.load(SOURCE.replace("42", "44"), name="x")
    (path,) = folder.glob("*.so")
    content = damage(path.read_bytes())
    path.unlink()
    path.write_bytes(content)
    assert build.load(SOURCE.replace("42", "44"), name="x").answer() == 44
    assert len(compilations) == 2


def test_two_processes_at_once(folder):
    root = str(build.HERE.parents[1])  # imported without the package around it, which takes seconds
    program = (
        f"import sys\nsys.path.insert(0, {root!r})\nfrom kernels.cpu import build\nassert build.load({SOURCE!r}, name='x').answer() == 42"
    )
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert sorted(f.suffix for f in folder.iterdir()) == [".cpp", ".so", ".sum"]
    assert build._whole(next(folder.glob("*.so")))


def test_unwritable_folder(tmp_path, monkeypatch, compilations):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FUSEDRNN_CACHE_DIR", str(tmp_path / "file" / "cache"))  # root may write into any folder, but not into a file
    for _ in range(2):
        assert build.load(SOURCE, name="unwritable").answer() == 42
    assert len(compilations) == 1
    assert any(f.name.startswith("unwritable") for f in build.private_folder(os.getpid()).iterdir())


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("FUSEDRNN_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / "fusedrnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.cache_folder().is_relative_to(tmp_path)


def test_missing_compiler(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.compiler() is None
    with pytest.raises(build.CompileError, match="install g"):
        build.load(SOURCE, name="x")


def test_compiler_from_environment(folder, monkeypatch, compilations):
    path = build.compiler()
    monkeypatch.setenv("CXX", f"{path} -DANSWER=45")
    assert build.load(SOURCE.replace("42", "ANSWER"), name="x").answer() == 45


def test_refused_source(folder):
    with pytest.raises(build.CompileError, match="nonsense") as raised:
        build.load("nonsense;\n" * 100, name="x")
    assert len(str(raised.value).splitlines()) < 20
    assert not list(folder.glob("*.tmp*"))
    assert not list(folder.glob("*.so"))


def test_threads_come_with_the_header(folder):
    source = '#include "runtime.h"\nextern "C" void* bound() { return (void*)frnn::run_team(); }\n'
    first, second = (build.load(source + f"// {i}\n", name="x") for i in range(2))
    first.bound.restype = second.bound.restype = ctypes.c_void_p
    assert first.bound() == second.bound() != 0
