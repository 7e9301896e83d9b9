"""Which columns of a row's value a program asks for. In: sizes and indices; out: one expression of the column.

What one row has of a tensor is a list of columns, in the order of its dimensions, the batch aside. A program owns a block of them; a
view, a slice or a broadcast asks for others, and a reduction for those of a loop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from sympy.printing.str import StrPrinter

C: Any = sympy.Symbol("c", integer=True)  # the column that a program owns
Quotient: Any = sympy.Function("Quotient", integer=True)
Remainder: Any = sympy.Function("Remainder", integer=True)
_LOOP = re.compile(r"r\d+_of(\d+)")


class _Printer(StrPrinter):  # type: ignore[misc]
    def _print_Function(self, expr: Any) -> str:  # noqa: N802
        sign = {Quotient: "//", Remainder: "%"}[expr.func]
        return f"(({self._print(expr.args[0])}) {sign} {expr.args[1]})"


_printer = _Printer()


def counter(number: int, size: int) -> Any:
    """What counts the rounds of a loop; its name tells how many there are."""
    return sympy.Symbol(f"r{number}_of{size}", integer=True)


def rounds(symbol: Any) -> int | None:
    """The rounds that a symbol counts; None for another."""
    found = _LOOP.fullmatch(str(symbol))
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Columns:
    """Columns of a value, as a tile.

    Attributes:
        width: of the vectors whose columns the tile has: those that this program owns of them; 0: one column.
        at: the column of the value for the column `C`.
    """

    width: int
    at: Any = C

    @property
    def index(self) -> str:
        return text(self.at, self.width)

    @property
    def mask(self) -> str | None:
        """Which of them there are; None: all."""
        return f"in{self.width}" if self.width else None

    @property
    def loops(self) -> set[Any]:
        """The loops that they are of."""
        return {symbol for symbol in self.at.free_symbols if symbol != C}

    def within(self, size: int) -> bool:
        """Whether they are known to be columns of a value of that size, if the mask is heeded."""
        return is_within(self.at, size, self.width)


def is_within(at: Any, size: int, width: int) -> bool:
    reach = interval(at, width)
    return reach is not None and reach[0] >= 0 and reach[1] < size


def text(at: Any, width: int) -> str:
    """An expression of columns in Triton."""
    made = _printer.doprint(at.xreplace({C: sympy.Symbol(f"c{width}")}))
    return made if at.is_Atom or made.startswith("((") else f"({made})"


def interval(at: Any, width: int) -> tuple[int, int] | None:
    """The least and the greatest value of an expression, the mask heeded; None where that is not known."""
    if at.is_Integer:
        return int(at), int(at)
    if at == C:
        return 0, max(width - 1, 0)
    if at.is_Symbol:
        times = rounds(at)
        return None if times is None else (0, times - 1)
    if at.is_Mul and len(at.args) == 2 and at.args[0].is_Integer:
        reach, factor = interval(at.args[1], width), int(at.args[0])
        return None if reach is None else (min(factor * end for end in reach), max(factor * end for end in reach))
    if at.is_Add:
        parts = [interval(part, width) for part in at.args]
        known = [part for part in parts if part is not None]
        return (sum(low for low, _ in known), sum(high for _, high in known)) if len(known) == len(parts) else None
    if at.func == Remainder:  # it has the sign of what is divided
        reach, most = interval(at.args[0], width), int(at.args[1]) - 1
        return (0 if reach is not None and reach[0] >= 0 else -most), most
    if at.func == Quotient:
        reach, by = interval(at.args[0], width), int(at.args[1])
        return None if reach is None else (reach[0] // by, reach[1] // by)
    return None


def divided(at: Any, by: int, width: int) -> tuple[Any, Any]:
    """Quotient and remainder by a size, rounded down: what is divided is made not to be negative, since a kernel cuts quotients off."""
    zero = sympy.Integer(0)
    if by == 1:
        return at, zero
    whole, rest = zero, zero
    for term in sympy.Add.make_args(sympy.expand(at)):
        factor, other = term.as_coeff_Mul()
        if factor.is_Integer and int(factor) % by == 0:
            whole += int(factor) // by * other
        else:
            rest += term
    reach = interval(rest, width)
    if reach is not None:
        least = reach[0] // by
        whole, rest = whole + least, rest - least * by
        if reach[1] // by == least:
            return whole, rest
    return whole + Quotient(rest, by), Remainder(rest, by)


def taken_apart(at: Any, sizes: Sequence[int], width: int) -> list[Any]:
    """A column as an index into dimensions of these sizes."""
    found: list[Any] = []
    for size in reversed(sizes[1:]):
        at, rest = divided(at, size, width)
        found.append(rest)
    return [*([at] if sizes else []), *reversed(found)]


def joined(index: Sequence[Any], sizes: Sequence[int]) -> Any:
    """An index into dimensions of these sizes as a column."""
    at = sympy.Integer(0)
    for place, size in zip(index, sizes, strict=True):
        if place.func == Remainder and int(place.args[1]) == size:
            quotient = Quotient(*place.args)
            other = at - quotient
            if quotient not in other.atoms(Quotient):  # they were one
                at, place = other, place.args[0]
        at = sympy.expand(at * size + place)
    return at
