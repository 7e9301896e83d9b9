"""Compiles generated C++ sources into shared libraries, once a source and machine, and loads them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
# NaN and infinity mean something in a recurrence, so no -ffast-math; contraction into fma is exact and fast.
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fwrapv",  # integers wrap around, as in torch
    "-ffp-contract=fast",
    "-fno-semantic-interposition",
    "-fopenmp-simd",  # reductions may change the order of their sums; no OpenMP library
    "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64", "ppc64le") else "-march=native",
)


FLAGS_LINE = "// compile with "  # how a source may begin that asks for more of them


class CompileError(RuntimeError):
    """No C++ compiler, or one that refused a source."""


def compiler() -> str | None:
    """The C++ compiler: ``CXX`` from the environment (it may carry arguments), else the first of c++, g++ and clang++ on the path; None
    where there is none."""
    return _compiler(os.environ.get("CXX", ""), os.environ.get("PATH", ""))


@functools.cache
def _compiler(named: str, path: str) -> str | None:
    for command in (named, "c++", "g++", "clang++"):
        words = shlex.split(command)
        if words and (found := shutil.which(words[0], path=path)):
            return shlex.join([found, *words[1:]])
    return None


def cache_folder() -> Path:
    """``FUSEDRNN_CACHE_DIR``, else ``fusedrnn`` in the platform's folder for a user's caches."""
    if given := os.environ.get("FUSEDRNN_CACHE_DIR"):
        return Path(given).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "fusedrnn"
    with contextlib.suppress(RuntimeError):  # no home folder
        return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "fusedrnn"
    return private_folder(os.getpid())


def load(source: str, *, name: str) -> ctypes.CDLL:
    """Loads a source as a shared library, compiling it unless the cache folder holds it.

    Args:
        source: C++17, which may include ``runtime.h``, and may begin with `FLAGS_LINE` and flags.
        name: what the library's file begins with, for people who look into the folder; the source is kept beside it.

    Returns:
        The library, with the process's threads bound to it where it includes ``runtime.h``.

    Raises:
        CompileError: there is no compiler, or it refuses the source.
    """
    library = _load(source, name)
    if bind := getattr(library, "frnn_bind", None):
        bind.argtypes, bind.restype = [ctypes.c_void_p], None
        bind(ctypes.cast(runtime().frnn_run_team, ctypes.c_void_p))
    return library


@functools.cache
def runtime() -> ctypes.CDLL:
    """The one library that owns the process's threads, from runtime.cpp."""
    library = _load((HERE / "runtime.cpp").read_text(), "runtime")
    use_openmp(library)
    return library


def use_openmp(library: ctypes.CDLL) -> bool:
    """Lets the library of runtime.cpp run its teams on the OpenMP threads of the process; False where there are none (macOS's torch keeps
    its own to itself)."""
    process = ctypes.CDLL(None)  # torch loads its OpenMP for all to see
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    if not all(hasattr(process, name) for name in names):
        return False
    library.frnn_use_openmp.argtypes, library.frnn_use_openmp.restype = [ctypes.c_void_p] * 3, None
    library.frnn_use_openmp(*[ctypes.cast(getattr(process, name), ctypes.c_void_p) for name in names])
    return True


def _load(source: str, name: str) -> ctypes.CDLL:
    command = compiler()
    if command is None:
        given = f" (CXX={os.environ['CXX']!r} is not a program)" if os.environ.get("CXX") else ""
        raise CompileError(f"no C++ compiler found{given}: install g++ or clang++ (Debian: apt install g++; macOS: xcode-select --install)")
    key = _key(source, command)
    stem = f"{re.sub(r'[^A-Za-z0-9_]+', '_', name)[:60]}-{key[:32]}"
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _open(folder, stem, source, command)
    except OSError:  # not writable, full, or on a mount that may not hold programs
        return _open(private_folder(os.getpid()), stem, source, command)


def _open(folder: Path, stem: str, source: str, command: str) -> ctypes.CDLL:
    path = folder / f"{stem}.so"
    if _whole(path):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    _compile(path, source, command)
    return ctypes.CDLL(str(path))


def _whole(path: Path) -> bool:
    """Whether the file is what was compiled: to load a file that was cut short may end the process."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == path.with_suffix(".sum").read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _compile(path: Path, source: str, command: str) -> None:
    """Writes path with the suffixes .cpp, .so and .sum, each at once, so that processes may do the same at a time."""
    text = path.with_suffix(".cpp")
    replace(text, lambda temporary: temporary.write_text(source))
    replace(path, lambda temporary: _run(command, text, temporary))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    replace(path.with_suffix(".sum"), lambda temporary: temporary.write_text(digest))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written aside and put in its place at once, so that no process ever sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=f".tmp{path.suffix}")
    os.close(handle)
    try:
        write(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _run(command: str, source: Path, library: Path) -> None:
    first = source.read_text().partition("\n")[0]
    more_flags = shlex.split(first.removeprefix(FLAGS_LINE)) if first.startswith(FLAGS_LINE) else []
    arguments = [*shlex.split(command), *FLAGS, *more_flags, f"-I{HERE}", str(source), "-o", str(library)]
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = done.stderr.splitlines()
        told = [line for line in lines if "error" in line] or lines[-10:]
        more = f"\n... {len(told) - 10} more" if len(told) > 10 else ""
        raise CompileError(f"{shlex.join(arguments)}\nexit status {done.returncode}\n" + "\n".join(told[:10]) + more)


def _key(source: str, command: str) -> str:
    digest = hashlib.sha256()
    headers = [path.read_text() for path in sorted(HERE.glob("*.h"))]
    for part in (source, *headers, _version(command), shlex.join(FLAGS), _processor()):
        digest.update(f"{len(part)}\n{part}\n".encode())
    return digest.hexdigest()


@functools.cache
def _version(command: str) -> str:
    done = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True, errors="replace", check=False)
    return f"{command}\n{done.stdout}"


@functools.cache
def _processor() -> str:
    """What -march=native goes by. A home folder may be shared by machines that differ."""
    told = [sys.platform, platform.machine()]
    with contextlib.suppress(OSError):
        wanted = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU implementer", "CPU part", "cpu")
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
        told += [line for line in first.splitlines() if line.split(":")[0].strip() in wanted]
    if sys.platform == "darwin":
        told.append(subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False).stdout)
    return "\n".join(told)


@functools.cache
def private_folder(process: int) -> Path:
    """A folder for this process, removed at its end (but not at the end of a child that got it by fork)."""
    folder = Path(tempfile.mkdtemp(prefix="fusedrnn-"))

    def remove() -> None:
        if process == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
