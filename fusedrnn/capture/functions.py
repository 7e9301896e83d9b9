"""Code. In: a function, method or module; out: the parts of the key for its code, defaults, closure and the globals it names."""

from __future__ import annotations

import importlib.util
import sys
from types import FunctionType, MethodType, ModuleType
from typing import Any

from . import code as codes
from . import impure, places
from .code import Code
from .kinds import Whose, function_whose, module_whose
from .places import ATTRIBUTE, CELL, DEFAULT, GLOBAL, KEYWORD_DEFAULT, PART, RECEIVER, SAME, Place
from .record import MISSING, OBJECT, Record, Same


class Functions(Record):
    """The handlers of code."""

    def of_function(self, value: FunctionType, place: Place) -> None:
        if not self._first(value, place):
            return
        code = value.__code__
        names = codes.of(code)
        attributes = value.__dict__
        original = attributes.get("_torchdynamo_orig_callable")
        if original is not None:
            self.key.append("compiled")
            self.facts.append(("attributes", value, attributes))
            self.facts.append(("entry", attributes, ("_torchdynamo_orig_callable", original)))
            self.visit(original, (place, SAME, "", None, None))
            return
        self.key += (FunctionType, names)
        defaults, keyword_defaults = value.__defaults__, value.__kwdefaults__
        self.facts.append(("function", value, (code, defaults, keyword_defaults)))
        if defaults is not None:
            self.key.append(len(defaults))
            first = code.co_argcount - len(defaults)
            for i, item in enumerate(defaults):
                self.visit(item, (place, DEFAULT, code.co_varnames[first + i] if first >= 0 else i, i, value))
        if keyword_defaults is not None:
            self.facts.append(("keys", keyword_defaults, tuple(keyword_defaults)))
            self.key += ("keywords", *keyword_defaults)
            for name, item in keyword_defaults.items():
                self.visit(item, (place, KEYWORD_DEFAULT, name, keyword_defaults, value))
        whose = function_whose(value)
        who = places.function_label(value, place)
        if whose is Whose.USER:
            self.codes.append((who, names))
        if value.__closure__ is not None:
            self._cells(value, names, place)
        if attributes and whose is Whose.USER:
            self.key.append("attributes")
            for name, item in attributes.items():
                if name != "__wrapped__":
                    self.key.append(name)
                    self.visit(item, (place, ATTRIBUTE, name, attributes, None))
        if whose is Whose.USER:
            self.facts.append(("length", attributes, len(attributes)))
            self.mutable.append(("attributes", attributes, None, place))
        # What stands at the top level of fusedrnn is as constant as torch; its closures may use names of their module.
        if whose is Whose.USER or (whose is Whose.OWN and "<locals>" in code.co_qualname):
            self._code(value, names, whose, who, place)
        self.key.append("end")

    def _cells(self, function: FunctionType, names: Code, place: Place) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            at = (place, CELL, name, cell, function)
            self.mutable.append(("cell", cell, None, at))
            try:
                value = cell.cell_contents
            except ValueError:
                self.key.append("empty")
                self.facts.append(("empty", cell, None))
                continue
            if type(value) is ModuleType:
                self._module(value, names, at, name)
            else:
                self.visit(value, at)

    def _code(self, function: FunctionType, names: Code, whose: Whose, who: str, place: Place) -> None:
        """The globals that a function names, and what it does with them."""
        self._reach(names)
        if whose is Whose.USER and names.frames is not None:
            self._unknown(f"{who} uses {names.frames} ({names.file}:{names.line})")
        variables = function.__globals__
        looked = self.looked.setdefault(id(variables), set())
        if names.globals or names.written_globals:
            self.mutable.append(("names", variables, (*names.globals, *names.written_globals), (place, GLOBAL, "", variables, function)))
        for name in names.globals:
            value = variables.get(name, MISSING)
            if value is MISSING:
                if name not in looked:
                    looked.add(name)
                    self.facts.append(("absent", variables, name))
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
        self.facts.append((OBJECT, module, place))
        looked = self.looked.get(id(module))
        if looked is None:
            looked = self.looked[id(module)] = set()
            self.seen.setdefault(id(module), len(self.seen))
        self.key += (ModuleType, name if type(name) is str else None, self.seen[id(module)])
        whose = module_whose(name)
        if name in impure.MODULES and self.impure is None:
            who = next((who for who, code in reversed(self.codes) if code is names), None)
            self.impure = None if who is None else impure.of_module(who, name, variable, names)
        if whose is Whose.FIXED:
            return
        self.mutable.append(("names", entries, (*names.attributes, *names.written_attributes), (place, ATTRIBUTE, "", entries, None)))
        absent = []
        for attribute in names.attributes:
            value = entries.get(attribute, MISSING)
            if value is MISSING:
                absent.append(attribute)
                continue
            at = (place, ATTRIBUTE, attribute, entries, None)
            if type(value) is ModuleType:
                if value is not module and f"{id(names)}.{attribute}" not in looked:  # submodules anew for each code, as other names matter
                    looked.add(f"{id(names)}.{attribute}")
                    self.key += (".", attribute)
                    self._module(value, names, at, attribute)
            elif attribute not in looked:
                looked.add(attribute)
                self.key += (".", attribute)
                self.visit(value, at)
        if absent:
            self.facts.append(("disjoint", entries, frozenset(absent)))

    def of_module_value(self, module: ModuleType, place: Place) -> None:
        """A module that is some object's attribute: any name may be read from it."""
        if self._first(module, place):
            entries = object.__getattribute__(module, "__dict__")
            name = entries.get("__name__")
            self.key += (ModuleType, name if type(name) is str else None)
            if module_whose(name) is not Whose.FIXED:
                self.mutable.append(("attributes", entries, None, place))
                self._watch(entries, module, place)

    def of_method(self, value: MethodType, place: Place) -> None:
        self.facts.append((OBJECT, value, place))
        self.key.append(MethodType)
        called = impure.name_of(value)
        if called is not None:
            self.key.append(Same(value.__func__))
            self.suspects.append((place, "calls", called))
            return
        self.visit(value.__func__, (place, SAME, "", None, None))
        self.visit(value.__self__, (place, RECEIVER, "", None, None))

    def of_builtin(self, value: Any, place: Place) -> None:
        self.facts.append((OBJECT, value, place))
        receiver, called = getattr(value, "__self__", None), impure.name_of(value)
        if called is not None:
            self.suspects.append((place, "calls", called))
        if receiver is None or type(receiver) in (ModuleType, type) or called is not None:
            self.key.append(value)
            return
        self.key += (type(value), value.__name__)
        self.visit(receiver, (place, PART, "__self__", None, None))

    def of_wrapped(self, value: Any, place: Place) -> None:
        """A staticmethod, classmethod or property."""
        if not self._first(value, place):
            return
        self.key.append(type(value))
        for name in ("fget", "fset", "fdel") if type(value) is property else ("__func__",):
            self.visit(getattr(value, name), (place, SAME, "", None, None))
