"""The tensors of one loop, call by call. In: a walk, once; out: the tensors of a cell and a loop_fn now, or None where a program may not
fit them.

A walk says what to look at. That becomes one flat Python function, which goes the same way from a cell and a loop_fn, be they those of the
walk or new closures of the same code, and compares what it finds with what the walk found.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from enum import Enum
from operator import is_
from types import (
    BuiltinFunctionType,
    BuiltinMethodType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch

from ..tensor_array import TensorArray
from .kinds import class_of, is_parametrized
from .places import ATTRIBUTE, CELL, DEFAULT, GLOBAL, ITEM, KEY, KEYWORD_DEFAULT, MEMBER, PART, RECEIVER, ROOT, SAME, SLOT, Place
from .record import COUNT, ELEMENTS, FLAT, OBJECT, SCALAR, TENSOR, TUPLE, Walk
from .scalars import flat_key, is_scalar, same, same_items
from .values import array_digest

Bind = Callable[[Any, Any], list[torch.Tensor] | None]


class Binder:
    """Finds the tensors of a cell and a loop_fn again, in the walk's order.

    Calling it with a cell and a loop_fn gives them, or None: another key, or something that only a new walk can look into.

    Args:
        found: the walk.
        owned: the binder lives no longer than the cell and the loop_fn of the walk, so that it may hold what hangs on them, except tensors.
            Otherwise it holds code and classes alone, and finds nothing where that is not enough.

    Attributes:
        key: of the walk.
        warm: what is kept with it, for whoever runs what it finds.
        traced: the same for torch.compile and torch.export, which trace it: there the tensors have no data and may have another class. None
            where there is none.
    """

    def __init__(self, found: Walk, *, owned: bool) -> None:
        self.key: Hashable = found.key
        self.warm: tuple[Any, ...] = ()
        self.traced: Bind | None = None
        self._bind: Bind | None = None
        if found.unknown is None and found.impure is None:
            try:
                with torch._C.DisableTorchFunction():  # as in `walk`: a mode may say something else of a tensor
                    source = _Source(found, owned)
                    self._bind, self.traced = source.function(), source.traced_function() if owned else None
            except _Unreachable:
                pass

    @property
    def useful(self) -> bool:
        """Whether it can ever find anything."""
        return self._bind is not None

    def __call__(self, cell: Any, loop_fn: Any) -> list[torch.Tensor] | None:
        return None if self._bind is None else self._bind(cell, loop_fn)


class _Unreachable(Exception):
    """Something can be told from another only by holding it."""


class _Source:
    """The text of the function, and the objects that it names."""

    def __init__(self, found: Walk, owned: bool) -> None:
        self.owned = owned
        self.lines: dict[str, None] = {}  # each once, in order
        self.objects: dict[str, Any] = {
            "same": same, "same_items": same_items, "same_tuple": _same_tuple, "dict_of": _dict_of, "is_empty": _is_empty,
            "no_slot": _no_slot, "array_digest": array_digest, "Quiet": torch._C.DisableTorchFunction, "type": type, "len": len,
            "list": list, "id": id, "all": all, "is_": is_, "set": set, "map": map, "missing": _MISSING,
            "stack": torch._C._functorch.peek_interpreter_stack,
            "get": dict.get,  # [] of a defaultdict would make an entry
        }  # fmt: skip
        self.names: dict[int, str] = {}  # of constants, by identity
        self.variables: dict[int, str] = {}  # what is read anew, by the identity of what the walk found there
        self.distinct: list[str] = []
        self.of_class: set[str] = set()  # the lines that look at the class of a tensor and whether it requires a gradient
        self.parts: dict[int, str] = {}  # the variables of tuples, by the identity of their place
        self.parents: dict[
            int, tuple[str, Any]
        ] = {}  # variable and value of functions, methods and partials, by the identity of their place
        self.tensors: dict[int, str] = {}
        for what, value, more in found.facts:
            if what in _VISITS:
                self.visit(what, value, more)
            else:
                self.check(what, value, more)
        for watched in found.watched:
            holder = self.object(watched.holder)
            if found.names is None:
                self.refuse(f"not same_items({holder}, {self.constant(tuple(watched.holder))})")
            else:
                absent = frozenset(found.names) - watched.visited
                self.refuse(f"not {self.constant(absent)}.isdisjoint({holder})")
        self.lines[f"found = [{', '.join(self.tensors.values())}]"] = None

    def function(self) -> Bind:
        two = []  # what were two things must not be one now
        if len(self.tensors) > 1:
            two.append(f"if len(set(map(id, found))) != {len(self.tensors)}: return None")
        if len(self.distinct) > 1:
            two.append(f"if len(set(map(id, ({', '.join(self.distinct)})))) != {len(self.distinct)}: return None")
        body = "\n".join(f"            {line}" for line in (*self.lines, *two))
        return self._made(
            "def bind(cell, loop_fn):\n    try:\n        with Quiet():\n            if stack() is not None:\n                return None\n"
            f"{body}\n            return found\n"
            "    except (AttributeError, IndexError, KeyError, TypeError, ValueError):\n        return None\n"
        )

    def traced_function(self) -> Bind:
        """What the tracer guards needs no line: which objects are the same, and the classes of the tensors."""
        body = "\n".join(f"    {line}" for line in self.lines if line not in self.of_class)
        return self._made(f"def bind(cell, loop_fn):\n{body}\n    return found\n")

    def _made(self, text: str) -> Bind:
        exec(compile(text, "<fusedrnn binder>", "exec"), self.objects)
        bind: Bind = self.objects.pop("bind")
        return bind

    def refuse(self, condition: str) -> str:
        line = f"if {condition}: return None"
        self.lines[line] = None
        return line

    def constant(self, value: Any) -> str:
        """The name of an object that the function holds."""
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

    def object(self, value: Any) -> str:
        """A value of the walk: what is there now, or the value itself where it may be held."""
        variable = self.variables.get(id(value))
        if variable is not None:
            return variable
        if not (self.owned or _lasting(value)):
            raise _Unreachable
        return self.constant(value)

    def bind(self, value: Any, now: str) -> str:
        """A variable for what is read now in place of a value of the walk."""
        variable = self.variables.get(id(value))
        if variable is None:
            variable = self.variables[id(value)] = f"o{len(self.variables)}"
            self.lines[f"{variable} = {now}"] = None
        else:
            self.refuse(f"{now} is not {variable}")
        return variable

    def read(self, place: Place) -> str | None:
        """How to read what is at a place now; None where it cannot change."""
        parent, step, name, holder, _ = place
        if step == ROOT:
            return name if name in ("cell", "loop_fn") else None
        if step == CELL:
            return f"{self.object(holder)}.cell_contents"
        if step in (ATTRIBUTE, KEY, GLOBAL, MEMBER, KEYWORD_DEFAULT) and holder is not None:
            key = repr(name) if type(name) is str else self.object(name)
            if type(holder) in (dict, OrderedDict, MappingProxyType):
                return f"{self.object(holder)}[{key}]"
            return f"get({self.object(holder)}, {key}, missing)"
        if step == ITEM and holder is not None:
            if type(holder) in (list, deque):
                return f"{self.object(holder)}[{name}]"
            return f"{self.constant(class_of(type(holder)).layout)}.__getitem__({self.object(holder)}, {name})"
        if step == ITEM and id(parent) in self.parts:
            return f"{self.parts[id(parent)]}[{name}]"
        if step == SLOT:
            return f"{self.constant(holder[0])}.__get__({self.object(holder[1])})"
        variable, value = self.parents.get(id(parent), ("", None))
        if step == DEFAULT and variable:
            return f"{variable}.__defaults__[{holder}]"
        if type(value) is MethodType and step in (SAME, RECEIVER):
            return f"{variable}.{'__func__' if step == SAME else '__self__'}"
        if type(value) is functools.partial and step == PART:
            return f"{variable}.{name}"
        return None

    def visit(self, how: str, value: Any, place: Place) -> None:
        now = self.read(place)
        if how == TENSOR:
            self.tensor(value, now)
        elif how == TUPLE:
            variable = self.parts[id(place)] = f"p{len(self.parts)}"
            self.lines[f"{variable} = {now or self.object(value)}"] = None
            self.variables.setdefault(id(value), variable)
            self.refuse(f"type({variable}) is not {self.object(type(value))} or len({variable}) != {len(value)}")
        elif how == ELEMENTS:
            variable = self.parts[id(place)] = f"p{len(self.parts)}"
            self.lines[f"{variable} = {now}"] = None
            compare = "<" if len(value) == place[3]["_size"] else "!="
            self.refuse(f"len({variable}) {compare} {len(value)}")
        elif now is None:
            if how == OBJECT:
                self.object(value)
        elif how == COUNT:
            self.refuse(f"type({now}) is not {self.constant(type(value))}")
        elif how == SCALAR and value is not None and value is not True and value is not False:
            self.refuse(f"(x := {now}) is not {self.constant(value)} and not same(x, {self.constant(value)})")
        elif how == FLAT:
            self.refuse(f"(x := {now}) is not {self.constant(value)} and not same_tuple(x, {self.constant(value)})")
        elif how == OBJECT and _structured(value):
            known = id(value) in self.variables
            variable = self.bind(value, now)
            self.parents[id(place)] = variable, value
            if not known:
                self.refuse(f"type({variable}) is not {self.object(type(value))}")
                if type(value) is not MethodType:  # each look-up makes another
                    self.distinct.append(variable)
        else:
            self.refuse(f"{now} is not {self.object(value)}")

    def tensor(self, value: torch.Tensor, now: str | None) -> None:
        if now is None:
            raise _Unreachable
        variable = self.tensors.get(id(value))
        if variable is not None:
            self.refuse(f"{now} is not {variable}")
            return
        variable = self.tensors[id(value)] = f"t{len(self.tensors)}"
        self.lines[f"{variable} = {now}"] = None
        of_class = f"type({variable}) is not {self.object(type(value))} or {variable}.requires_grad is not {value.requires_grad}"
        self.of_class.add(self.refuse(of_class))
        wrong = [
            f"{variable}.dtype is not {self.constant(value.dtype)}",
            f"not {variable}.is_cpu" if value.is_cpu else f"{variable}.device != {self.constant(value.device)}",
            f"{variable}.ndim != {value.ndim}",
            f"{variable}.layout is not {self.constant(value.layout)}",
        ]
        self.refuse(" or ".join(wrong))

    def check(self, what: str, value: Any, expected: Any) -> None:
        found = self.object(value)
        if what == "length":
            exact = type(value) in (dict, list, deque, OrderedDict, MappingProxyType)
            length = f"len({found})" if exact else f"{self.constant(class_of(type(value)).layout)}.__len__({found})"
            self.refuse(f"{length} != {expected}")
        elif what in ("items", "keys", "values"):
            base = class_of(type(value)).layout
            held = found if type(value) is base else f"list({self.constant(base)}.__iter__({found}))"
            if what == "values":
                held = f"{self.constant(base)}.values({found})"
            self.items(held, expected)
        elif what == "hooks":
            self.items(f"{found}.values()", expected)
        elif what == "type":
            self.refuse(f"type({found}) is not {self.object(expected)}")
        elif what == "dict":
            plain = vars(object)["__getattribute__"] is type(value).__getattribute__
            variable = self.bind(expected, f"{found}.__dict__" if plain else f"dict_of({found})")
            if isinstance(value, TensorArray):
                self.refuse(f"{variable}.get('_fetch') is not None")  # it has its content later
        elif what == "entry":
            self.bind(expected[1], f"{found}[{expected[0]!r}]")
        elif what == "function":
            self.code(found, value, *expected)
        elif what == "attributes":
            self.bind(expected, f"{found}.__dict__")
        elif what == "absent":
            self.refuse(f"{expected!r} in {found}")
        elif what == "disjoint":
            self.refuse(f"not {self.constant(expected)}.isdisjoint({found})")
        elif what == "empty":
            self.refuse(f"not is_empty({found})")
        elif what == "no slot":
            self.refuse(f"not no_slot({found}, {self.constant(expected)})")
        elif what == "factory":
            self.refuse(f"{found}.default_factory is not {self.object(expected)}")
        elif what == "ndarray":
            self.refuse(f"array_digest({found}) != {self.constant(expected)}")
        else:
            raise AssertionError(what)

    def items(self, held: str, expected: tuple[Any, ...]) -> None:
        """Items, in their order. Nearly always they are the very same objects."""
        if not expected:
            self.refuse(f"len({held})")
        else:
            known = self.held(expected)
            self.refuse(f"(len({held}) != {len(expected)} or not all(map(is_, {held}, {known}))) and not same_items({held}, {known})")

    def held(self, values: tuple[Any, ...]) -> str:
        """Items that are compared one by one."""
        if not self.owned and not all(is_scalar(value) or _lasting(value) for value in values):
            raise _Unreachable
        return self.constant(values)

    def code(self, found: str, value: FunctionType, code: CodeType, defaults: Any, keywords: Any) -> None:
        """A function's code, and variables for all else that hangs on it."""
        self.refuse(f"{found}.__code__ is not {self.constant(code)}")
        self.refuse(f"{found}.__defaults__ is not None" if defaults is None else f"len({found}.__defaults__) != {len(defaults)}")
        if keywords is None:
            self.refuse(f"{found}.__kwdefaults__ is not None")
        else:
            self.bind(keywords, f"{found}.__kwdefaults__")
        if id(value) in self.variables:
            self.bind(value.__dict__, f"{found}.__dict__")
            self.bind(value.__globals__, f"{found}.__globals__")
            for index, cell in enumerate(value.__closure__ or ()):
                self.bind(cell, f"{found}.__closure__[{index}]")


_VISITS = frozenset((SCALAR, FLAT, TENSOR, TUPLE, OBJECT, ELEMENTS, COUNT))
_MISSING = object()


def _structured(value: Any) -> bool:
    """Whether what the walk found in an object says all that its key says: any other object with the same in it will do."""
    if type(value) in (FunctionType, MethodType, functools.partial, SimpleNamespace):
        return True
    facts = class_of(type(value))
    return facts.category in ("module", "object", "list", "set", "dict", "array", "ndarray") and facts.layout is not deque


def _lasting(value: Any) -> bool:
    """Whether an object may be held for as long as the process runs: code and what it consists of, but nothing that could hold tensors."""
    kind = type(value)
    if is_scalar(value) or kind in _CODE or isinstance(value, (Enum, np.generic, np.dtype, np.ufunc, logging.Logger)):
        return True
    if kind is FunctionType:
        return value.__closure__ is None and flat_key(value.__defaults__ or ()) is not None
    if kind in (BuiltinFunctionType, BuiltinMethodType):
        return value.__self__ is None or type(value.__self__) in (ModuleType, type)
    if kind is dict:
        return getattr(sys.modules.get(value.get("__name__", "")), "__dict__", None) is value or value is sys.modules
    if kind is slice:
        return flat_key((value.start, value.stop, value.step)) is not None
    if kind is MappingProxyType:  # the walk meets those of classes
        return True
    if isinstance(value, type):
        return not class_of(value).local and not is_parametrized(value)
    return class_of(kind).category == "singleton"


_CODE = frozenset((
    CodeType, ModuleType, ClassMethodDescriptorType, GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, MethodWrapperType,
    WrapperDescriptorType, property, staticmethod, classmethod,
))  # fmt: skip


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
