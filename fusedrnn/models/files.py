"""Models in safetensors files: weights, and the sizes that they are of. In: a module, or a file; out: the file, or the module."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..extras import needed

M = TypeVar("M", bound=nn.Module)


def save(model: nn.Module, sizes: Mapping[str, Any], file: Path, *, extra: str) -> None:
    """Write the weights and sizes, in place of what stood there.

    Args:
        extra: of the package, that brings safetensors.

    Raises:
        ModuleNotFoundError: safetensors is not installed; the message says how to install it.
        OSError: the file cannot be written.
    """
    torch_files = needed("safetensors.torch", extra)
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    replace(file, torch_files.save(weights, metadata={"sizes": json.dumps(dict(sizes))}))


def load(make: Callable[..., M], sizes: type[Any], file: Path, *, command: str, missing: str, extra: str) -> M:
    """The model that `save` wrote, in eval mode on the CPU.

    Args:
        make: of sizes, the model.
        sizes: the dataclass of the sizes.
        command: that writes such files.
        missing: how it is called to write this one.

    Raises:
        ModuleNotFoundError: safetensors is not installed; the message says how to install it.
        FileNotFoundError: there is no such file.
        ValueError: it is not what `save` writes.
    """
    safetensors = needed("safetensors", extra)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: {missing}")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            found = json.loads((opened.metadata() or {}).get("sizes", "null"))
            if not isinstance(found, dict) or set(found) != {field.name for field in fields(sizes)}:
                raise ValueError("its metadata has no sizes of this model")
            model = make(sizes(**found)).eval()
            model.load_state_dict({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118, it is no dict
    except (safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} is no model of `{command}`: {error}") from error
    return model


def replace(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(content)
    part.replace(file)
