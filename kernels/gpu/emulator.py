"""Runs a kernel on a CPU. In: an interpreted kernel, CPU tensors; out: the tensors as a device would leave them, barriers included.

One forked process a program of a group, over shared memory; group after group, because groups never synchronise. A group of one
program waits for nobody and runs in the calling process, on the tensors themselves.
"""

from __future__ import annotations

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
        timeout: seconds for one group; a group of one program has no limit.

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
        with interpreter.patched(kernel, grid, ranges) as builder:
            for group in range(grid[1]):

                def program(column: int, group: int = group) -> None:
                    builder.set_grid_idx(column, group, 0)
                    kernel.rewrite()(**ready, **constants)

                if alone:
                    _here(program, kernel.__name__, group)
                    continue
                places = [(column, group) for column in range(grid[0])]
                _fork(
                    [_Child(place, os.getpid(), delay, seed, place == kill, len(places)) for place in places],
                    builder,
                    program,
                    kernel.__name__,
                    time.monotonic() + timeout,
                )
        if not alone:
            for name in outputs:
                tensors[name].copy_(used[name])


def _here(program: Callable[[int], None], name: str, group: int) -> None:
    try:
        program(0)
    except Exception as error:
        raise RuntimeError(f"{name}, program (0, {group}): {type(error).__name__}: {error}") from error


class _Killed(BaseException):
    """Ends a program at its first arrival."""


class _Child(interpreter.Program):
    """A program in a process of its own, and its manners at atomics."""

    def __init__(self, place: tuple[int, int], parent: int, delay: float, seed: int, killed: bool, programs: int) -> None:
        self.place, self._parent, self._delay, self._killed = place, parent, delay, killed
        self._random = random.Random(hash((seed, *place)))
        self._slow = delay > 0 and self._random.random() < max(0.4, 1.0 / programs)
        self._polls = 0

    def arrives(self) -> None:
        if self._killed:
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


def _fork(children: list[_Child], builder: interpreter.Builder, program: Callable[[int], None], name: str, deadline: float) -> None:
    """Runs the children, each in a process of its own; returns when all have ended well."""
    _flush()
    running: dict[int, tuple[int, _Child]] = {}  # by the pipe on which the child tells what went wrong; it closes when the child ends
    told: dict[int, bytes] = {}
    poll = select.poll()
    try:
        for child in children:
            read, write = os.pipe()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child touches nothing that they may hold
                process = os.fork()
            if process == 0:
                _child(child, builder, program, write)
            os.close(write)
            running[read] = process, child
            told[read] = b""
            poll.register(read, select.POLLIN)
        while running:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                places = sorted(child.place for _, child in running.values())
                raise TimeoutError(f"{name}: no end in the time given: programs {places} still ran")
            for read, _ in ready:
                if text := os.read(read, 1 << 16):
                    told[read] += text
                    continue
                poll.unregister(read)
                os.close(read)
                process, child = running.pop(read)
                status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                if status:
                    how = told[read].decode(errors="replace") or (f"ended by signal {-status}" if status < 0 else f"exit status {status}")
                    raise RuntimeError(f"{name}, program {child.place} failed:\n{how}")
    finally:
        for process, _ in running.values():
            os.kill(process, signal.SIGKILL)
        for read, (process, _) in running.items():
            os.waitpid(process, 0)
            os.close(read)


def _child(child: _Child, builder: interpreter.Builder, program: Callable[[int], None], write: int) -> NoReturn:
    status = 1
    try:
        torch.set_num_threads(1)  # the threads of the parent's pools are not here
        np.seterr(all="ignore")
        builder.program = child
        program(child.place[0])
        status = 0
    except _Killed:
        status = 0
    except BaseException:
        os.write(write, traceback.format_exc()[-30000:].encode())
    finally:
        _flush()
        os._exit(status)  # nothing of the parent's is cleaned up: it is the parent's


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
