"""Tensors of the Open Inference Protocol, in JSON or binary. In: bodies; out: numpy arrays, and the other way round.

With the header ``Inference-Header-Content-Length`` a body is that many bytes of JSON and then the tensors, one after another, each of
``binary_data_size`` bytes, little-endian; an element of BYTES is four bytes of length and its content.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .limits import parsed
from .problems import Problem

HEADER = "inference-header-content-length"
Array = npt.NDArray[Any]
_NUMBERS = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4"}
DATATYPES = {**_NUMBERS, "BYTES": "O"}
_DIMENSIONS = 8


@dataclass(frozen=True)
class Asked:
    """An inference request.

    Attributes:
        id: the client's, or None.
        inputs: by name; BYTES are object arrays of bytes.
        parameters: of the request.
        outputs: name to whether it is wanted in binary; None: all, by ``binary``.
        binary: what holds for outputs that do not say.
    """

    id: str | None
    inputs: Mapping[str, Array]
    parameters: Mapping[str, Any]
    outputs: Mapping[str, bool] | None
    binary: bool


def read(content: bytes, json_length: str | None) -> Asked:
    """An inference request from its body and the header that says how much of it is JSON.

    Raises:
        Problem: 400 where it cannot be read, 422 where it says what cannot be.
    """
    length = len(content)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdecimal() and len(json_length) < 20 and int(json_length) <= length):
            raise Problem(400, f"{HEADER} must be a number of bytes up to the body's {length}, got {json_length[:40]!r}")
        length = int(json_length)
    asked, rest = parsed(content[:length]), memoryview(content)[length:]
    parameters = dict(_mapping(asked.get("parameters", {}), "parameters"))
    binary = _flag(parameters.pop("binary_data_output", False), "binary_data_output")
    inputs = dict[str, Array]()
    for place, entry in enumerate(_sequence(asked.get("inputs"), "inputs")):
        name, array, rest = _input(_mapping(entry, f"inputs[{place}]"), rest)
        if name in inputs:
            raise Problem(422, f"inputs: {name!r} is given twice")
        inputs[name] = array
    if len(rest):
        raise Problem(400, f"{len(rest)} bytes are left behind the last input: binary_data_size must account for all")
    outputs = None
    if asked.get("outputs"):
        outputs = dict(_wanted(_mapping(entry, "outputs"), binary) for entry in _sequence(asked["outputs"], "outputs"))
    identity = asked.get("id")
    if identity is not None and not isinstance(identity, str):
        raise Problem(422, f"id must be a string, got {type(identity).__name__}")
    return Asked(identity, inputs, parameters, outputs, binary)


def write(head: Mapping[str, Any], outputs: Mapping[str, Array], binary: Mapping[str, bool]) -> tuple[bytes, int | None]:
    """A response's body, and how many of its bytes are JSON: None for all of them.

    Args:
        head: what the response says besides its outputs.
        outputs: by name, in order.
        binary: which of them are to be so.
    """
    entries, tail = list[dict[str, Any]](), list[bytes]()
    for name, array in outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": datatype(array), "shape": list(array.shape)}
        if binary[name]:
            tail.append(_to_bytes(array))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            flat = array.ravel().tolist()
            entry["data"] = [element.decode() for element in flat] if array.dtype == object else _finite(name, flat)
        entries.append(entry)
    text = json.dumps({**head, "outputs": entries}).encode()
    return (b"".join([text, *tail]), len(text)) if tail or any(binary.values()) else (text, None)


def datatype(array: Array) -> str:
    """The protocol's name of an array's elements."""
    return next(name for name, code in DATATYPES.items() if np.dtype(code) == array.dtype)


def _finite(name: str, numbers: list[Any]) -> list[Any]:
    if not all(math.isfinite(number) for number in numbers):
        raise Problem(422, f"{name} holds NaN or infinity, which JSON has no number for: ask for it in binary")
    return numbers


def _input(entry: Mapping[str, Any], rest: memoryview) -> tuple[str, Array, memoryview]:
    name, kind = entry.get("name"), entry.get("datatype")
    if not isinstance(name, str):
        raise Problem(422, "inputs: each must have a name, a string")
    if not isinstance(kind, str) or kind not in DATATYPES:
        raise Problem(422, f"input {name!r}: datatype must be one of {', '.join(DATATYPES)}")
    shape = _shape(entry.get("shape"), name)
    parameters = _mapping(entry.get("parameters", {}), f"input {name!r}: parameters")
    if unknown := set(parameters) - {"binary_data_size"}:
        raise Problem(422, f"input {name!r}: the parameter {min(unknown)!r} is not known here; known: 'binary_data_size'")
    count = math.prod(shape)
    if "binary_data_size" not in parameters:
        return name, _from_json(entry.get("data"), kind, shape, count, name), rest
    size = parameters["binary_data_size"]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
        raise Problem(400, f"input {name!r}: binary_data_size must be a whole number up to the {len(rest)} bytes that are left of the body")
    if "data" in entry:
        raise Problem(422, f"input {name!r}: it has both data and binary_data_size")
    return name, _from_bytes(rest[:size], kind, shape, count, name), rest[size:]


def _shape(shape: Any, name: str) -> tuple[int, ...]:
    sizes: list[Any] = shape if isinstance(shape, list) else [None]
    if len(sizes) > _DIMENSIONS or not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**31 for size in sizes):
        raise Problem(422, f"input {name!r}: shape must be an array of at most {_DIMENSIONS} whole numbers of at least 0")
    if math.prod(max(size, 1) for size in sizes) >= 2**31:
        raise Problem(413, f"input {name!r}: shape {sizes} is too large")
    return tuple(sizes)


def _from_json(data: Any, kind: str, shape: tuple[int, ...], count: int, name: str) -> Array:
    if not isinstance(data, list):
        raise Problem(422, f"input {name!r}: data must be an array, or parameters must have binary_data_size")
    flat = list(_flat(data, name))
    if len(flat) != count:
        raise Problem(422, f"input {name!r}: shape {list(shape)} has {count} elements, data has {len(flat)}")
    wanted: tuple[type, ...] = {"B": (str,), "I": (int,), "F": (int, float)}[kind[0]]
    if not all(isinstance(element, wanted) and not isinstance(element, bool) for element in flat):
        raise Problem(422, f"input {name!r}: elements of {kind} must be {' or '.join(each.__name__ for each in wanted)}")
    try:
        if kind == "BYTES":
            flat = [element.encode() for element in flat]
        return _array(flat, kind).reshape(shape)
    except (OverflowError, UnicodeEncodeError) as error:
        raise Problem(422, f"input {name!r}: an element is no {kind}: {error}") from None


def _flat(data: list[Any], name: str, depth: int = 1) -> Iterator[Any]:
    if depth > _DIMENSIONS:
        raise Problem(422, f"input {name!r}: data is nested more than {_DIMENSIONS} deep")
    for element in data:
        if isinstance(element, list):
            yield from _flat(element, name, depth + 1)
        else:
            yield element


def _from_bytes(content: memoryview, kind: str, shape: tuple[int, ...], count: int, name: str) -> Array:
    if kind == "BYTES":
        elements = _elements(content, name)
        if len(elements) != count:
            raise Problem(422, f"input {name!r}: shape {list(shape)} has {count} elements, its bytes hold {len(elements)}")
        return _array(elements, kind).reshape(shape)
    size = count * np.dtype(DATATYPES[kind]).itemsize
    if size != len(content):
        raise Problem(422, f"input {name!r}: {kind} of shape {list(shape)} has {size} bytes, got {len(content)}")
    return np.frombuffer(content, DATATYPES[kind]).reshape(shape)


def _elements(content: memoryview, name: str) -> list[bytes]:
    elements, begin = list[bytes](), 0
    while begin < len(content):
        if begin + 4 > len(content):
            raise Problem(400, f"input {name!r}: its bytes end within the length of an element")
        (length,) = struct.unpack_from("<I", content, begin)
        if begin + 4 + length > len(content):
            raise Problem(400, f"input {name!r}: an element says that it has {length} bytes, {len(content) - begin - 4} are left")
        elements.append(bytes(content[begin + 4 : begin + 4 + length]))
        begin += 4 + length
    return elements


def _to_bytes(array: Array) -> bytes:
    if array.dtype != object:
        return array.astype(array.dtype.newbyteorder("<")).tobytes()
    return b"".join(struct.pack("<I", len(element)) + element for element in array.ravel().tolist())


def _array(elements: list[Any], kind: str) -> Array:
    """One dimension; numpy would make numbers of some objects, and drops zeros behind bytes."""
    array = np.empty(len(elements), DATATYPES[kind])
    if elements:
        with np.errstate(over="ignore"):  # a number above float32's is infinity, as in every cast
            array[:] = elements
    return array


def strings(array: Array, name: str) -> list[str]:
    """The elements of BYTES as text.

    Raises:
        Problem: they are not UTF-8.
    """
    try:
        return [element.decode() for element in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise Problem(422, f"input {name!r}: an element is not UTF-8: {error.reason} at byte {error.start}") from None


def of_strings(texts: list[str]) -> Array:
    """BYTES ``[n]``."""
    return _array([text.encode() for text in texts], "BYTES")


def _wanted(entry: Mapping[str, Any], binary: bool) -> tuple[str, bool]:
    name = entry.get("name")
    if not isinstance(name, str):
        raise Problem(422, "outputs: each must have a name, a string")
    parameters = dict(_mapping(entry.get("parameters", {}), f"output {name!r}: parameters"))
    binary = _flag(parameters.pop("binary_data", binary), f"output {name!r}: binary_data")
    if parameters:
        raise Problem(422, f"output {name!r}: the parameter {min(parameters)!r} is not known here; known: 'binary_data'")
    return name, binary


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Problem(422, f"{name} must be an object")
    return value


def _sequence(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise Problem(422, f"{name} must be an array")
    return value


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise Problem(422, f"{name} must be true or false")
    return value
