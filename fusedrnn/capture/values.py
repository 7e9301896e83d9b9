"""Values and containers. In: a number, tensor, tuple, list, dict, ...; out: its part of the key, and visits of what it holds."""

from __future__ import annotations

import functools
import gc
import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from . import places
from .kinds import class_of
from .places import ATTRIBUTE, CELL, GLOBAL, ITEM, KEY, PART, SAME, SLOT, Place
from .record import COUNT, ELEMENTS, FLAT, OBJECT, SCALAR, TENSOR, TUPLE, Changeable, Record, Same
from .scalars import flat_key, scalar_key

_MOST_BYTES = 1 << 20  # of a numpy array
_VARIABLES = (CELL, GLOBAL, ATTRIBUTE, SLOT)


class Values(Record):
    """The handlers of values and containers."""

    def of_scalar(self, value: Any, place: Place) -> None:
        self.key += (type(value), scalar_key(value))
        self.facts.append((SCALAR, value, place))
        if place[1] in _VARIABLES and (type(value) is int or type(value) is float):
            self._changeable("variable", value, place, (COUNT, value, place))

    def _changeable(self, kind: str, value: Any, place: Place, instead: tuple[str, Any, Any] | None) -> None:
        """What was last added to the key, and the last fact, are a content that code may only change."""
        self.changeable.append(Changeable(len(self.key) - 1, len(self.facts) - 1, kind, value, str(place[2]), place, instead))

    def of_singleton(self, value: Any, place: Place) -> None:
        self.key.append(Same(value))
        self.facts.append((OBJECT, value, place))

    def of_by_value(self, value: Any, place: Place) -> None:
        """Values of C types whose hash and equality are of C too; by identity in the binder."""
        self.key += (type(value), repr(value))
        self.facts.append((OBJECT, value, place))

    def of_descriptor(self, value: Any, place: Place) -> None:
        self.key.append(value)
        self.facts.append((OBJECT, value, place))

    def of_tensor(self, value: torch.Tensor, place: Place) -> None:
        index = self.places.get(id(value))
        self.facts.append((TENSOR, value, place))
        if index is not None:
            self.key += ("tensor", index)
            return
        index = self.places[id(value)] = len(self.tensors)
        self.tensors.append(value)
        self.key += (
            "tensor", index, type(value), value.dtype, value.device, value.ndim, value.requires_grad, value.layout,
        )  # fmt: skip
        if self.transforms:
            self.key += (torch._C._functorch.maybe_get_level(value), torch._C._functorch.is_batchedtensor(value))

    def of_ndarray(self, value: np.ndarray[Any, Any], place: Place) -> None:
        if value.dtype.hasobject or value.nbytes > _MOST_BYTES:
            self._unknown_value(value, place)
        elif self._first(value, place):
            digest = array_digest(value)
            self.key += (np.ndarray, digest)
            self.facts.append(("ndarray", value, digest))
            self.mutable.append(("ndarray", value, None, place))

    def of_numpy(self, value: Any, place: Place) -> None:
        self.facts.append((OBJECT, value, place))
        if isinstance(value, np.generic):
            self.key += (type(value), value.dtype.str, value.tobytes())
        else:
            self.key += (np.dtype, value.str)

    def of_number(self, value: Any, place: Place) -> None:
        """An instance of a subclass of int, float, complex, str or bytes."""
        if self._first(value, place):
            facts = class_of(type(value))
            self._class(type(value), place)
            self.key += (facts.layout, _PLAIN[facts.layout](value))
            self._attributes(value, place)

    def of_enum(self, value: Any, place: Place) -> None:
        if self._first(value, place):
            self._class(type(value), place)
            self.key.append(object.__getattribute__(value, "__dict__").get("_name_"))

    def of_logger(self, value: Any, place: Place) -> None:
        self.key += ("logger", object.__getattribute__(value, "__dict__").get("name"))
        self.facts.append((OBJECT, value, place))
        self.suspects.append((place, "calls", ""))

    def of_tuple(self, value: Any, place: Place) -> None:
        plain = type(value) is tuple or type(value) is torch.Size
        flat = flat_key(value) if plain else None
        if flat is not None:
            self.key += (tuple, type(value), flat)
            self.facts.append((FLAT, value, place))
            return
        if not plain:
            self._class(type(value), place)
        self.key += (tuple, tuple.__len__(value))
        self.facts.append((TUPLE, value, place))
        for i, item in enumerate(tuple.__iter__(value)):
            self.visit(item, (place, ITEM, i, None, None))
        if not plain:
            self._attributes(value, place)

    def of_list(self, value: Any, place: Place) -> None:
        if not self._first(value, place):
            return
        base = class_of(type(value)).layout
        if type(value) is not base:
            self._class(type(value), place)
        self.mutable.append(("list", value, None, place))
        self.key.append(base)
        if base is deque:
            self.key.append(deque.maxlen.__get__(value))
        self._items(value, list(base.__iter__(value)), place)
        if type(value) is not base:
            self._attributes(value, place)

    def of_set(self, value: Any, place: Place) -> None:
        if not self._first(value, place):
            return
        base = class_of(type(value)).layout
        if type(value) is not base:
            self._class(type(value), place)
        if base is set:
            self.mutable.append(("set", value, None, place))
        self.key.append(base)
        self._items(value, list(base.__iter__(value)), place)
        if type(value) is not base:
            self._attributes(value, place)

    def _items(self, value: Any, items: list[Any], place: Place) -> None:
        flat = flat_key(items)
        if flat is not None:
            self.key.append(flat)
            self.facts.append(("items", value, tuple(items)))
            self._changeable("container", value, place, None)
            return
        self.key.append(len(items))
        ordered = class_of(type(value)).layout in (list, deque)
        if ordered:
            self.facts.append(("length", value, len(items)))
        else:  # the binder can reach an element of a set only by its identity
            self.facts.append(("items", value, tuple(items)))
        for i, item in enumerate(items):
            self.visit(item, (place, ITEM, i, value if ordered else None, None))

    def of_dict(self, value: Any, place: Place) -> None:
        if not self._first(value, place):
            return
        base = class_of(type(value)).layout
        self.key.append(base)
        if type(value) is not base:
            self._class(type(value), place)
        if base is defaultdict:
            factory = vars(defaultdict)["default_factory"].__get__(value)
            self.facts.append(("factory", value, factory))
            self.visit(factory, (place, PART, "default_factory", None, None))
        self.mutable.append(("dict", value, None, place))
        self._entries(value, list(base.items(value)), place)
        if type(value) is not base:
            self._attributes(value, place)

    def _entries(self, value: Any, entries: list[tuple[Any, Any]], place: Place, step: int = KEY) -> None:
        keys = [key for key, _ in entries]
        flat = flat_key(keys)
        self.facts.append(("keys", value, tuple(keys)))
        values = None if flat is None else flat_key([entry for _, entry in entries])
        if values is not None:
            self.key += (flat, values)
            self.facts.append(("values", value, tuple([entry for _, entry in entries])))
            self._changeable("container", value, place, None)
            return
        self.key += (len(entries), flat)
        for key, entry in entries:
            if flat is None:
                if isinstance(key, torch.Tensor):
                    self._unknown(f"{places.holding(place, value)} has a tensor as a key")
                self.visit(key, (place, PART, "keys()", None, None))
            self.visit(entry, (place, step, key, value, None))

    def of_mapping(self, value: Mapping[Any, Any], place: Place) -> None:
        if self._first(value, place):
            self.key.append(MappingProxyType)
            self.visit(gc.get_referents(value)[0], (place, SAME, "", None, None))

    def of_slice(self, value: slice, place: Place) -> None:
        self.key.append(slice)
        self.facts.append((OBJECT, value, place))
        for name in ("start", "stop", "step"):
            self.visit(getattr(value, name), (place, PART, name, None, None))

    def of_namespace(self, value: SimpleNamespace, place: Place) -> None:
        if self._first(value, place):
            entries = value.__dict__
            self.key.append(SimpleNamespace)
            self.facts.append(("dict", value, entries))
            self.mutable.append(("attributes", entries, None, place))
            self._entries(entries, list(entries.items()), place, ATTRIBUTE)

    def of_partial(self, value: Any, place: Place) -> None:
        if not self._first(value, place):
            return
        self.key.append(functools.partial)
        if type(value) is not functools.partial:
            self._class(type(value), place)
        for name in ("func", "args", "keywords"):
            self.visit(getattr(functools.partial, name).__get__(value), (place, PART, name, None, None))
        self._attributes(value, place)

    def of_array(self, value: Any, place: Place) -> None:
        """A TensorArray: what reading it would give."""
        if not self._first(value, place):
            return
        self._class(type(value), place)
        if object.__getattribute__(value, "__dict__").get("_fetch") is not None:  # an EmitArray, which has its content later
            value._loaded()
        fields = object.__getattribute__(value, "__dict__")
        self.facts.append(("dict", value, fields))
        self.mutable.append(("array", fields, None, place))
        for name in ("_dtype", "_element_shape", "_size", "_device", "_whole"):
            self.visit(fields[name], (place, ATTRIBUTE, name, fields, None))
        elements = fields["_elements"]
        self.mutable.append(("elements", elements, None, place))
        count = min(len(elements), fields["_size"])
        self.key.append(count)
        inner = (place, ATTRIBUTE, "_elements", fields, None)
        self.facts.append((ELEMENTS, elements[:count], inner))
        for i in range(count):
            self.visit(elements[i], (inner, ITEM, i, None, None))


def array_digest(array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    """The content of a numpy array."""
    return array.dtype.str, array.shape, hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()


_PLAIN: dict[type, Callable[[Any], Any]] = {
    int: int.__int__, float: float.__repr__, complex: complex.__repr__, str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
}  # fmt: skip
