"""The walk. In: a cell and a loop_fn; out: a `Walk`. Which handler looks into a value, by its type.

Nothing of the user's is run: no property, no ``__getattr__``, no ``__eq__`` and no ``__hash__``.
"""

from __future__ import annotations

import functools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
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
)  # fmt: skip
from typing import Any

import torch

from . import impure, places, tally
from .functions import Functions
from .kinds import class_of
from .modules import Modules
from .places import Place
from .record import Key, Walk
from .scalars import SCALARS
from .values import Values


def walk(cell: Any, loop_fn: Any) -> Walk:
    """Look at everything that a cell and a loop_fn can see."""
    with torch._C.DisableTorchFunction():  # a tensor's dtype is a property, which a subclass or a mode may answer with code of its own
        return Walker().run(cell, loop_fn)


class Walker(Values, Functions, Modules):
    """All handlers, and who gets what."""

    def run(self, cell: Any, loop_fn: Any) -> Walk:
        try:
            self.visit(cell, places.root("cell"))
            self.visit(loop_fn, places.root("loop_fn"))
            self._hooks_of_all_modules()
            self._settle()
        except RecursionError:
            self._unknown("cell and loop_fn hold values that are nested too deeply")
        self._suspects()
        self._leave_out_counts()
        found = self.impure
        return Walk(
            Key(tuple(self.key)), self.tensors, self.unknown, found and found.text, found and found.location, found and found.advice,
            self.mutable, self.facts, self.watched, None if self.reflects else tuple(self.names),
        )  # fmt: skip

    def _leave_out_counts(self) -> None:
        """Counts change from call to call, and no program depends on them."""
        if not self.changeable:
            return
        counted = tally.counted(self.facts)
        if not counted:
            return
        facts = list(self.facts)
        for found in reversed(self.changeable):
            if found.name in counted and tally.only_counts(
                self.facts, found.kind, found.value, found.name, found.place, reflects=self.reflects
            ):
                self.key[found.at] = "count"
                facts[found.fact : found.fact + 1] = [] if found.instead is None else [found.instead]
        self.facts = facts

    def visit(self, value: Any, place: Place) -> None:
        handler = _HANDLERS.get(id(type(value)))
        if handler is None:
            handler = _BY_CATEGORY[class_of(type(value)).category]
        handler(self, value, place)

    def _suspects(self) -> None:
        """What is impure by itself, where some code reads it: what it does with it is a call."""
        for place, does, what in self.suspects:
            name = places.named(place)
            for who, names in self.codes:
                for root, uses in names.uses.items():
                    for use in uses:
                        if self.impure is None and (root == name or name in use.attributes):
                            shown = ".".join((root, *use.attributes)) if root == name or root == "self" else places.expression(place)
                            self.impure = impure.impurity(who, what or shown, names, use.line, does)


_BY_CATEGORY: dict[str, Callable[[Walker, Any, Place], None]] = {
    "unknown": Walker._unknown_value,
    "class": Walker.of_class_value,
    "tensor": Walker.of_tensor,
    "module": Walker.of_nn_module,
    "array": Walker.of_array,
    "enum": Walker.of_enum,
    "ndarray": Walker.of_ndarray,
    "numpy": Walker.of_numpy,
    "logger": Walker.of_logger,
    "singleton": Walker.of_singleton,
    "number": Walker.of_number,
    "tuple": Walker.of_tuple,
    "list": Walker.of_list,
    "set": Walker.of_set,
    "dict": Walker.of_dict,
    "partial": Walker.of_partial,
    "object": Walker.of_instance,
    "namespace": Walker.of_module_value,
}
# By the id of a type that lives for ever: the hash of a class may be its metaclass's, which is code of the user.
_HANDLERS: dict[int, Callable[[Walker, Any, Place], None]] = {
    **{id(kind): Walker.of_scalar for kind in SCALARS},
    id(torch.Tensor): Walker.of_tensor,
    id(torch.nn.Parameter): Walker.of_tensor,
    id(tuple): Walker.of_tuple,
    id(torch.Size): Walker.of_tuple,
    id(list): Walker.of_list,
    id(deque): Walker.of_list,
    id(dict): Walker.of_dict,
    id(OrderedDict): Walker.of_dict,
    id(defaultdict): Walker.of_dict,
    id(set): Walker.of_set,
    id(frozenset): Walker.of_set,
    id(slice): Walker.of_slice,
    id(MappingProxyType): Walker.of_mapping,
    id(SimpleNamespace): Walker.of_namespace,
    id(FunctionType): Walker.of_function,
    id(MethodType): Walker.of_method,
    id(functools.partial): Walker.of_partial,
    id(ModuleType): Walker.of_module_value,
    id(type): Walker.of_class_value,
    id(staticmethod): Walker.of_wrapped,
    id(classmethod): Walker.of_wrapped,
    id(property): Walker.of_wrapped,
    **{id(kind): Walker.of_builtin for kind in (BuiltinFunctionType, MethodWrapperType)},
    **{
        id(kind): Walker.of_descriptor
        for kind in (MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType, GetSetDescriptorType, MemberDescriptorType)
    },
    **{id(kind): Walker.of_by_value for kind in (torch.finfo, torch.iinfo)},
}
