"""What a walk writes down. In: what its parts find; out: the key, the tensors and the places, as a `Walk`.

Attributes of the user's own objects and members of the user's classes count only where some code that the walk reached names them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, NamedTuple

import torch

from . import impure, places
from .code import Code
from .kinds import CONSTRUCTION, Whose, class_of, is_parametrized, skipped
from .places import ATTRIBUTE, MEMBER, SLOT, Place

_MOST_VALUES = 200_000
_CONTRACT = ("forward", "output_size", "state_size", "zero_state", "parameters", "initial_state")  # what fusedrnn asks of a cell
MISSING = object()

# What a visit found at its place, for the binder: how to tell that it is still that.
SCALAR, FLAT, TENSOR, TUPLE, OBJECT, ELEMENTS, COUNT = "scalar", "flat", "tensor", "tuple", "object", "elements", "count"


class Changeable(NamedTuple):
    """Something whose content does not count if all that code does is to change it by constants.

    Attributes:
        at: of the content, in the key.
        fact: of the content.
        kind, value, name, place: as `tally.only_counts` takes them.
        instead: the fact that stands for the content then, if any.
    """

    at: int
    fact: int
    kind: str
    value: Any
    name: str
    place: Place
    instead: tuple[str, Any, Any] | None


class Same:
    """Stands for an object that is told apart by identity alone, and keeps it, so that its id is not used again."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is Same and other.value is self.value

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


class Key:
    """What a program depends on. Equal where all of it is; hashed once, as it is long."""

    __slots__ = ("_hash", "parts")

    def __init__(self, parts: tuple[Any, ...]) -> None:
        self.parts = parts
        self._hash = hash(parts)

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is Key and other._hash == self._hash and other.parts == self.parts)

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, eq=False)
class Walk:
    """What a walk found. Short-lived: it holds the tensors.

    Attributes:
        key: equal for another walk if and only if the same program may be used again with the tensors of that walk.
        tensors: the distinct tensors, in the order of their first visit.
        unknown: why this cannot be cached: the object and where it is; None if all is known.
        impure: what the code does that tracing would do only once, such as ``loop_fn calls print (file.py:12)``, and None.
        location: the file and line of that.
        advice: what to do instead.
        mutable: what a `Snapshot` copies: (kind, object, names, place).
        facts: in the order of the walk, each value that was looked at, (how, value, place), and what holds of it besides,
            (what, object, expected).
        watched: the dicts of which only `names` count.
        names: what the code names; None if it may read any attribute.
    """

    key: Hashable
    tensors: list[torch.Tensor]
    unknown: str | None
    impure: str | None
    location: str | None
    advice: str | None
    mutable: list[tuple[str, Any, Any, Place]] = field(repr=False)
    facts: list[tuple[str, Any, Any]] = field(repr=False)
    watched: list[Names] = field(repr=False)
    names: tuple[str, ...] | None = field(repr=False)


class Record:
    """A walk under way: bookkeeping, and what holds for every object with a class."""

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
        self.suspects: list[tuple[Place, str, str]] = []  # what is impure where some code uses it: a verb, and what
        self.reflects = False
        self.unknown: str | None = None
        self.impure: impure.Impurity | None = None
        self.mutable: list[tuple[str, Any, Any, Place]] = []
        self.facts: list[tuple[str, Any, Any]] = []
        self.changeable: list[Changeable] = []
        self.transforms = torch._C._functorch.peek_interpreter_stack() is not None

    def visit(self, value: Any, place: Place) -> None:
        raise NotImplementedError

    def _first(self, value: Any, place: Place) -> bool:
        """Whether an object with identity is met for the first time; the key tells which one it is otherwise."""
        self.facts.append((OBJECT, value, place))
        index = self.seen.get(id(value))
        if index is not None:
            self.key += ("again", index)
            return False
        self.seen[id(value)] = len(self.seen)
        if len(self.facts) > _MOST_VALUES:
            self._unknown(f"cell and loop_fn hold more than {_MOST_VALUES:,} values")
            return False
        return True

    def _unknown(self, text: str) -> None:
        if self.unknown is None:
            self.unknown = text
        self.key.append(object())  # equal to no other key

    def _unknown_value(self, value: Any, place: Place) -> None:
        self.facts.append((OBJECT, value, place))
        self._unknown(places.holding(place, value))
        self._suspect_stream(value, place)

    def _suspect_stream(self, value: Any, place: Place) -> None:
        does = impure.of_stream(value)
        if does is not None:
            self.suspects.append((place, does, f"`{places.expression(place)}` ({places.type_name(value)})"))

    def _impure(self, who: str, called: str, names: Code, variable: str) -> None:
        if self.impure is None:
            uses = names.uses.get(variable)
            self.impure = impure.impurity(who, called, names, uses[0].line if uses else names.line)

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
            value = holder.get(name, MISSING)
            if value is not MISSING:
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

    # Classes and the attributes of their instances

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
        self.facts.append(("length", members.holder, len(members.holder)))
        for base in cls.__bases__:
            self._class(base, place)
        self._look_up(members, facts.always(cls))

    def of_class_value(self, value: type, place: Place) -> None:
        """A class as a value: it may be called."""
        self.facts.append((OBJECT, value, place))
        self._class(value, place)
        for cls in value.__mro__:
            members = self.members.get(id(cls))
            if members is not None:
                self._look_up(members, CONSTRUCTION)

    def _member(self, value: Any, place: Place) -> None:
        kind = type(value)
        if kind in (GetSetDescriptorType, MemberDescriptorType) or (kind.__module__, kind.__name__) == ("_collections", "_tuplegetter"):
            self.key.append("slot")
            self.facts.append((OBJECT, value, place))
        elif class_of(place[4]).category == "enum" and kind is not FunctionType and kind is not property:
            self.facts.append((OBJECT, value, place))  # its members are constants
        else:
            self.visit(value, place)

    def _attributes(self, value: Any, place: Place) -> None:
        facts = class_of(type(value))
        self.facts.append(("type", value, type(value)))
        for name, descriptor in facts.slots:
            try:
                item = descriptor.__get__(value)
            except AttributeError:
                self.key += ("slot", name, None)
                self.facts.append(("no slot", value, descriptor))
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
        self.facts.append(("dict", value, entries))
        self.mutable.append(("attributes", entries, None, place))
        if facts.named_only:
            self._watch(entries, value, place)
            return
        self.facts.append(("length", entries, len(entries)))
        self.key.append(len(entries))
        for name, item in entries.items():
            self.key.append(name)
            self.visit(item, (place, ATTRIBUTE, name, entries, None))

    def of_instance(self, value: Any, place: Place) -> None:
        if self._first(value, place):
            self.key.append("object")
            if class_of(type(value)).whose is not Whose.USER:  # the walk sees what an iterator of the user's does
                self._suspect_stream(value, place)
            self._class(type(value), place)
            self._attributes(value, place)
