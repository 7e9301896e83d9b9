"""Triton's interpreter, put right. In: a kernel and its arguments; out: what the device would compute, one program at a time.

The interpreter holds bfloat16 as raw uint16, and lets numpy compute with those: products, sums and comparisons of them are wrong, and
float32 is cut off rather than rounded on its way to them. It reads and writes any address. `Builder` computes through float32,
rounds to nearest even, multiplies tf32 as tensor cores do, and refuses addresses outside of the arguments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton.runtime.interpreter import TensorHandle

from .memory import Ranges

_TF32 = interpreter._ir.INPUT_PRECISION.TF32


class Program:
    """What the running program is told of its own atomics; `emulator` lets programs wait for one another there."""

    def arrives(self) -> None:
        """Before an atomic that releases: an arrival at a barrier."""

    def acted(self, *, polled: bool) -> None:
        """After an atomic; ``polled`` where it changed nothing."""


class Builder(interpreter.InterpreterBuilder):
    """The interpreter's operations, corrected."""

    ranges: Ranges
    program: Program

    # bfloat16 -------------------------------------------------------------------------------------------------------------------------
    def cast_impl(self, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        to = dst_type.scalar
        if to == tl.bfloat16:
            return src if src.dtype.scalar == to else TensorHandle(_narrow(super().cast_impl(src, tl.float32).data), to)
        return super().cast_impl(_wide(src), to)

    def create_fp_to_fp(self, src: TensorHandle, dst_type: tl.dtype, rounding_mode: Any) -> TensorHandle:
        if src.dtype.primitive_bitwidth > 8 and dst_type.scalar.primitive_bitwidth > 8:
            return self.cast_impl(src, dst_type)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Callable[..., Any]) -> TensorHandle:
        if lhs.dtype.scalar != tl.bfloat16:
            return super().binary_op(lhs, rhs, op)
        result = op(_wide(lhs).data, _wide(rhs).data)
        return TensorHandle(result, tl.int1) if result.dtype == np.bool_ else TensorHandle(_narrow(result), tl.bfloat16)

    def unary_op(self, arg: TensorHandle, op: Callable[..., Any]) -> TensorHandle:
        if arg.dtype.scalar != tl.bfloat16:
            return super().unary_op(arg, op)
        return TensorHandle(_narrow(op(_wide(arg).data)), tl.bfloat16)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        if z.dtype.scalar == tl.bfloat16:
            return TensorHandle(_narrow(_wide(x).data.astype(np.float64) * _wide(y).data + _wide(z).data), tl.bfloat16)
        if z.dtype.scalar == tl.float32 and not hasattr(interpreter._interpreter, "fma_fp32"):  # Triton 3.6 rounds the product too
            wide = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data
            return TensorHandle(wide.astype(np.float32), tl.float32)
        return super().create_fma(x, y, z)

    def create_dot(self, a: TensorHandle, b: TensorHandle, d: TensorHandle, input_precision: Any, *more: Any) -> TensorHandle:
        if input_precision == _TF32 and a.dtype.scalar == tl.float32:
            a, b = _tf32(a), _tf32(b)
        return super().create_dot(_wide(a), _wide(b), d, input_precision, *more)

    # memory ---------------------------------------------------------------------------------------------------------------------------
    def create_masked_load(self, ptrs: TensorHandle, mask: TensorHandle, *more: Any) -> TensorHandle:
        self.ranges.check(ptrs.data, mask.data, _bytes(ptrs), "reads")
        return super().create_masked_load(ptrs, mask, *more)

    def create_masked_store(self, ptrs: TensorHandle, value: TensorHandle, mask: TensorHandle, *more: Any) -> Any:
        self.ranges.check(ptrs.data, mask.data, _bytes(ptrs), "writes")
        return super().create_masked_store(ptrs, value, mask, *more)

    def create_atomic_rmw(self, op: Any, ptr: TensorHandle, val: TensorHandle, mask: TensorHandle, sem: Any, scope: Any) -> TensorHandle:
        self.ranges.check(ptr.data, mask.data, _bytes(ptr), "writes")
        polled = op != interpreter._ir.ATOMIC_OP.XCHG and not val.data.any()
        if not polled and sem in (interpreter._ir.MEM_SEMANTIC.RELEASE, interpreter._ir.MEM_SEMANTIC.ACQUIRE_RELEASE):
            self.program.arrives()
        result = super().create_atomic_rmw(op, ptr, val, mask, sem, scope)
        self.program.acted(polled=polled)
        return result

    def create_atomic_cas(self, ptr: TensorHandle, cmp: TensorHandle, val: TensorHandle, sem: Any, scope: Any) -> TensorHandle:
        self.ranges.check(ptr.data, np.True_, _bytes(ptr), "writes")
        result = super().create_atomic_cas(ptr, cmp, val, sem, scope)
        self.program.acted(polled=bool((result.data != cmp.data).all()))
        return result


def _bytes(ptrs: TensorHandle) -> int:
    return max(1, ptrs.get_element_ty().primitive_bitwidth // 8)


def _wide(handle: TensorHandle) -> TensorHandle:
    """bfloat16 as float32, anything else as it is."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _narrow(data: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, as its bits."""
    data = np.asarray(data, np.float32)
    bits = data.view(np.uint32)
    rounded = (bits + ((bits >> 16) & 1) + np.uint32(0x7FFF)) >> 16
    return np.where(np.isnan(data), 0x7FFF, rounded).astype(np.uint16)


def _tf32(handle: TensorHandle) -> TensorHandle:
    """Tensor cores ignore the low 13 bits of a float32."""
    return TensorHandle((handle.data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32), tl.float32)


# arguments ----------------------------------------------------------------------------------------------------------------------------
def pointer(address: int, dtype: torch.dtype) -> tl.tensor:
    """An argument that points to a tensor of that dtype."""
    kind = tl.str_to_ty(triton.runtime.jit.mangle_type(torch.empty(0, dtype=dtype)), None)
    return tl.tensor(TensorHandle(np.array([address], np.uint64), kind), kind)


def number(value: int | float) -> tl.tensor:
    """A scalar argument, typed as a launch would type it: floats are float32."""
    if isinstance(value, float):
        return tl.tensor(TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
    return interpreter._implicit_cvt(value)


# running ------------------------------------------------------------------------------------------------------------------------------
def check(kernel: Any) -> None:
    """Raises unless this process interprets, with a numpy that the interpreter can work with."""
    if not isinstance(kernel, interpreter.InterpretedFunction):
        raise RuntimeError(
            f"{getattr(kernel, '__name__', kernel)} was not made for the interpreter: set FUSEDRNN_EMULATE=1 before Triton is imported"
        )
    numpy = tuple(int(part) for part in np.__version__.split(".")[:2])
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 7) and numpy >= (2, 4):
        raise RuntimeError(f"the interpreter of Triton {triton.__version__} fails with numpy {np.__version__}: install numpy<2.4")


def prepare(kernel: Any) -> None:
    """Rewrites the kernel and what it calls as the interpreter wants them, once: programs then find them made."""
    seen: set[int] = set()
    waiting = [kernel]
    while waiting:
        function = waiting.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        function.rewrite()
        names = function.fn.__code__.co_names
        known = function.fn.__globals__
        for module in [known, *(vars(known[name]) for name in names if isinstance(known.get(name), types.ModuleType))]:
            waiting += [module[name] for name in names if isinstance(module.get(name), interpreter.InterpretedFunction)]


_patches: list[tuple[object, str, object]] = []


def _patch() -> Any:
    """Triton's own patches of its language. It looks for what to patch in every call, which takes longer than a small kernel."""
    if not _patches:
        user = types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core})  # of both: Triton's own functions go by core
        scope = interpreter._patch_lang(user)
        _patches.extend((owner, name, inspect.getattr_static(owner, name)) for owner, name, _ in scope._changes)
        return scope
    scope = interpreter._LangPatchScope()
    for owner, name, value in _patches:
        scope.set_attr(owner, name, value)
    return scope


@contextlib.contextmanager
def patched(grid: tuple[int, int], ranges: Ranges) -> Iterator[Builder]:
    """Triton's language stands for the corrected interpreter within, and for itself again after."""
    builder = interpreter.interpreter_builder
    plain, call = type(builder), interpreter.InterpretedFunction.__call__
    options = builder.options
    scope = _patch()
    try:
        builder.__class__ = Builder
        builder.options = dataclasses.replace(options, sanitize_overflow=False)  # integers wrap around, as on the device
        builder.ranges, builder.program = ranges, Program()
        builder.set_grid_dim(*grid, 1)
        interpreter.InterpretedFunction.__call__ = _call  # Triton's own patches the language again in every call
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's of NaN and infinity, which mean something in a recurrence
            yield builder
    finally:
        interpreter.InterpretedFunction.__call__ = call
        builder.__class__, builder.options = plain, options
        scope.restore()


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.rewrite()(*args, **kwargs)


def bound(kernel: Any, arguments: dict[str, Any]) -> None:
    """Raises TypeError unless the arguments are the kernel's."""
    try:
        inspect.signature(kernel.fn).bind(**arguments)
    except TypeError as error:
        raise TypeError(f"{kernel.__name__}: {error}") from None
