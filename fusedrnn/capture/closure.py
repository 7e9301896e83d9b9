"""What a program depends on. In: a cell and a loop_fn; out: a key under which a captured program may be used again, and the tensors to use.

Everything that the code can see is in the key, except the tensors' values and sizes. Nothing of the user's is run: no property, no
``__getattr__``, no ``__eq__``. Attributes of the user's own objects count only where some code that the walk reached names them, so
that a closure over ``self`` does not drag in a whole trainer.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib.util
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from types import (
    BuiltinFunctionType, ClassMethodDescriptorType, FunctionType, GetSetDescriptorType, MappingProxyType, MemberDescriptorType,
    MethodDescriptorType, MethodType, MethodWrapperType, ModuleType, SimpleNamespace, WrapperDescriptorType,
)  # fmt: skip
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as nn_module

from . import code as codes
from . import impure, places
from .code import Code
from .kinds import CONSTRUCTION, Whose, class_of, function_whose, is_parametrized, module_whose, skipped
from .places import ATTRIBUTE, CELL, DEFAULT, GLOBAL, ITEM, KEY, KEYWORD_DEFAULT, MEMBER, PART, RECEIVER, SAME, SLOT, Place
from .scalars import SCALARS, flat_key, is_scalar, scalar_key

_MOST_BYTES = 1 << 20  # of a numpy array
_MOST_VALUES = 200_000
_CONTRACT = ("forward", "output_size", "state_size", "zero_state", "parameters", "initial_state")  # what fusedrnn asks of a cell
_MISSING = object()
_INTERNAL = frozenset({  # of an nn.Module: looked at elsewhere, or never by forward
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_backward_pre_hooks", "_backward_hooks",
    "_is_full_backward_hook", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks", "_compiled_call_impl", "_flat_weight_refs",
})  # fmt: skip
_GROUPS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOK_OPTIONS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")

# What a visit found at its place, for the binder: how to tell that it is still that.
SCALAR, FLAT, TENSOR, TUPLE, OBJECT, ELEMENTS = "scalar", "flat", "tensor", "tuple", "object", "elements"


class _Same:
    """Stands for an object that is told apart by identity alone, and keeps it, so that its id is not used again."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is _Same and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


class Names:
    """Entries of a dict (or class) that matter only where code names them.

    Attributes:
        holder: the dict.
        step, place, owner: how its entries are reached.
        index: of the object, in the key.
        seen: how many of the names that code uses have been looked up.
        visited: the entries found.
    """

    __slots__ = ("holder", "index", "owner", "place", "seen", "step", "visited")

    def __init__(self, holder: Any, index: int, place: Place, step: int, owner: Any) -> None:
        self.holder, self.index, self.place, self.step, self.owner = holder, index, place, step, owner
        self.seen = 0
        self.visited: set[str] = set()


@dataclass(frozen=True, eq=False)
class Walk:
    """What a walk found. Short-lived: it holds the tensors.

    Attributes:
        key: equal for another walk if and only if the same program may be used again with the tensors of that walk.
        tensors: the distinct tensors, in the order of their first visit.
        unknown: why this cannot be cached: the object and where it is; None if all is known.
        impure: what the code does that tracing would do only once, such as ``loop_fn calls print (file.py:12)``, and None.
        location: the file and line of that.
        mutable: what a `Snapshot` copies: (kind, object, names, place).
        visits: each value that was looked at: (how, value, place).
        checks: what holds of those besides: (what, object, expected).
        watched: the dicts of which only `names` count.
        names: what the code names; None if it may read any attribute.
    """

    key: Hashable
    tensors: list[torch.Tensor]
    unknown: str | None
    impure: str | None
    location: str | None
    mutable: list[tuple[str, Any, Any, Place]] = field(repr=False)
    visits: list[tuple[str, Any, Place]] = field(repr=False)
    checks: list[tuple[str, Any, Any]] = field(repr=False)
    watched: list[Names] = field(repr=False)
    names: tuple[str, ...] | None = field(repr=False)


def walk(cell: Any, loop_fn: Any) -> Walk:
    """Look at everything that a cell and a loop_fn can see."""
    with torch._C.DisableTorchFunction():  # a tensor's dtype is a property, which a subclass or a mode may answer with code of its own
        return _Walker().run(cell, loop_fn)


class _Walker:
    def __init__(self) -> None:
        self.key: list[Any] = []
        self.tensors: list[torch.Tensor] = []
        self.places: dict[int, int] = {}  # tensors by identity
        self.seen: dict[int, int] = {}  # objects by identity
        self.names: dict[str, None] = dict.fromkeys(_CONTRACT)
        self.watched: list[Names] = []
        self.members: dict[int, Names] = {}  # of classes, by identity
        self.looked: dict[int, set[str]] = {}  # names of globals and of modules
        self.codes: list[tuple[str, Code]] = []
        self.loggers: list[tuple[str, Place]] = []
        self.reflects = False
        self.unknown: str | None = None
        self.impure: impure.Impurity | None = None
        self.mutable: list[tuple[str, Any, Any, Place]] = []
        self.visits: list[tuple[str, Any, Place]] = []
        self.checks: list[tuple[str, Any, Any]] = []
        self.transforms = torch._C._functorch.peek_interpreter_stack() is not None

    def run(self, cell: Any, loop_fn: Any) -> Walk:
        try:
            self.visit(cell, places.root("cell"))
            self.visit(loop_fn, places.root("loop_fn"))
            self._hooks_of_all_modules()
            self._settle()
        except RecursionError:
            self._unknown("cell and loop_fn hold values that are nested too deeply")
        self._loggers()
        return Walk(
            tuple(self.key), self.tensors, self.unknown, self.impure and self.impure.text, self.impure and self.impure.location,
            self.mutable, self.visits, self.checks, self.watched, None if self.reflects else tuple(self.names),
        )  # fmt: skip

    def visit(self, value: Any, place: Place) -> None:
        handler = _HANDLERS.get(id(type(value)))
        if handler is None:
            handler = _BY_CATEGORY[class_of(type(value)).category]
        handler(self, value, place)

    # Bookkeeping

    def _first(self, value: Any, place: Place) -> bool:
        """Whether an object with identity is met for the first time; the key tells which one it is otherwise."""
        self.visits.append((OBJECT, value, place))
        index = self.seen.setdefault(id(value), len(self.seen))
        if index == len(self.seen) - 1 and id(value) not in self.looked:
            self.looked[id(value)] = set()
            if len(self.visits) > _MOST_VALUES:
                self._unknown(f"cell and loop_fn hold more than {_MOST_VALUES:,} values")
                return False
            return True
        self.key += ("again", index)
        return False

    def _unknown(self, text: str) -> None:
        if self.unknown is None:
            self.unknown = text
        self.key.append(object())  # equal to no other key

    def _unknown_value(self, value: Any, place: Place) -> None:
        self.visits.append((OBJECT, value, place))
        self._unknown(places.holding(place, value))

    def _reach(self, code: Code) -> None:
        names = self.names
        for name in code.attributes:
            names[name] = None
        if code.reflects:
            self.reflects = True
        if "__class__" in names or "type" in code.globals:
            names.update(dict.fromkeys(CONSTRUCTION))

    def _settle(self) -> None:
        """Look up the names that code uses, until no new code and no new name comes up."""
        done = -1
        while done != (done := len(self.names) + len(self.watched) + self.reflects):
            for watched in self.watched:
                if self.reflects:
                    names: Iterable[str] = [name for name in watched.holder if not skipped(name)]
                else:
                    names = list(self.names)[watched.seen :]
                    watched.seen = len(self.names)
                self._look_up(watched, names)

    def _look_up(self, watched: Names, names: Iterable[str]) -> None:
        holder, visited = watched.holder, watched.visited
        for name in names:
            if name in visited:
                continue
            value = holder.get(name, _MISSING)
            if value is not _MISSING:
                visited.add(name)
                self.key += (".", watched.index, name)
                place = (watched.place, watched.step, name, holder, watched.owner)
                if watched.step == MEMBER:
                    self._member(value, place)
                else:
                    self.visit(value, place)

    def _watch(self, holder: Any, owner: Any, place: Place, step: int = ATTRIBUTE, cls: Any = None) -> Names:
        watched = Names(holder, self.seen[id(owner)], place, step, cls)
        self.watched.append(watched)
        return watched

    # Values without parts

    def scalar(self, value: Any, place: Place) -> None:
        self.key += (type(value), scalar_key(value))
        self.visits.append((SCALAR, value, place))

    def singleton(self, value: Any, place: Place) -> None:
        self.key.append(_Same(value))
        self.visits.append((OBJECT, value, place))

    def by_value(self, value: Any, place: Place) -> None:
        """Values of C types whose hash and equality are of C too; by identity in the binder."""
        self.key += (type(value), repr(value))
        self.visits.append((OBJECT, value, place))

    def tensor(self, value: torch.Tensor, place: Place) -> None:
        index = self.places.get(id(value))
        self.visits.append((TENSOR, value, place))
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

    def ndarray(self, value: np.ndarray[Any, Any], place: Place) -> None:
        if value.dtype.hasobject or value.nbytes > _MOST_BYTES:
            self._unknown_value(value, place)
        elif self._first(value, place):
            digest = array_digest(value)
            self.key += (np.ndarray, digest)
            self.checks.append(("ndarray", value, digest))
            self.mutable.append(("ndarray", value, None, place))

    def numpy(self, value: Any, place: Place) -> None:
        self.visits.append((OBJECT, value, place))
        if isinstance(value, np.generic):
            self.key += (type(value), value.dtype.str, value.tobytes())
        else:
            self.key += (np.dtype, value.str)

    def number(self, value: Any, place: Place) -> None:
        """An instance of a subclass of int, float, complex, str or bytes."""
        if self._first(value, place):
            facts = class_of(type(value))
            self._class(type(value), place)
            self.key += (facts.layout, _PLAIN[facts.layout](value))
            self._attributes(value, place)

    def enum(self, value: Any, place: Place) -> None:
        if self._first(value, place):
            self._class(type(value), place)
            self.key.append(object.__getattribute__(value, "__dict__").get("_name_"))

    def logger(self, value: Any, place: Place) -> None:
        self.key += ("logger", object.__getattribute__(value, "__dict__").get("name"))
        self.visits.append((OBJECT, value, place))
        self.loggers.append((str(place[2]), place))

    # Containers

    def tuple(self, value: Any, place: Place) -> None:
        if type(value) is not tuple:
            self._class(type(value), place)
        flat = flat_key(tuple.__iter__(value))
        if flat is not None and type(value) in (tuple, torch.Size):
            self.key += (tuple, type(value), flat)
            self.visits.append((FLAT, value, place))
            return
        self.key += (tuple, tuple.__len__(value))
        self.visits.append((TUPLE, value, place))
        for i, item in enumerate(tuple.__iter__(value)):
            self.visit(item, (place, ITEM, i, None, None))
        if type(value) is not tuple:
            self._attributes(value, place)

    def list(self, value: Any, place: Place) -> None:
        if not self._first(value, place):
            return
        base = class_of(type(value)).layout
        if type(value) is not base:
            self._class(type(value), place)
        self.mutable.append(("list", value, None, place))
        self.key.append(base)
        if base is deque:
            self.key.append(deque.maxlen.__get__(value))  # type: ignore[attr-defined]
        self._items(value, list(base.__iter__(value)), place)
        if type(value) is not base:
            self._attributes(value, place)

    def set(self, value: Any, place: Place) -> None:
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
            self.checks.append(("items", value, tuple(items)))
            return
        self.key.append(len(items))
        ordered = class_of(type(value)).layout in (list, deque)
        if ordered:
            self.checks.append(("length", value, len(items)))
        else:  # the binder can reach an element of a set only by its identity
            self.checks.append(("items", value, tuple(items)))
        for i, item in enumerate(items):
            self.visit(item, (place, ITEM, i, value if ordered else None, None))

    def dict(self, value: Any, place: Place) -> None:
        if not self._first(value, place):
            return
        base = class_of(type(value)).layout
        self.key.append(base)
        if type(value) is not base:
            self._class(type(value), place)
        if base is defaultdict:
            self.visit(defaultdict.default_factory.__get__(value), (place, PART, "default_factory", None, None))  # type: ignore[attr-defined]
        self.mutable.append(("dict", value, None, place))
        self._entries(value, list(base.items(value)), place)
        if type(value) is not base:
            self._attributes(value, place)

    def _entries(self, value: Any, entries: list[tuple[Any, Any]], place: Place, step: int = KEY) -> None:
        keys = [key for key, _ in entries]
        flat = flat_key(keys)
        self.checks.append(("keys", value, tuple(keys)))
        values = None if flat is None else flat_key([entry for _, entry in entries])
        if values is not None:
            self.key += (flat, values)
            self.checks.append(("values", value, tuple([entry for _, entry in entries])))
            return
        self.key += (len(entries), flat)
        for key, entry in entries:
            if flat is None:
                if isinstance(key, torch.Tensor):
                    self._unknown(f"{places.holding(place, value)} has a tensor as a key")
                self.visit(key, (place, PART, "keys()", None, None))
            self.visit(entry, (place, step, key, value, None))

    def mapping(self, value: Mapping[Any, Any], place: Place) -> None:
        if self._first(value, place):
            self.key.append(MappingProxyType)
            self.visit(gc.get_referents(value)[0], (place, SAME, "", None, None))

    def slice(self, value: slice, place: Place) -> None:
        self.key.append(slice)
        self.visits.append((OBJECT, value, place))
        for name in ("start", "stop", "step"):
            self.visit(getattr(value, name), (place, PART, name, None, None))

    def namespace(self, value: SimpleNamespace, place: Place) -> None:
        if self._first(value, place):
            entries = value.__dict__
            self.key.append(SimpleNamespace)
            self.checks.append(("dict", value, entries))
            self.mutable.append(("attributes", entries, None, place))
            self._entries(entries, list(entries.items()), place, ATTRIBUTE)

    def array(self, value: Any, place: Place) -> None:
        """A TensorArray: what reading it would give."""
        if not self._first(value, place):
            return
        self._class(type(value), place)
        value._loaded() if object.__getattribute__(value, "__dict__").get("_fetch") is not None else None
        fields = object.__getattribute__(value, "__dict__")
        self.checks.append(("dict", value, fields))
        self.mutable.append(("array", fields, None, place))
        for name in ("_dtype", "_element_shape", "_size", "_device", "_whole"):
            self.visit(fields[name], (place, ATTRIBUTE, name, fields, None))
        elements = fields["_elements"]
        self.mutable.append(("elements", elements, None, place))
        count = min(len(elements), fields["_size"])
        self.key.append(count)
        inner = (place, ATTRIBUTE, "_elements", fields, None)
        self.visits.append((ELEMENTS, elements[:count], inner))
        for i in range(count):
            self.visit(elements[i], (inner, ITEM, i, None, None))

    # Code

    def function(self, value: FunctionType, place: Place) -> None:
        if not self._first(value, place):
            return
        code = value.__code__
        names = codes.of(code)
        attributes = value.__dict__
        original = attributes.get("_torchdynamo_orig_callable")
        if original is not None:
            self.key.append("compiled")
            self.checks.append(("entry", attributes, ("_torchdynamo_orig_callable", original)))
            self.visit(original, (place, SAME, "", None, None))
            return
        self.key += (FunctionType, names)
        defaults, keyword_defaults = value.__defaults__, value.__kwdefaults__
        self.checks.append(("function", value, (code, defaults, keyword_defaults)))
        if defaults is not None:
            self.key.append(len(defaults))
            first = code.co_argcount - len(defaults)
            for i, item in enumerate(defaults):
                self.visit(item, (place, DEFAULT, code.co_varnames[first + i] if first >= 0 else i, None, value))
        if keyword_defaults is not None:
            self.checks.append(("keys", keyword_defaults, tuple(keyword_defaults)))
            self.key += ("keywords", *keyword_defaults)
            for name, item in keyword_defaults.items():
                self.visit(item, (place, KEYWORD_DEFAULT, name, keyword_defaults, value))
        if value.__closure__ is not None:
            self._cells(value, names, place)
        whose = function_whose(value)
        if attributes and whose is Whose.USER:
            self.key.append("attributes")
            for name, item in attributes.items():
                if name != "__wrapped__":
                    self.key.append(name)
                    self.visit(item, (place, ATTRIBUTE, name, attributes, None))
            self.checks.append(("keys", attributes, tuple(attributes)))
            self.mutable.append(("attributes", attributes, None, place))
        # What stands at the top level of fusedrnn is as constant as torch; its closures may use names of their module.
        if whose is Whose.USER or (whose is Whose.OWN and "<locals>" in code.co_qualname):
            self._code(value, names, whose, place)
        self.key.append("end")

    def _cells(self, function: FunctionType, names: Code, place: Place) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            at = (place, CELL, name, cell, function)
            self.mutable.append(("cell", cell, None, at))
            try:
                value = cell.cell_contents
            except ValueError:
                self.key.append("empty")
                self.checks.append(("empty", cell, None))
                continue
            if type(value) is ModuleType:
                self._module(value, names, at, name)
            else:
                self.visit(value, at)

    def _code(self, function: FunctionType, names: Code, whose: Whose, place: Place) -> None:
        """The globals that a function names, and what it does with them."""
        self._reach(names)
        who = places.function_label(function, place)
        if whose is Whose.USER:
            self.codes.append((who, names))
            if names.frames is not None:
                self._unknown(f"{who} uses {names.frames} ({names.file}:{names.line})")
        variables = function.__globals__
        looked = self.looked.setdefault(id(variables), set())
        if names.globals or names.written_globals:
            self.mutable.append(("names", variables, (*names.globals, *names.written_globals), (place, GLOBAL, "", variables, function)))
        for name in names.globals:
            value = variables.get(name, _MISSING)
            if value is _MISSING:
                if name not in looked:
                    looked.add(name)
                    self.checks.append(("absent", variables, name))
                if name in impure.BUILTINS and whose is Whose.USER:
                    self._impure(who, name, names, name)
                continue
            at = (place, GLOBAL, name, variables, function)
            if type(value) is ModuleType:
                self.key += ("global", name)
                self._module(value, names, at, name)
            elif name not in looked:
                looked.add(name)
                self.key += ("global", name)
                self.visit(value, at)
            if whose is Whose.USER and self.impure is None:
                called = impure.name_of(value)
                if called is not None:
                    self._impure(who, called, names, name)
        for found in names.imports:
            self._import(found, names, function, place, who, whose)

    def _import(self, found: codes.Import, names: Code, function: FunctionType, place: Place, who: str, whose: Whose) -> None:
        package = function.__globals__.get("__package__")
        try:
            full = importlib.util.resolve_name("." * found.level + found.module, package)
        except ImportError:
            full = found.module
        full = full if found.names else full.partition(".")[0]
        module = sys.modules.get(full)
        at = (place, GLOBAL, full, sys.modules, function)
        self.key += ("import", full)
        if type(module) is not ModuleType:
            self._unknown(f"{who} imports {full} ({names.file}:{found.line})")
            return
        self._module(module, names, at, full.rpartition(".")[2])
        if whose is Whose.USER and self.impure is None and full in impure.MODULES and full not in ("os", "sys", "numpy", "datetime"):
            self.impure = impure.impurity(who, full, names, found.line)

    def _module(self, module: ModuleType, names: Code, place: Place, variable: str) -> None:
        """A module that code names: the attributes that the same code names count, unless they are constant anyway."""
        entries = module.__dict__
        name = entries.get("__name__")
        self.visits.append((OBJECT, module, place))
        looked = self.looked.get(id(module))
        if looked is None:
            looked = self.looked[id(module)] = set()
            self.seen[id(module)] = len(self.seen)
        self.key += (ModuleType, name if type(name) is str else None, self.seen[id(module)])
        whose = module_whose(name)
        if name in impure.MODULES and self.impure is None and self.codes and self.codes[-1][1] is names:
            self.impure = impure.of_module(self.codes[-1][0], name, variable, names)
        if whose is Whose.FIXED:
            return
        self.mutable.append(("names", entries, (*names.attributes, *names.written_attributes), (place, ATTRIBUTE, "", entries, None)))
        absent = []
        for attribute in names.attributes:
            value = entries.get(attribute, _MISSING)
            if value is _MISSING:
                absent.append(attribute)
                continue
            at = (place, ATTRIBUTE, attribute, entries, None)
            if type(value) is ModuleType:
                if value is not module and (id(names), attribute) not in looked:
                    looked.add((id(names), attribute))  # type: ignore[arg-type]
                    self.key += (".", attribute)
                    self._module(value, names, at, attribute)
            elif attribute not in looked:
                looked.add(attribute)
                self.key += (".", attribute)
                self.visit(value, at)
        if absent:
            self.checks.append(("disjoint", entries, frozenset(absent)))

    def module_value(self, module: ModuleType, place: Place) -> None:
        """A module that is some object's attribute: any name may be read from it."""
        if self._first(module, place):
            name = module.__dict__.get("__name__")
            self.key += (ModuleType, name if type(name) is str else None)
            if module_whose(name) is not Whose.FIXED:
                self._watch(module.__dict__, module, place)

    def method(self, value: MethodType, place: Place) -> None:
        self.visits.append((OBJECT, value, place))
        self.key.append(MethodType)
        if impure.name_of(value) is not None:
            self.key.append(_Same(value.__func__))
            return
        self.visit(value.__func__, (place, SAME, "", None, None))
        self.visit(value.__self__, (place, RECEIVER, "", None, None))

    def builtin(self, value: Any, place: Place) -> None:
        self.visits.append((OBJECT, value, place))
        receiver = getattr(value, "__self__", None)
        if receiver is None or type(receiver) in (ModuleType, type) or impure.name_of(value) is not None:
            self.key.append(value)
            return
        self.key += (type(value), value.__name__)
        self.visit(receiver, (place, PART, "__self__", None, None))

    def descriptor(self, value: Any, place: Place) -> None:
        self.key.append(value)
        self.visits.append((OBJECT, value, place))

    def partial(self, value: Any, place: Place) -> None:
        if not self._first(value, place):
            return
        self.key.append(functools.partial)
        if type(value) is not functools.partial:
            self._class(type(value), place)
        for name in ("func", "args", "keywords"):
            self.visit(getattr(functools.partial, name).__get__(value), (place, PART, name, None, None))
        self._attributes(value, place)

    def wrapped(self, value: Any, place: Place) -> None:
        """A staticmethod, classmethod or property."""
        if not self._first(value, place):
            return
        self.key.append(type(value))
        for name in ("fget", "fset", "fdel") if type(value) is property else ("__func__",):
            self.visit(getattr(value, name), (place, SAME, "", None, None))

    def class_value(self, value: type, place: Place) -> None:
        """A class as a value: it may be called."""
        self.visits.append((OBJECT, value, place))
        self._class(value, place)
        for cls in value.__mro__:
            members = self.members.get(id(cls))
            if members is not None:
                self._look_up(members, CONSTRUCTION)

    def _class(self, cls: type, place: Place) -> None:
        """Which class it is, and what its code can see."""
        facts = class_of(cls)
        index = self.seen.get(id(cls))
        if index is not None:
            self.key += ("again", index)
            return
        index = self.seen[id(cls)] = len(self.seen)
        if is_parametrized(cls):
            self.key += ("parametrized", *(name for name in vars(cls) if type(vars(cls)[name]) is property), "end")
            self._class(cls.__bases__[0], place)
            return
        if facts.whose is not Whose.USER:
            self.key.append(facts)
            return
        if facts.local:
            self.key += ("local", facts.name, len(cls.__bases__))
        else:
            self.key.append(facts)
        members = self._watch(vars(cls), cls, place, MEMBER, cls)
        self.members[id(cls)] = members
        self.mutable.append(("class", cls, None, place))
        for base in cls.__bases__:
            self._class(base, place)
        self._look_up(members, facts.always(cls))

    def _member(self, value: Any, place: Place) -> None:
        kind = type(value)
        if kind in (GetSetDescriptorType, MemberDescriptorType) or (kind.__module__, kind.__name__) == ("_collections", "_tuplegetter"):
            self.key.append("slot")
            self.visits.append((OBJECT, value, place))
        elif class_of(place[4]).category == "enum" and kind is not FunctionType and kind is not property:
            self.visits.append((OBJECT, value, place))  # its members are constants
        else:
            self.visit(value, place)

    # Instances

    def instance(self, value: Any, place: Place) -> None:
        if self._first(value, place):
            self.key.append("object")
            self._class(type(value), place)
            self._attributes(value, place)

    def _attributes(self, value: Any, place: Place) -> None:
        facts = class_of(type(value))
        self.checks.append(("type", value, type(value)))
        for name, descriptor in facts.slots:
            try:
                item = descriptor.__get__(value)
            except AttributeError:
                self.key += ("slot", name, None)
                self.checks.append(("no slot", value, descriptor))
                continue
            self.key += ("slot", name)
            self.mutable.append(("slot", value, (name, descriptor), place))
            self.visit(item, (place, SLOT, name, (descriptor, value), None))
        try:
            entries = object.__getattribute__(value, "__dict__")
        except AttributeError:
            return
        if type(entries) is not dict:
            return
        self.checks.append(("dict", value, entries))
        self.mutable.append(("attributes", entries, None, place))
        if facts.named_only:
            self._watch(entries, value, place)
            return
        self.checks.append(("length", entries, len(entries)))
        self.key.append(len(entries))
        for name, item in entries.items():
            self.key.append(name)
            self.visit(item, (place, ATTRIBUTE, name, entries, None))

    def nn_module(self, module: Any, place: Place) -> None:
        if not self._first(module, place):
            return
        facts = class_of(type(module))
        key = self.key
        key.append("module")
        self._class(type(module), place)
        entries = object.__getattribute__(module, "__dict__")
        self.checks.append(("type", module, type(module)))
        self.checks.append(("dict", module, entries))
        self.mutable.append(("attributes", entries, None, place))
        if facts.named_only:
            self._watch(entries, module, place)
            training = entries.get("training")
            key.append("training")
            self.visit(training, (place, ATTRIBUTE, "training", entries, None))
        else:
            self.checks.append(("length", entries, len(entries)))
            visits = self.visits
            for name, item in entries.items():
                if name in _INTERNAL:
                    continue
                kind = type(item)
                if kind is int or kind is bool:  # nearly all of them
                    key += (name, kind, item)
                    visits.append((SCALAR, item, (place, ATTRIBUTE, name, entries, None)))
                else:
                    key.append(name)
                    self.visit(item, (place, ATTRIBUTE, name, entries, None))
        for group in _GROUPS:
            members = entries.get(group)
            if members is None:
                continue
            self.checks.append(("entry", entries, (group, members)))
            self.mutable.append(("attributes", members, None, place))
            if facts.named_only:
                self._watch(members, module, place)
                continue
            self.checks.append(("length", members, len(members)))
            key.append(len(members))
            for name, item in members.items():
                key.append(name)
                self.visit(item, (place, ATTRIBUTE, name, members, None))
        for group in _HOOKS:
            hooks = entries.get(group)
            if hooks is not None:
                self._hooks(hooks, entries, (place, ATTRIBUTE, group, entries, None))

    def _hooks(self, hooks: Any, module: Any, place: Place) -> None:
        """Hooks in their order; the numbers under which they are registered say nothing."""
        self.checks.append(("hooks", hooks, tuple(hooks.values())))
        if not hooks:
            return
        self.key += (place[2], len(hooks))
        for number, hook in hooks.items():
            self.key += tuple(number in module.get(option, ()) for option in _HOOK_OPTIONS)
            self.visit(hook, (place, ITEM, number, None, None))

    def _hooks_of_all_modules(self) -> None:
        for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks"):
            self._hooks(getattr(nn_module, name, {}), {}, (None, places.ROOT, f"torch.nn.modules.module.{name}", None, None))

    # Impurity

    def _impure(self, who: str, called: str, names: Code, variable: str) -> None:
        if self.impure is None:
            uses = names.uses.get(variable)
            self.impure = impure.impurity(who, called, names, uses[0].line if uses else names.line)

    def _loggers(self) -> None:
        """Loggers that some code reads: what it does with them is a call."""
        for name, place in self.loggers:
            for who, names in self.codes:
                for root, uses in names.uses.items():
                    for use in uses:
                        if self.impure is None and (root == name or name in use.attributes):
                            shown = ".".join((root, *use.attributes)) if root == name or root == "self" else places.expression(place)
                            self.impure = impure.impurity(who, shown, names, use.line)


def array_digest(array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    """The content of a numpy array."""
    return array.dtype.str, array.shape, hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()


_PLAIN: dict[type, Callable[[Any], Any]] = {
    int: int.__int__, float: float.__repr__, complex: complex.__repr__, str: str.__str__, bytes: lambda value: bytes.__getitem__(value, slice(None)),
}  # fmt: skip

_BY_CATEGORY: dict[str, Callable[[_Walker, Any, Place], None]] = {
    "unknown": _Walker._unknown_value,
    "class": _Walker.class_value,
    "tensor": _Walker.tensor,
    "module": _Walker.nn_module,
    "array": _Walker.array,
    "enum": _Walker.enum,
    "ndarray": _Walker.ndarray,
    "numpy": _Walker.numpy,
    "logger": _Walker.logger,
    "singleton": _Walker.singleton,
    "number": _Walker.number,
    "tuple": _Walker.tuple,
    "list": _Walker.list,
    "set": _Walker.set,
    "dict": _Walker.dict,
    "partial": _Walker.partial,
    "object": _Walker.instance,
}
# By the id of a type that lives for ever: the hash of a class may be its metaclass's, which is code of the user.
_HANDLERS: dict[int, Callable[[_Walker, Any, Place], None]] = {
    **{id(kind): _Walker.scalar for kind in SCALARS},
    id(torch.Tensor): _Walker.tensor,
    id(torch.nn.Parameter): _Walker.tensor,
    id(tuple): _Walker.tuple,
    id(list): _Walker.list,
    id(deque): _Walker.list,
    id(dict): _Walker.dict,
    id(OrderedDict): _Walker.dict,
    id(defaultdict): _Walker.dict,
    id(set): _Walker.set,
    id(frozenset): _Walker.set,
    id(slice): _Walker.slice,
    id(MappingProxyType): _Walker.mapping,
    id(SimpleNamespace): _Walker.namespace,
    id(FunctionType): _Walker.function,
    id(MethodType): _Walker.method,
    id(functools.partial): _Walker.partial,
    id(ModuleType): _Walker.module_value,
    id(type): _Walker.class_value,
    id(staticmethod): _Walker.wrapped,
    id(classmethod): _Walker.wrapped,
    id(property): _Walker.wrapped,
    **{id(kind): _Walker.builtin for kind in (BuiltinFunctionType, MethodWrapperType)},
    **{
        id(kind): _Walker.descriptor
        for kind in (MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType, GetSetDescriptorType, MemberDescriptorType)
    },
    **{id(kind): _Walker.by_value for kind in (torch.finfo, torch.iinfo)},
}

assert is_scalar(None)
