"""Whose code is, and how an instance is looked into. In: a module's name or a class; out: `Whose`, and what is known of the class."""

from __future__ import annotations

import sys
import sysconfig
import weakref
from collections import OrderedDict, defaultdict, deque
from enum import Enum, EnumMeta
from functools import partial
from logging import Logger
from types import FunctionType, MemberDescriptorType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..tensor_array import TensorArray

_FIXED_PACKAGES = frozenset({"torch", "numpy", "triton", "builtins", "functorch", "torchgen"})
_LIBRARY = tuple(
    path if path.endswith("/") else path + "/" for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")} if path
)
_OWN = __name__.partition(".")[0]


class Whose(Enum):
    """FIXED: torch, numpy, triton and the standard library, whose code does not change. OWN: fusedrnn. USER: all else."""

    FIXED = 0
    OWN = 1
    USER = 2


_modules: dict[str, Whose] = {}


def module_whose(name: Any) -> Whose:
    """Whose the module of this name is."""
    if type(name) is not str:
        return Whose.USER
    found = _modules.get(name)
    if found is None:
        top = name.partition(".")[0]
        if top == _OWN:
            found = Whose.OWN
        elif top in _FIXED_PACKAGES or (top in sys.stdlib_module_names and _from_library(top)):
            found = Whose.FIXED
        else:
            found = Whose.USER
        _modules[name] = found
    return found


def _from_library(name: str) -> bool:
    """A file of the user may be called like a module of the standard library, such as token.py."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return not isinstance(file, str) or (file.startswith(_LIBRARY) and "site-packages" not in file and "dist-packages" not in file)


# Members that say nothing about what the class computes, and those that only run where an instance is made, destroyed or pickled.
_BOOKKEEPING = frozenset({
    "__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__annotations__", "__slots__", "__match_args__",
    "__dataclass_fields__", "__dataclass_params__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__",
    "__firstlineno__", "__static_attributes__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__type_params__",
    "__protocol_attrs__", "__non_callable_proto_members__", "__classcell__", "_is_protocol", "_is_runtime_protocol",
})  # fmt: skip
CONSTRUCTION = ("__new__", "__init__", "__post_init__", "__init_subclass__", "__class_getitem__", "__set_name__")
_RARE = frozenset({*CONSTRUCTION, "__del__", "__reduce__", "__reduce_ex__", "__getnewargs__", "__getstate__", "__setstate__"})
_NAMED_TUPLE = frozenset({"_make", "_replace", "_asdict", "_fields", "_field_defaults", "__new__", "__repr__", "__getnewargs__"})

_LAYOUTS: tuple[type, ...] = (
    object, tuple, list, dict, set, frozenset, deque, OrderedDict, defaultdict, int, float, complex, str, bytes, SimpleNamespace, partial,
)  # fmt: skip
_CONTAINERS = {
    tuple: "tuple", list: "list", deque: "list", dict: "dict", OrderedDict: "dict", defaultdict: "dict", set: "set", frozenset: "set",
    int: "number", float: "number", complex: "number", str: "number", bytes: "number", partial: "partial",
}  # fmt: skip
_SINGLETONS = ("typing", "torch._ops", "torch._library", "triton")  # modules whose objects say nothing but who they are
_SCRIPT = frozenset({"torch.jit", "torch.jit._script", "torch._C"})


class Class:
    """What is known of a class for as long as it lives. Equal only to itself, so it stands for the class in a key.

    Attributes:
        whose: of the module that defines it.
        category: how an instance is looked into; "unknown" where it cannot be.
        layout: the built-in class whose layout an instance has.
        named_only: an instance's attributes and the class's members matter only where some code names them.
        slots: the descriptors of ``__slots__``.
        local: defined inside of a function, so that each call makes another.
    """

    __slots__ = ("__weakref__", "_always", "_listed", "category", "layout", "local", "name", "named_only", "slots", "whose")

    def __init__(self, cls: type) -> None:
        mro = cls.__mro__
        self.whose = module_whose(cls.__module__)
        self.name = f"{cls.__module__}.{cls.__qualname__}"
        self.layout: Any = _layout(cls)  # Any: which methods it has follows from the category
        self.local = "<locals>" in cls.__qualname__
        self.slots = tuple(
            (name, member)
            for c in mro
            for name, member in vars(c).items()
            if type(member) is MemberDescriptorType and "__slots__" in vars(c)
        )
        self.category = _category(cls, mro, self)
        foreign = [c for c in mro if module_whose(c.__module__) is not Whose.USER]
        self.named_only = self.whose is Whose.USER and all(map(_neutral, foreign))
        self._listed: list[str] = []
        self._always: tuple[str, ...] = ()

    def always(self, cls: type) -> tuple[str, ...]:
        """The members that are called without being named: operators, and what overrides a member of a class that is not the user's."""
        entries = vars(cls)
        listed = list(entries)
        if listed != self._listed:
            inherited = {name for c in cls.__mro__ if module_whose(c.__module__) is not Whose.USER and c is not object for name in vars(c)}
            hidden = _NAMED_TUPLE if "_fields" in entries else frozenset()
            self._always = tuple(
                name for name in listed
                if not skipped(name) and name not in hidden and name not in _RARE and (_dunder(name) or name in inherited)
            )  # fmt: skip
            self._listed = listed
        return self._always


def skipped(name: str) -> bool:
    """Whether a class's entry is bookkeeping."""
    return name in _BOOKKEEPING


def _dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _neutral(cls: type) -> bool:
    """A base that reads no attribute of its subclasses but those that are looked at anyway."""
    if cls is object or cls is nn.Module or cls in _LAYOUTS:
        return True
    return cls.__module__ in ("abc", "typing", f"{_OWN}.cells.protocol", "torch.autograd.function")


def _layout(cls: type) -> type:
    """The nearest class whose instances hold more than slots and a ``__dict__``."""
    while cls is not object:
        base = cls.__base__
        if base is None:
            return cls
        own = 0
        if "__slots__" in vars(cls):
            own += sum(type(member) is MemberDescriptorType for member in vars(cls).values())
        own += cls.__dictoffset__ > 0 and not base.__dictoffset__
        own += cls.__weakrefoffset__ > 0 and not base.__weakrefoffset__
        if cls.__basicsize__ - base.__basicsize__ > 8 * own or cls.__itemsize__ != base.__itemsize__:
            return cls
        cls = base
    return object


def _category(cls: type, mro: tuple[type, ...], facts: Class) -> str:
    if type in mro:
        return "class"
    if torch.Tensor in mro:
        return "tensor"
    if cls.__module__ in _SCRIPT and ("Script" in cls.__name__ or facts.layout not in _LAYOUTS):
        return "unknown"
    if nn.Module in mro:
        return "module" if torch.jit.ScriptModule not in mro else "unknown"
    if TensorArray in mro:
        return "array"
    if isinstance(cls, EnumMeta):
        return "enum"
    if cls is np.ndarray:
        return "ndarray"
    if np.generic in mro or np.dtype in mro:
        return "numpy"
    if Logger in mro:
        return "logger"
    if cls is object or cls is np.ufunc or (facts.whose is Whose.FIXED and cls.__module__.startswith(_SINGLETONS)):
        return "singleton"
    if ModuleType in mro:
        return "namespace"
    if facts.layout not in _LAYOUTS:
        return "unknown"
    return _CONTAINERS.get(facts.layout, "object")


_classes: dict[int, tuple[weakref.ref[type], Class]] = {}


def class_of(cls: type) -> Class:
    """What is known of a class."""
    known = _classes.get(id(cls))
    if known is not None:
        return known[1]
    found = Class(cls)
    place = id(cls)
    forget = _classes.pop  # a local: the module may be gone first
    _classes[place] = weakref.ref(cls, lambda _: forget(place, None)), found
    return found


def is_parametrized(cls: type) -> bool:
    """Whether torch.nn.utils.parametrize made this class: for one module only, so its identity means nothing."""
    return cls.__module__ == "torch.nn.utils.parametrize" and cls.__name__.startswith("Parametrized") and len(cls.__bases__) == 1


def function_whose(function: FunctionType) -> Whose:
    """Whose the code of a function is: by its globals, as ``functools.wraps`` changes ``__module__``."""
    return module_whose(function.__globals__.get("__name__"))
