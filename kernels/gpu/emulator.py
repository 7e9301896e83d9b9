"""Runs a kernel on a CPU. In: an interpreted kernel, CPU tensors; out: the tensors as a device would leave them, barriers included.

One forked process a column of programs, over shared memory: group after group, because groups never synchronise. A program that is alone
in its group waits for nobody and runs in the calling process, on the tensors themselves.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from . import interpreter
from .memory import Ranges, extent, share

_launching = threading.Lock()  # the interpreter's state is the process's


def run(
    kernel: Any,
    grid: tuple[int, int],
    arguments: dict[str, torch.Tensor | int | float],
    constants: dict[str, object],
    *,
    outputs: Sequence[str],
    delay: float = 0.0,
    seed: int = 0,
    kill: tuple[int, int] | None = None,
    timeout: float = 60.0,
) -> None:
    """Runs every program of a grid to its end.

    Args:
        kernel: a function under ``@triton.jit`` of a process with FUSEDRNN_EMULATE=1.
        grid: programs of a group, groups: the ranges of ``tl.program_id(0)`` and ``tl.program_id(1)``.
        arguments: by name; tensors on the CPU are passed as pointers. More than one program works on copies of them.
        constants: by name, the kernel's ``tl.constexpr`` parameters.
        outputs: the tensors among the arguments that are to hold what the kernel wrote; others may or may not.
        delay: where positive, programs chosen by ``seed`` sleep up to this many seconds at atomics, to shake out races.
        kill: a program (column, group) that ends at its first arrival at a barrier, without arriving.
        timeout: seconds; groups of one program have no limit.

    Raises:
        RuntimeError: Triton does not interpret here, or a program failed: its traceback is in the message.
        TimeoutError: programs were still running after ``timeout`` seconds; they are ended.
        TypeError, ValueError: the arguments are not the kernel's, or a tensor is not on the CPU.
    """
    interpreter.check(kernel)
    interpreter.bound(kernel, arguments | constants)
    tensors = {name: value.detach() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} is on {tensor.device}; the emulator takes CPU tensors")
    if unknown := [name for name in outputs if name not in tensors]:
        raise ValueError(f"outputs {unknown} are not among the tensors {list(tensors)}")
    alone = grid[0] == 1 and not delay and kill is None
    with _launching:
        interpreter.prepare(kernel)
        used = tensors if alone else share(tensors)
        ready = {
            name: interpreter.pointer(used[name].data_ptr(), value.dtype) if isinstance(value, torch.Tensor) else interpreter.number(value)
            for name, value in arguments.items()
        }
        ranges = Ranges((tensor.data_ptr(), tensor.data_ptr() + extent(tensor), name) for name, tensor in used.items())
        with interpreter.patched(grid, ranges) as builder:

            def program(place: tuple[int, int]) -> None:
                builder.set_grid_idx(*place, 0)
                kernel.rewrite()(**ready, **constants)

            if alone:
                for group in range(grid[1]):
                    _here(program, (0, group), kernel.__name__)
            else:
                columns = [_Column(column, grid, os.getpid(), delay, seed, kill) for column in range(grid[0])]
                _fork(columns, builder, program, kernel.__name__, time.monotonic() + timeout)
        if not alone:
            for name in outputs:
                tensors[name].copy_(used[name])


def _here(program: Callable[[tuple[int, int]], None], place: tuple[int, int], name: str) -> None:
    try:
        program(place)
    except Exception as error:
        raise RuntimeError(f"{name}, program {place}: {type(error).__name__}: {error}") from error


class _Killed(BaseException):
    """Ends a program at its first arrival."""


class _Column(interpreter.Program):
    """The programs of one column, in a process of their own, and their manners at atomics."""

    def __init__(self, column: int, grid: tuple[int, int], parent: int, delay: float, seed: int, kill: tuple[int, int] | None) -> None:
        self._parent, self._delay, self._kill = parent, delay, kill
        self.places = [(column, group) for group in range(grid[1])]
        self.place = self.places[0]
        self._random = random.Random(f"{seed} {column}")
        self._chance = max(0.4, 1.0 / grid[0])
        self._slow = False
        self._polls = 0

    def starts(self, place: tuple[int, int]) -> None:
        self.place = place
        self._slow = self._delay > 0 and self._random.random() < self._chance

    def arrives(self) -> None:
        if self.place == self._kill:
            raise _Killed
        self._perhaps_sleep(0.5)

    def acted(self, *, polled: bool) -> None:
        self._polls = self._polls + 1 if polled else 0
        if polled:
            self._wait()
        self._perhaps_sleep(0.1 if polled else 0.5)

    def _wait(self) -> None:
        """Few cores, many programs: who waits lets the others run."""
        if self._polls <= 3:
            os.sched_yield()
            return
        time.sleep(min(1e-5 * self._polls, 5e-4))
        if self._polls % 64 == 0 and os.getppid() != self._parent:
            os._exit(1)

    def _perhaps_sleep(self, chance: float) -> None:
        if self._slow and self._random.random() < chance:
            time.sleep(self._random.uniform(0, self._delay))


def _fork(
    columns: list[_Column], builder: interpreter.Builder, program: Callable[[tuple[int, int]], None], name: str, deadline: float
) -> None:
    """Runs each column in a process of its own; returns when all have ended well."""
    _flush()
    running: dict[int, tuple[int, _Column]] = {}  # by the pipe on which a child tells what went wrong; it closes when the child ends
    told: dict[int, bytes] = {}
    poll = select.poll()
    try:
        for column in columns:
            read, write = os.pipe()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child touches nothing that they may hold
                process = os.fork()
            if process == 0:
                _child(column, builder, program, write)
            os.close(write)
            running[read] = process, column
            told[read] = b""
            poll.register(read, select.POLLIN)
        while running:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                late = sorted(column.places[0][0] for _, column in running.values())
                raise TimeoutError(f"{name}: programs of columns {late} still ran at the end of the time given")
            for read, _ in ready:
                if text := os.read(read, 1 << 16):
                    told[read] += text
                    continue
                poll.unregister(read)
                os.close(read)
                process, column = running.pop(read)
                status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                if status:
                    how = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
                    how = told[read].decode(errors="replace") or f" of column {column.places[0][0]} {how}"
                    raise RuntimeError(f"{name}, program{how}")
    finally:
        for process, _ in running.values():
            os.kill(process, signal.SIGKILL)
        for read, (process, _) in running.items():
            os.waitpid(process, 0)
            os.close(read)


def _child(column: _Column, builder: interpreter.Builder, program: Callable[[tuple[int, int]], None], write: int) -> NoReturn:
    status = 1
    try:
        gc.disable()  # what the parent left to collect is the parent's
        torch.set_num_threads(1)  # the threads of the parent's pools are not here
        np.seterr(all="ignore")
        builder.program = column
        for place in column.places:
            column.starts(place)
            with contextlib.suppress(_Killed):
                program(place)
        status = 0
    except BaseException:
        os.write(write, f" {column.place} failed:\n{traceback.format_exc()[-30000:]}".encode())
    finally:
        _flush()
        os._exit(status)  # nothing of the parent's is cleaned up


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
