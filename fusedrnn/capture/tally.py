"""Python state that only counts. In: what tracing changed, and the code that a walk reached; out: whether a loop could tell it from before.

A count of calls (``calls += 1``, ``log.append(1)``) changes no result of a loop: no code of the loop reads it but to change it by a
constant. Such a loop is captured, as TensorFlow traces it, and the count goes on only where loop_fn is called. A change by anything else, a
list of outputs say, may be what the user wants of the loop: it is refused.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import weakref
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType
from typing import Any

from . import code as codes
from .kinds import CONSTRUCTION, Whose, function_whose
from .places import ATTRIBUTE, CELL, GLOBAL, ROOT, Place
from .record import OBJECT

_MOCK = "_mock_"  # of unittest.mock, which notes the calls that are made


_CONTAINERS = frozenset({"container", "list", "set", "dict", "elements"})
Facts = Sequence[tuple[str, Any, Any]]


def counted(facts: Facts) -> set[str]:
    """The names of what some function changes by constants, maybe one of its own variables."""
    return {name for what, _, expected in facts if what == "function" for name in _counted(expected[0])}


def only_counts(facts: Facts, kind: str, value: Any, name: str, place: Place | None, *, reflects: bool) -> bool:
    """Whether all code that the walk reached only counts with a thing.

    Args:
        facts: the walk's.
        kind: "container", or of the snapshot's entry: "list", "set", "dict" and "elements" are one, others a variable or an attribute.
        value: the container, if it is one.
        name: of the variable or attribute, or of the one that holds the container.
        place: where the walk found the variable or the container; of an attribute None, or a place that says whose it is.
        reflects: the code may read attributes that it does not name.
    """
    if name.startswith(_MOCK):
        return True
    variable = place is not None and place[1] in (CELL, GLOBAL)  # which no other code can reach, whatever its names are
    if not variable:
        attributes = value if kind == "attributes" else place[3] if place is not None and place[1] == ATTRIBUTE else None
        owner = None if attributes is None else _owner(facts, attributes)
        if owner is not None and _is_counter(facts, owner, name):
            return True
    if reflects and not variable:
        return False
    if kind in _CONTAINERS and sum(how == OBJECT and met is value for how, met, _ in facts) != 1:
        return False  # it has another name
    counts = 0
    for what, function, expected in facts:
        if what == "function" and (_reaches(function, name, place) if variable else _names(expected[0], name)):
            tree = _tree(expected[0])
            uses = [_is_count(use) for use in _uses(tree, name, attributes=not variable)] if tree is not None else []
            if not uses or not all(uses):
                return False
            counts += len(uses)
    return counts > 0  # else code that was not looked at changes it


def _owner(facts: Facts, attributes: Any) -> Any:
    """The object that has these attributes."""
    for what, value, expected in facts:
        if (what == "dict" and expected is attributes) or (what == "function" and value.__dict__ is attributes):
            return value
    return None


def _is_counter(facts: Facts, owner: Any, name: str) -> bool:
    """Whether only variables hold an object, and all that the code that can reach it does with an attribute is to count."""
    places = [place for how, met, place in facts if how == OBJECT and met is owner]
    if not all(place[1] in (ROOT, CELL, GLOBAL) for place in places):
        return False
    methods = {member for cls in type(owner).__mro__ for member in vars(cls).values() if isinstance(member, FunctionType)}
    counts = 0
    for what, function, expected in facts:
        if what != "function":
            continue
        variables = {place[2] for place in places if place[1] != ROOT and _reaches(function, place[2], place)}
        is_method = function in methods
        if not variables and not is_method:
            continue
        code = expected[0]
        if is_method and (code.co_name in CONSTRUCTION or function_whose(function) is not Whose.USER or code.co_filename == "<string>"):
            continue  # it has run before; or a dataclass has it for what is done with the object as a whole
        tree = _tree(code)
        if tree is None or codes.of(code).reflects:
            return False
        if is_method and code.co_argcount:
            variables.add(code.co_varnames[0])
        for variable in variables:
            for use in _uses(tree, variable, attributes=False):
                taken = use[1]
                if not isinstance(taken, ast.Attribute):
                    return False  # it is handed on
                if taken.attr == name:
                    if not _is_count(use[1:]):
                        return False
                    counts += 1
    return counts > 0


def _reaches(function: FunctionType, name: str, place: Any) -> bool:
    """Whether a function closes over a variable, or it is a global of its module that it names."""
    _, step, _, holder, _ = place
    if step == CELL:
        return any(cell is holder for cell in function.__closure__ or ())
    named = codes.of(function.__code__)
    return function.__globals__ is holder and (name in named.globals or name in named.written_globals)


def _names(code: CodeType, name: str) -> bool:
    """Whether a function, or one within it, uses a name that is not a local of its own, or takes an attribute of that name."""
    inner = (part for part in code.co_consts if isinstance(part, CodeType))
    return name in code.co_freevars or name in code.co_names or any(_names(part, name) for part in inner)


_known: weakref.WeakKeyDictionary[codes.Code, frozenset[str]] = weakref.WeakKeyDictionary()


def _counted(code: CodeType) -> frozenset[str]:
    facts = codes.of(code)
    if not facts.counts:
        return frozenset()
    found = _known.get(facts)
    if found is None:
        found = _known[facts] = _counted_now(code)
    return found


def _counted_now(code: CodeType) -> frozenset[str]:
    tree = _tree(code)
    uses: dict[str, list[bool]] = {}
    for node in ast.walk(tree) if tree is not None else ():
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        if name is not None and name not in uses:
            uses[name] = [_is_count(use) for use in _uses(tree, name)]  # type: ignore[arg-type]
    return frozenset(name for name, found in uses.items() if any(found))


def _tree(code: CodeType) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):  # made by exec, or a lambda amid an expression
        return None


def _uses(tree: ast.AST, name: str, *, attributes: bool = True) -> Iterator[list[ast.AST]]:
    """Every use of a name, as a variable or an attribute: the node and what it stands in, from inside out."""

    def visit(node: ast.AST, above: list[ast.AST]) -> Iterator[list[ast.AST]]:
        here = [node, *above]
        if (isinstance(node, ast.Name) and node.id == name) or (attributes and isinstance(node, ast.Attribute) and node.attr == name):
            yield here
        for child in ast.iter_child_nodes(node):
            yield from visit(child, here)

    return visit(tree, [])


def _is_count(use: list[ast.AST]) -> bool:
    """Whether a use changes the thing by a constant and does nothing else."""
    node, above = use[0], use[1:]
    if isinstance(above[0], ast.Subscript) and above[0].value is node:
        if not _is_constant(above[0].slice):
            return False
        node, above = above[0], above[1:]
    if isinstance(above[0], ast.AugAssign):
        return above[0].target is node and _is_constant(above[0].value)
    if isinstance(above[0], ast.BinOp):  # the right side of a = a + 1
        above = above[1:]
    if isinstance(above[0], ast.Assign):
        (target, *others), made = above[0].targets, above[0].value
        same = isinstance(made, ast.BinOp) and ast.unparse(made.left) == ast.unparse(target) == ast.unparse(node)
        return same and not others and _is_constant(made.right)  # type: ignore[attr-defined]
    if (
        isinstance(above[0], ast.Attribute)
        and above[0].attr in codes.GROWS
        and isinstance(above[1], ast.Call)
        and above[1].func is above[0]
    ):
        return isinstance(above[2], ast.Expr) and not above[1].keywords and all(map(_is_constant, above[1].args))
    return False


def _is_constant(node: ast.AST) -> bool:
    return all(isinstance(part, (ast.Constant, ast.UnaryOp, ast.unaryop)) for part in ast.walk(node))
