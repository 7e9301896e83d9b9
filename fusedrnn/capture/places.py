"""Where the walk found something. In: the steps from a root to it; out: the words for it, as Python would write them."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from .scalars import is_scalar

# How a value is reached from the one that holds it.
ROOT, CELL, GLOBAL, ATTRIBUTE, ITEM, KEY, MEMBER, SLOT, DEFAULT, KEYWORD_DEFAULT, PART, RECEIVER, SAME = range(13)


# (parent, step, name, holder, owner), a bare tuple because a walk makes one for every value. parent: the place of what holds the value.
# step: one of the constants above. name: a name, index or key. holder: what is read: the closure cell, or the dict, list or object that
# holds the value; None where it is part of a value that never changes. owner: the function or class that the name belongs to.
Place = tuple[Any, int, Any, Any, Any]


def root(name: str) -> Place:
    return None, ROOT, name, None, None


def expression(place: Place) -> str:
    """The value as Python would write it there."""
    parent, step, name, _, owner = place
    if step in (ROOT, CELL, GLOBAL, DEFAULT, KEYWORD_DEFAULT):
        return str(name)
    if step == RECEIVER:
        return "self"
    if step == MEMBER:
        return f"{owner.__name__}.{name}"
    if step == SAME:
        return expression(parent)
    if step == ITEM:
        return f"{expression(parent)}[{name}]"
    if step == KEY:
        return f"{expression(parent)}[{name!r}]" if is_scalar(name) else f"{expression(parent)}[...]"
    return f"{expression(parent)}.{name}"


def named(place: Place) -> str:
    """The name by which code reaches a value: that of the variable or attribute that holds it, or what holds it."""
    while place[0] is not None and not (place[1] in _NAMED and type(place[2]) is str):
        place = place[0]
    return str(place[2])


_NAMED = (CELL, GLOBAL, ATTRIBUTE, MEMBER, SLOT, DEFAULT, KEYWORD_DEFAULT)


def context(place: Place) -> tuple[str, str]:
    """Who holds the variable that the expression starts with, and what they do with it."""
    parent, step, name, _, owner = place
    if step == ROOT:
        return str(name), "holds "
    if step == MEMBER:
        return "", ""
    if step in _VARIABLE:
        return function_label(owner, parent), _VARIABLE[step]
    return context(parent)


_VARIABLE = {CELL: "closes over ", GLOBAL: "uses global ", DEFAULT: "has the default ", KEYWORD_DEFAULT: "has the default "}


def function_label(function: FunctionType, place: Place | None) -> str:
    """loop_fn and cell by those names, other functions by their own."""
    while place is not None and place[1] == SAME:
        place = place[0]
    if place is not None and place[1] == ROOT:
        return str(place[2])
    return function.__qualname__.rpartition("<locals>.")[2]


def type_name(value: Any) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def holding(place: Place, value: Any) -> str:
    """A sentence: who holds this value, and its type."""
    who, does = context(place)
    return f"{f'{who} {does}' if who else ''}`{expression(place)}` ({type_name(value)})"


def changing(place: Place, what: str) -> str:
    """A sentence: who changes something that the walk found here."""
    who, _ = context(place)
    return f"{who or 'the code'} changes {what}"
