"""Reads Triton's GPU IR. In: the text of a module; out: which of a function's arguments the loads in its step loop read.

An address derives from an argument through operations on pointers alone, so values whose type is not a pointer need no following. The
step loop is the longest loop of the function that stands in no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_NAME = r"%[\w$.-]+(?:#\d+)?"
_LOADS = ("tt.load", "ttg.async_copy_global_to_local", "tt.descriptor_load", "ttng.async_tma_copy_global_to_local")
_MAKES = re.compile(r"^(?:(%[\w$.-]+)(?::\d+)? = )?\"?([a-z_]*(?:\.[\w.]+)?)\"?")
_CARRIED = re.compile(rf"({_NAME}) = ({_NAME})")

Origins = dict[str, frozenset[int]]  # a value's name -> the arguments that its address may derive from
NONE: frozenset[int] = frozenset()


@dataclass
class _Region:
    """An operation that holds others: scf.for, scf.while, scf.if."""

    line: int
    result: str
    carried: list[str]  # the names of loop-carried values within
    found: list[frozenset[int]] = field(default_factory=list)  # origins of its results so far


def loads_in_step_loop(text: str, arguments: Sequence[str]) -> list[str]:
    """For each load (or asynchronous copy from global memory) in the step loop the arguments it may read from, joined by ``|``.

    ``arguments`` names the function's parameters in order. A load in a loop within counts once.
    """
    body = _body(text)
    loop = max(_loops(body), key=len, default=range(0))
    yields: dict[int, list[frozenset[int]]] = {}
    while True:  # what a loop yields it carries into its next round
        before = {line: list(found) for line, found in yields.items()}
        loads = _follow(body, _parameters(text), yields)
        if yields == before:
            break
    names = list(arguments)
    return ["|".join(names[at] for at in sorted(origin)) for line, origin in loads if line in loop]


def _body(text: str) -> list[str]:
    """The lines of the public function, from its header to its end."""
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if line.lstrip().startswith("tt.func public"))
    end = next(at for at in range(start, len(lines)) if lines[at].startswith("  }"))
    return [re.sub(r'"(?:[^"\\]|\\.)*"', '""', line).strip() for line in lines[start:end]]  # assembly has braces of its own


def _parameters(text: str) -> Origins:
    header = next(line for line in text.splitlines() if line.lstrip().startswith("tt.func public"))
    return {name: frozenset([at]) for at, name in enumerate(re.findall(r"(%[\w$.-]+): ", header))}


def _loops(body: list[str]) -> Iterator[range]:
    """The lines of each outermost loop."""
    depth, start, inside = 0, 0, 0
    for at, line in enumerate(body[1:], 1):
        if not inside and re.search(r"scf\.(for|while)\b", line):
            start, inside = at, depth + 1
        depth += _braces(line)
        if inside and depth < inside:
            yield range(start, at + 1)
            inside = 0


def _braces(line: str) -> int:
    return line.count("{") - line.count("}")


def _follow(body: list[str], parameters: Origins, yields: dict[int, list[frozenset[int]]]) -> list[tuple[int, frozenset[int]]]:
    """Loads as (line, origins). Updates ``yields``, by the line of the loop."""
    origins = dict(parameters)
    open_regions: list[_Region] = []
    passed: list[frozenset[int]] = []  # what scf.condition hands to the block after it
    loads = []
    for at, line in enumerate(body[1:], 1):
        result, operation = _MAKES.match(line).groups()
        names = re.findall(_NAME, line.split(" loc(")[0].split(" : ")[0])
        if operation in ("scf.for", "scf.while"):
            head = line[line.index("iter_args") :] if "iter_args" in line else line if operation == "scf.while" else ""
            carried = _CARRIED.findall(head.split(" = scf.while ", 1)[-1])
            again = yields.get(at, [])
            for index, (name, initial) in enumerate(carried):
                origins[name] = origins.get(initial, NONE) | (again[index] if index < len(again) else NONE)
            found = [origins[name] for name, _ in carried] if operation == "scf.for" else []
            open_regions.append(_Region(at, result or "", [name for name, _ in carried], found))
        elif operation == "scf.if":
            open_regions.append(_Region(at, result or "", []))
        elif operation == "scf.condition":
            passed = [origins.get(name, NONE) for name in names[1:]]
            open_regions[-1].found = passed  # a while's results are what its condition passes last
        elif line.startswith("^bb"):
            origins.update(zip(re.findall(r"(%[\w$.-]+): ", line), passed, strict=False))
        elif operation == "scf.yield":
            given = [origins.get(name, NONE) for name in names]
            region = open_regions[-1]
            if region.carried:
                yields[region.line] = _union(yields.get(region.line, []), given)
            if "scf.while" not in body[region.line]:
                region.found = _union(region.found, given)
        elif operation in _LOADS:
            loads.append((at, origins.get(names[1 if result else 0], NONE)))
            origins[result or ""] = NONE
        elif result and operation not in ("scf.for", "scf.while", "scf.if"):
            pointer = "!tt.ptr" in _result_type(line) or "!tt.tensordesc" in _result_type(line)
            origins[result] = frozenset().union(*(origins.get(name, NONE) for name in names[1:])) if pointer else NONE
        if line.startswith("}") and not line.startswith(("} do {", "} else {", "})")) and open_regions:  # "})" ends a reduction
            region = open_regions.pop()
            for index, origin in enumerate(region.found):
                origins[f"{region.result}#{index}"] = origin
            if region.found:
                origins[region.result] = region.found[0]
    return loads


def _result_type(line: str) -> str:
    """The part of an operation's type after its arrow, or all of it: addptr says its result's type first."""
    kind = line.split(" loc(")[0].rpartition(" : ")[2]
    return kind.rpartition("->")[2] if "->" in kind else kind


def _union(some: list[frozenset[int]], others: list[frozenset[int]]) -> list[frozenset[int]]:
    longest = max(len(some), len(others))
    padded = [[*items, *[NONE] * (longest - len(items))] for items in (some, others)]
    return [one | other for one, other in zip(*padded, strict=True)]
