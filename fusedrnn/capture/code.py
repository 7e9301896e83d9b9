"""What a code object can look at. In: a code object; out: the names it uses, found once and kept for as long as the code lives."""

from __future__ import annotations

import dis
import weakref
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

# Code that uses one of these may read an attribute that it does not name.
_REFLECTION = frozenset({
    "vars", "dir", "attrgetter", "methodcaller", "__dict__", "__getattribute__", "__getstate__", "__slots__",
    "copy", "deepcopy", "pickle", "inspect", "asdict", "astuple", "fields", "replace", "getmembers",
    "modules", "named_modules", "children", "named_children", "parameters", "named_parameters", "buffers", "named_buffers",
    "state_dict", "apply", "get_parameter", "get_buffer", "get_submodule", "_parameters", "_buffers", "_modules", "functional_call",
})  # fmt: skip
# Code that uses one of these may read any variable.
_FRAMES = frozenset({"eval", "exec", "globals", "locals", "_getframe", "currentframe", "__import__", "import_module", "__globals__"})

_BY_NAME = frozenset({"getattr", "hasattr"})  # these too, unless the name is written there
_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM", "LOAD_SUPER_ATTR"})
_GLOBAL_WRITE = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_ATTRIBUTE_WRITE = frozenset({"STORE_ATTR", "DELETE_ATTR"})
_LOCAL_WRITE = frozenset({"STORE_FAST", "RETURN_VALUE", "POP_TOP"})
_STORE = _GLOBAL_WRITE | _ATTRIBUTE_WRITE | {"STORE_DEREF", "DELETE_DEREF"}
GROWS = frozenset({"append", "add", "appendleft"})  # methods by which a container may count
_GENERATED = "@"  # no name that anyone can write: what pytest makes of an assert
_SILENT = frozenset({"EXTENDED_ARG", "PUSH_NULL", "CACHE", "NOP", "PRECALL"})


class Use(NamedTuple):
    """A variable and the attributes taken from it at once: ``np.random.rand`` is ("np", ("random", "rand"))."""

    root: str
    attributes: tuple[str, ...]
    line: int


class Import(NamedTuple):
    """An import inside of a function."""

    module: str
    level: int
    names: tuple[str, ...]
    line: int


class Code:
    """The names in one code object and in those nested in it. Equal only to itself, so it stands for the code in a key.

    Attributes:
        code_name, file, line: where it is.
        globals: the names read as globals (or builtins).
        attributes: the names read as attributes.
        written_globals, written_attributes: the names that are assigned.
        uses: what is done with variables, by the variable.
        imports: the imports.
        stores: the line of the first assignment to each global, closed-over variable and attribute.
        counts: it may change something by a constant.
        reflects: it may read attributes that it does not name.
        frames: the first name by which it may read variables that it does not name, or None.
    """

    __slots__ = (
        "__weakref__", "attributes", "code_name", "counts", "file", "frames", "globals", "imports", "line", "reflects", "stores", "uses",
        "written_attributes", "written_globals",
    )  # fmt: skip

    def __init__(self, code: CodeType) -> None:
        self.code_name, self.file, self.line = code.co_qualname, code.co_filename, code.co_firstlineno
        read: dict[str, None] = {}
        attributes: dict[str, None] = {}
        written: dict[str, None] = {}
        written_attributes: dict[str, None] = {}
        self.uses: dict[str, list[Use]] = {}
        self.stores: dict[str, int] = {}
        imports: list[Import] = []
        computed = False
        self.counts = False
        for part in _nested(code):
            root, chain, line = None, [], 0
            before: list[object] = [None, None]
            instructions = [instruction for instruction in dis.get_instructions(part) if instruction.opname not in _SILENT]
            for place, instruction in enumerate(instructions):
                name, operand = instruction.opname, instruction.argval
                if (name == "BINARY_OP" and instruction.argrepr.endswith("=")) or (name in _ATTRIBUTE and operand in GROWS):
                    self.counts = True
                computed = (computed or name == "BINARY_OP") and name not in _LOCAL_WRITE
                self.counts |= computed and (name in _STORE or name == "STORE_SUBSCR")
                if name in _STORE:
                    self.stores.setdefault(operand, (instruction.positions and instruction.positions.lineno) or part.co_firstlineno)
                if name in _ATTRIBUTE:
                    chain.append(operand)
                    if root is None or not root.startswith(_GENERATED):
                        attributes[operand] = None
                else:
                    if root is not None:
                        self.uses.setdefault(root, []).append(Use(root, tuple(chain), line))
                    root, chain = None, []
                    if isinstance(operand, str) and (name in _GLOBAL or name.startswith(("LOAD_DEREF", "LOAD_FAST", "LOAD_CLASSDEREF"))):
                        root = operand
                        line = (instruction.positions and instruction.positions.lineno) or part.co_firstlineno
                    if name in _GLOBAL and not operand.startswith(_GENERATED):
                        read[operand] = None
                        if operand in _BY_NAME:
                            attribute = _literal(instructions[place + 1 :])
                            attributes[attribute or operand] = None
                            computed = computed or attribute is None
                    elif name in _GLOBAL_WRITE:
                        written[operand] = None
                    elif name in _ATTRIBUTE_WRITE:
                        written_attributes[operand] = None
                    elif name == "IMPORT_NAME":
                        level, names = before
                        at = (instruction.positions and instruction.positions.lineno) or part.co_firstlineno
                        imports.append(
                            Import(operand, level if isinstance(level, int) else 0, names if isinstance(names, tuple) else (), at)
                        )
                    elif name == "MATCH_CLASS":  # reads the attributes that a constant tuple names
                        computed = True
                before = [before[1], operand]
            if root is not None:
                self.uses.setdefault(root, []).append(Use(root, tuple(chain), line))
        self.globals, self.attributes = tuple(read), tuple(attributes)
        self.written_globals, self.written_attributes = tuple(written), tuple(written_attributes)
        self.imports = tuple(imports)
        self.reflects = computed or any(name in _REFLECTION for name in (*read, *attributes))
        self.frames = next((name for name in (*read, *attributes) if name in _FRAMES), None)

    def line_of_change(self, name: str) -> int | None:
        """The line that changes what has this name, as a variable or as an attribute; None where the code does not name it."""
        if name in self.stores:
            return self.stores[name]
        found = [use for uses in self.uses.values() for use in uses if name in (use.root, *use.attributes)]
        called = [use for use in found if (use.root, *use.attributes)[-1] != name]  # a method of it
        return min((use.line for use in called or found), default=None)


def _literal(instructions: list[dis.Instruction]) -> str | None:
    """The name in ``getattr(a.b, "name")``, from what follows ``getattr``; None if it may be another each time."""
    for instruction in instructions:
        if instruction.opname == "LOAD_CONST":
            return instruction.argval if isinstance(instruction.argval, str) else None
        if not instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_ATTR")):
            return None
    return None


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


# Code objects compare by value, which is slow to hash, so the way is by identity first. Equal code of one file is one program: what
# `dataclass` generates, and a notebook's cell that is run again, keep their key.
_by_identity: dict[int, tuple[weakref.ref[CodeType], Code]] = {}
_by_value: weakref.WeakValueDictionary[tuple[CodeType, str, str], Code] = weakref.WeakValueDictionary()


def of(code: CodeType) -> Code:
    """The names of a code object; the same object for equal code."""
    known = _by_identity.get(id(code))
    if known is not None:
        return known[1]
    value = (code, code.co_filename, code.co_qualname)
    found = _by_value.get(value)
    if found is None:
        found = _by_value[value] = Code(code)
    place = id(code)
    forget = _by_identity.pop  # a local: the module may be gone first
    _by_identity[place] = weakref.ref(code, lambda _: forget(place, None)), found
    return found
