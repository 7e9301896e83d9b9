"""For which sizes a program holds. In: the symbols and guards of its tracing; out: a check of a batch size and of closed-over tensors."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.printers import PythonPrinter

Fits = Callable[[int, Sequence[torch.Tensor]], bool]
Size = Callable[[Mapping[str, int]], int]  # from the values of the symbols
_SCOPE = {"math": math, "torch": torch}  # what torch's printed expressions name


def expression(size: Any) -> sympy.Expr:
    """A size of a traced tensor, or a number made of sizes, as an expression of symbols and numbers."""
    return size.node.expr if isinstance(size, (torch.SymInt, torch.SymFloat)) else sympy.Integer(size)


def function_of(size: Any) -> tuple[Size, list[str]]:
    """A size as a function of the values of its symbols, and their names: sympy is too slow for every call."""
    expr = size if isinstance(size, sympy.Expr) else expression(size)
    if expr.is_Integer:
        number = int(expr)
        return lambda _: number, []
    names = sorted(map(str, expr.free_symbols))
    if expr.is_Symbol:
        return operator.itemgetter(names[0]), names
    function: Callable[..., int] = eval(f"lambda {', '.join(names)}: {PythonPrinter().doprint(expr)}", _SCOPE)
    return lambda values: function(*[values[name] for name in names]), names


def fits(
    shape_env: ShapeEnv, batch: Any, lifted: Sequence[tuple[int, torch.Tensor]]
) -> tuple[Fits, sympy.Expr, dict[str, tuple[int, int]]]:
    """The check; the batch size as an expression, a number where only that one is admitted; and where to find the other symbols: the
    place of a closed-over tensor and its dimension.

    Args:
        batch: the batch size of the tracing.
        lifted: the closed-over tensors as they were traced, with their places.
    """
    printer = PythonPrinter()
    bound: dict[sympy.Symbol, str] = {}  # what the symbol is called below
    lines: list[str] = []
    checks: list[str] = []

    def meet(size: Any, name: str) -> None:
        expr = shape_env.simplify(expression(size))
        if isinstance(expr, sympy.Symbol) and expr not in bound:
            bound[expr] = name
            least = shape_env.var_to_range[expr].lower if expr in shape_env.var_to_range else 2
            checks.append(f"{name} >= {least}")
        else:
            checks.append(f"{name} == {_printed(printer, expr, bound)}")

    meet(batch, "batch")
    for place, tensor in lifted:
        names = [f"t{place}_{dim}" for dim in range(tensor.ndim)]
        if names:
            lines.append(f"{', '.join(names)}{',' if len(names) == 1 else ''} = tensors[{place}].shape")
        for name, size in zip(names, tensor.shape, strict=True):
            meet(size, name)
    for guard in shape_env.guards:
        expr = shape_env.simplify(guard.expr)
        if expr != sympy.true and expr.free_symbols <= set(bound):
            checks.append(_printed(printer, expr, bound))
    body = "\n    ".join([*lines, f"return {' and '.join(checks)}"])
    scope: dict[str, Any] = dict(_SCOPE)
    exec(f"def holds(batch, tensors):\n    {body}\n", scope)
    places = {str(symbol): _place(name) for symbol, name in bound.items() if name != "batch"}
    return scope["holds"], shape_env.simplify(expression(batch)), places


def _place(name: str) -> tuple[int, int]:
    tensor, dim = name.removeprefix("t").split("_")
    return int(tensor), int(dim)


def _printed(printer: PythonPrinter, expr: sympy.Expr, bound: dict[sympy.Symbol, str]) -> str:
    return f"({printer.doprint(expr.xreplace({symbol: sympy.Symbol(name) for symbol, name in bound.items()}))})"
