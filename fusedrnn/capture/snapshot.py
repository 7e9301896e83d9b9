"""Side effects of tracing. In: a walk, before the code runs; out: what it changed meanwhile, and everything put back as it was."""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from . import places
from .kinds import class_of
from .places import GLOBAL, Place
from .record import Walk
from .scalars import same, same_items

_ABSENT = object()
# A TensorArray fetches, takes apart and joins its elements when it is read; that is no effect that anyone can see.
_QUIET = frozenset({"_elements", "_whole", "_fetch"})


class Change(NamedTuple):
    """Something that tracing changed.

    Attributes:
        text: a sentence: ``loop_fn changes `log` (list)``, ``loop_fn changes nonlocal `count` ``.
        kind, value: as in ``Walk.mutable``.
        name: the last one that leads to it.
        place: where the walk found the variable or the container; None for an attribute.
    """

    text: str
    kind: str
    value: Any
    name: str
    place: Place | None


_HELD = ("cell", "names", "list", "set", "dict", "elements")


class Snapshot:
    """The contents, not the contents' contents, of every container, closure variable, attribute and global that a walk met.

    Args:
        walk: what to copy. It is kept, with its tensors, for as long as the snapshot is.
    """

    def __init__(self, walk: Walk) -> None:
        self._saved: list[tuple[str, Any, Any, Place, Any]] = []
        known: set[tuple[Any, ...]] = set()
        for kind, value, names, place in walk.mutable:
            if kind == "names":
                for name in names:
                    if (id(value), name) not in known:
                        known.add((id(value), name))
                        self._saved.append((kind, value, name, place, value.get(name, _ABSENT)))
            elif (kind, id(value), id(names)) not in known:
                known.add((kind, id(value), id(names)))
                self._saved.append((kind, value, names, place, _SAVE[kind](value, names)))

    def changes(self) -> list[Change]:
        """What differs now."""
        found: dict[str, Change] = {}
        for kind, value, names, place, saved in self._saved:
            for what in _changed(kind, value, names, place, saved):
                text = places.changing(place, what)
                name = re.sub(r"\[.*", "", what.split("`")[1]).rpartition(".")[2]
                found.setdefault(text, Change(text, kind, value, name, place if kind in _HELD else None))
        return list(found.values())

    def restore(self) -> None:
        """Put back what differs."""
        for kind, value, names, _, saved in self._saved:
            now = value.get(names, _ABSENT) if kind == "names" else _SAVE[kind](value, names)
            if kind == "ndarray":
                np.copyto(value, saved)
            elif not _identical(now, saved):
                _RESTORE[kind](value, names, saved)


def _changed(kind: str, value: Any, names: Any, place: Place, saved: Any) -> Iterator[str]:
    if kind == "names":
        if not same(value.get(names, _ABSENT), saved):
            yield f"global `{names if place[1] == GLOBAL else f'{places.expression(place[0])}.{names}'}`"
        return
    now = _SAVE[kind](value, names)
    if kind == "cell":
        if not same(now, saved):
            yield f"nonlocal `{places.expression(place)}`"
    elif kind == "ndarray":
        if now.tobytes() != saved.tobytes():
            yield f"`{places.expression(place)}` ({places.type_name(value)})"
    elif kind == "slot":
        if not same(now, saved):
            yield f"`{places.expression(place)}.{names[0]}`"
    elif kind in ("attributes", "array", "class"):
        prefix = value.__name__ if kind == "class" else places.expression(place)
        for name in dict.fromkeys((*saved, *now)):
            if not same(now.get(name, _ABSENT), saved.get(name, _ABSENT)) and not (kind == "array" and name in _QUIET):
                yield f"`{prefix}.{name}`"
    elif kind == "dict":
        if not (same_items(list(now), tuple(saved)) and same_items(list(now.values()), tuple(saved.values()))):
            yield f"`{places.expression(place)}` ({places.type_name(value)})"
    elif kind != "elements" and not same_items(now, tuple(saved)):
        yield f"`{places.expression(place)}` ({places.type_name(value)})"


def _identical(now: Any, saved: Any) -> bool:
    if type(saved) is dict:
        return list(map(id, now)) == list(map(id, saved)) and list(map(id, now.values())) == list(map(id, saved.values()))
    if type(saved) is list:
        return list(map(id, now)) == list(map(id, saved))
    return now is saved


def _layout(value: Any) -> Any:
    """The built-in class of a container, whose methods no subclass has replaced."""
    return class_of(type(value)).layout


def _dict_of(value: Any, _: Any) -> dict[Any, Any]:
    return dict(_layout(value).items(value))


def _list_of(value: Any, _: Any) -> list[Any]:
    return list(_layout(value).__iter__(value))


def _cell_of(value: Any, _: Any) -> Any:
    try:
        return value.cell_contents
    except ValueError:
        return _ABSENT


def _slot_of(value: Any, names: Any) -> Any:
    try:
        return names[1].__get__(value)
    except AttributeError:
        return _ABSENT


def _restore_list(value: Any, _: Any, saved: list[Any]) -> None:
    if _layout(value) is deque:
        deque.clear(value)
        deque.extend(value, saved)
    else:
        list.__setitem__(value, slice(None), saved)


def _restore_set(value: Any, _: Any, saved: list[Any]) -> None:
    set.clear(value)
    set.update(value, saved)


def _restore_dict(value: Any, _: Any, saved: dict[Any, Any]) -> None:
    base = OrderedDict if _layout(value) is OrderedDict else dict
    base.clear(value)
    for key, entry in saved.items():
        base.__setitem__(value, key, entry)


def _restore_attributes(value: dict[str, Any], _: Any, saved: dict[str, Any]) -> None:
    # Entry by entry: emptied, an object would be without its attributes for a moment, which another thread may see.
    for name in [name for name in value if name not in saved]:
        del value[name]
    for name, entry in saved.items():
        if value.get(name, _ABSENT) is not entry:
            value[name] = entry
    if list(value) != list(saved):
        value.clear()
        value.update(saved)


def _restore_class(value: type, _: Any, saved: dict[str, Any]) -> None:
    for name in [name for name in vars(value) if name not in saved]:
        type.__delattr__(value, name)
    for name, entry in saved.items():
        if vars(value).get(name, _ABSENT) is not entry:
            type.__setattr__(value, name, entry)


def _restore_cell(value: Any, _: Any, saved: Any) -> None:
    if saved is _ABSENT:
        del value.cell_contents
    else:
        value.cell_contents = saved


def _restore_slot(value: Any, names: Any, saved: Any) -> None:
    if saved is _ABSENT:
        names[1].__delete__(value)
    else:
        names[1].__set__(value, saved)


def _restore_name(value: dict[str, Any], name: str, saved: Any) -> None:
    if saved is _ABSENT:
        value.pop(name, None)
    else:
        value[name] = saved


_SAVE: dict[str, Callable[[Any, Any], Any]] = {
    "list": _list_of,
    "elements": _list_of,
    "set": _list_of,
    "dict": _dict_of,
    "attributes": lambda value, _: dict(value),
    "array": lambda value, _: dict(value),
    "class": lambda value, _: dict(vars(value)),
    "cell": _cell_of,
    "slot": _slot_of,
    "ndarray": lambda value, _: value.copy(),
}
_RESTORE: dict[str, Callable[[Any, Any, Any], None]] = {
    "list": _restore_list,
    "elements": _restore_list,
    "set": _restore_set,
    "dict": _restore_dict,
    "attributes": _restore_attributes,
    "array": _restore_attributes,
    "class": _restore_class,
    "cell": _restore_cell,
    "slot": _restore_slot,
    "names": _restore_name,
}
