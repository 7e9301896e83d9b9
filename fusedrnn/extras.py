"""Packages that only some commands need. In: a module's name and the extra that brings it; out: the module, or an error that says what to
install."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needed(module: str, extra: str) -> Any:
    """The module of that name.

    Raises:
        ModuleNotFoundError: its package is not installed; the message says how to install it.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:  # something that the package itself lacks
            raise
        how = f"pip install 'fusedrnn[{extra}]', or in a clone pip install -e '.[{extra}]'"
        raise ModuleNotFoundError(f"{package} is not installed: {how}", name=package) from error
