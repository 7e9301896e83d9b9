"""The tensors of one loop, call by call. In: its cell and loop_fn, once; out: their tensors now, or None where a program may not fit now.

A walk says what to look at. That becomes one flat Python function, which reads every variable, attribute and entry again and
compares it with what the walk found there.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from types import MappingProxyType
from typing import Any

import torch

from .kinds import class_of
from .places import ATTRIBUTE, CELL, GLOBAL, ITEM, KEY, KEYWORD_DEFAULT, MEMBER, SLOT, Place
from .record import ELEMENTS, FLAT, SCALAR, TENSOR, TUPLE, Walk
from .scalars import same, same_items
from .values import array_digest
from .walker import walk

Bind = Callable[[], list[torch.Tensor] | None]


class Binder:
    """Finds the tensors of a cell and a loop_fn again, in the walk's order.

    Calling it gives them, or None: the key has changed, or an object was replaced by another, which only a new walk can look into.
    It holds the cell and the loop_fn and what hangs on them except tensors.

    Attributes:
        key: of the walk that it was made from.
    """

    def __init__(self, cell: Any, loop_fn: Any) -> None:
        with torch._C.DisableTorchFunction():  # as in `walk`: a mode may say something else of a tensor
            found = walk(cell, loop_fn)
            self.key: Hashable = found.key
            self._bind: Bind = _never if found.unknown is not None else _Source(found).function()

    def __call__(self) -> list[torch.Tensor] | None:
        return self._bind()


def _never() -> None:
    return None


class _Source:
    """The text of the function, and the objects that it names."""

    def __init__(self, found: Walk) -> None:
        self.lines: dict[str, None] = {}  # each once, in order
        self.objects: dict[str, Any] = {
            "same": same, "same_items": same_items, "same_tuple": _same_tuple, "dict_of": _dict_of, "is_empty": _is_empty,
            "no_slot": _no_slot, "array_digest": array_digest, "Quiet": torch._C.DisableTorchFunction, "type": type, "len": len,
            "list": list, "id": id, "set": set, "map": map, "stack": torch._C._functorch.peek_interpreter_stack, "missing": _MISSING,
        }  # fmt: skip
        self.names: dict[int, str] = {}
        self.parts: dict[int, str] = {}  # the variables of tuples, by the identity of their place
        self.tensors: dict[int, str] = {}
        for what, value, expected in found.checks:
            self.check(what, value, expected)
        for how, value, place in found.visits:
            self.visit(how, value, place)
        for watched in found.watched:
            if found.names is None:
                self.refuse(f"not same_items({self.object(watched.holder)}, {self.object(tuple(watched.holder))})")
            else:
                absent = frozenset(found.names) - watched.visited
                self.refuse(f"not {self.object(absent)}.isdisjoint({self.object(watched.holder)})")
        # Two places that held two tensors must not hold one now.
        self.lines[f"found = [{', '.join(self.tensors.values())}]"] = None
        if len(self.tensors) > 1:
            self.refuse(f"len(set(map(id, found))) != {len(self.tensors)}")

    def function(self) -> Bind:
        body = "\n".join(f"            {line}" for line in self.lines)
        text = (
            "def bind():\n    try:\n        with Quiet():\n            if stack() is not None:\n                return None\n"
            f"{body}\n            return found\n"
            "    except (AttributeError, IndexError, KeyError, ValueError):\n        return None\n"
        )
        exec(compile(text, "<fusedrnn binder>", "exec"), self.objects)
        bind: Bind = self.objects.pop("bind")
        return bind

    def refuse(self, condition: str) -> None:
        self.lines[f"if {condition}: return None"] = None

    def object(self, value: Any) -> str:
        """The name of an object in the text."""
        if value is None or value is True or value is False:
            return repr(value)
        key = id(value)
        if type(value) is MappingProxyType:  # a class makes a new one each time
            self.objects[f"c{len(self.objects)}"] = value
            return f"c{len(self.objects) - 1}"
        name = self.names.get(key)
        if name is None:
            name = self.names[key] = f"c{len(self.objects)}"
            self.objects[name] = value
        return name

    def read(self, place: Place) -> str | None:
        """How to read what is at a place now; None where it cannot change."""
        parent, step, name, holder, _ = place
        if step == CELL:
            return f"{self.object(holder)}.cell_contents"
        if step in (ATTRIBUTE, KEY, GLOBAL, MEMBER, KEYWORD_DEFAULT) and holder is not None:
            key = repr(name) if type(name) is str else self.object(name)
            if type(holder) in (dict, OrderedDict, MappingProxyType):
                return f"{self.object(holder)}[{key}]"
            self.objects["get"] = dict.get  # [] of a defaultdict would make an entry
            return f"get({self.object(holder)}, {key}, missing)"
        if step == ITEM and holder is not None:
            if type(holder) in (list, deque):
                return f"{self.object(holder)}[{name}]"
            return f"{self.object(class_of(type(holder)).layout)}.__getitem__({self.object(holder)}, {name})"
        if step == ITEM and id(parent) in self.parts:
            return f"{self.parts[id(parent)]}[{name}]"
        if step == SLOT:
            return f"{self.object(holder[0])}.__get__({self.object(holder[1])})"
        return None

    def visit(self, how: str, value: Any, place: Place) -> None:
        now = self.read(place)
        if how == TENSOR:
            self.tensor(value, now)
        elif how == TUPLE:
            variable = self.parts[id(place)] = f"p{len(self.parts)}"
            self.lines[f"{variable} = {now or self.object(value)}"] = None
            self.refuse(f"type({variable}) is not {self.object(type(value))} or len({variable}) != {len(value)}")
        elif how == ELEMENTS:
            variable = self.parts[id(place)] = f"p{len(self.parts)}"
            self.lines[f"{variable} = {now}"] = None
            compare = "<" if len(value) == place[3]["_size"] else "!="
            self.refuse(f"len({variable}) {compare} {len(value)}")
        elif now is None:
            return
        elif how == SCALAR and value is not None and value is not True and value is not False:
            self.refuse(f"(x := {now}) is not {self.object(value)} and not same(x, {self.object(value)})")
        elif how == FLAT:
            self.refuse(f"(x := {now}) is not {self.object(value)} and not same_tuple(x, {self.object(value)})")
        else:
            self.refuse(f"{now} is not {self.object(value)}")

    def tensor(self, value: torch.Tensor, now: str | None) -> None:
        now = now or self.object(value)
        variable = self.tensors.get(id(value))
        if variable is not None:
            self.refuse(f"{now} is not {variable}")
            return
        variable = self.tensors[id(value)] = f"t{len(self.tensors)}"
        self.lines[f"{variable} = {now}"] = None
        wrong = [
            f"type({variable}) is not {self.object(type(value))}",
            f"{variable}.dtype is not {self.object(value.dtype)}",
            f"not {variable}.is_cpu" if value.is_cpu else f"{variable}.device != {self.object(value.device)}",
            f"{variable}.ndim != {value.ndim}",
            f"{variable}.requires_grad is not {value.requires_grad}",
            f"{variable}.layout is not {self.object(value.layout)}",
        ]
        self.refuse(" or ".join(wrong))

    def check(self, what: str, value: Any, expected: Any) -> None:
        found, wanted = self.object(value), self.object
        if what == "length":
            exact = type(value) in (dict, list, deque, OrderedDict, MappingProxyType)
            length = f"len({found})" if exact else f"{self.object(class_of(type(value)).layout)}.__len__({found})"
            self.refuse(f"{length} != {expected}")
        elif what in ("items", "keys", "values"):
            base = class_of(type(value)).layout
            held = found if type(value) is base else f"list({self.object(base)}.__iter__({found}))"
            if what == "values":
                held = f"{self.object(base)}.values({found})"
            self.refuse(f"not same_items({held}, {wanted(expected)})")
        elif what == "hooks":
            self.refuse(f"not same_items({found}.values(), {wanted(expected)})" if expected else found)
        elif what == "type":
            self.refuse(f"type({found}) is not {wanted(expected)}")
        elif what == "dict":
            plain = vars(object)["__getattribute__"] is type(value).__getattribute__
            self.refuse(f"{f'{found}.__dict__' if plain else f'dict_of({found})'} is not {wanted(expected)}")
        elif what == "entry":
            self.refuse(f"{found}[{expected[0]!r}] is not {wanted(expected[1])}")
        elif what == "function":
            code, defaults, keywords = map(self.object, expected)
            self.refuse(
                f"{found}.__code__ is not {code} or {found}.__defaults__ is not {defaults} or {found}.__kwdefaults__ is not {keywords}"
            )
        elif what == "absent":
            self.refuse(f"{expected!r} in {found}")
        elif what == "disjoint":
            self.refuse(f"not {wanted(expected)}.isdisjoint({found})")
        elif what == "empty":
            self.refuse(f"not is_empty({found})")
        elif what == "no slot":
            self.refuse(f"not no_slot({found}, {wanted(expected)})")
        elif what == "factory":
            self.refuse(f"{found}.default_factory is not {wanted(expected)}")
        elif what == "ndarray":
            self.refuse(f"array_digest({found}) != {wanted(expected)}")
        else:
            raise AssertionError(what)


_MISSING = object()


def _same_tuple(value: Any, expected: tuple[Any, ...]) -> bool:
    return type(value) is type(expected) and same_items(value, expected)


def _dict_of(value: Any) -> Any:
    return object.__getattribute__(value, "__dict__")


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _no_slot(value: Any, descriptor: Any) -> bool:
    try:
        descriptor.__get__(value)
    except AttributeError:
        return True
    return False
