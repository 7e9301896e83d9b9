"""Brings generated Triton source to life. In: text; out: a module whose source people, Triton and debuggers find in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import linecache
import os
import re
import sys
import threading
import types
from pathlib import Path

from ..cpu.build import cache_folder, private_folder, replace

_modules: dict[str, types.ModuleType] = {}
_loading = threading.RLock()


def load(text: str, name: str) -> types.ModuleType:
    """Writes a source into the cache folder, unless it is there, and imports it.

    Args:
        text: Python source with ``@triton.jit`` functions; it may import.
        name: what the file's name begins with, for people who look into the folder; the rest is a hash of the text.

    Returns:
        The module, the same one for the same text; ``__file__`` says where the source stands.
    """
    key = hashlib.sha256(text.encode()).hexdigest()
    with _loading:
        if key not in _modules:
            _modules[key] = _import(text, f"{re.sub(r'[^A-Za-z0-9_]+', '_', name)[:60]}_{key[:32]}")
        return _modules[key]


def _import(text: str, stem: str) -> types.ModuleType:
    path = _written(text, stem)
    module = types.ModuleType(f"fusedrnn_generated_{stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    # Triton asks inspect for the source; thus it has it even where the folder is emptied meanwhile.
    linecache.cache[str(path)] = (len(text), None, text.splitlines(keepends=True), str(path))
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _written(text: str, stem: str) -> Path:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _write(folder / f"{stem}.py", text)
    except OSError:  # not writable, or full
        return _write(private_folder(os.getpid()) / f"{stem}.py", text)


def _write(path: Path, text: str) -> Path:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_bytes() == text.encode():
            return path
    replace(path, lambda temporary: temporary.write_bytes(text.encode()))
    return path
