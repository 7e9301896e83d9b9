"""Launches a persistent kernel. In: a kernel, its grid, arguments and options; out: the tensors as the kernel leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


class Refused(RuntimeError):
    """The driver did not start a launch, which leaves all as it was."""


@dataclass(frozen=True)
class Options:
    """How a kernel is compiled.

    Attributes:
        warps: of a program.
        stages: of a pipelined loop.
        maxnreg: the most registers a thread; None leaves it to the compiler.
    """

    warps: int = 4
    stages: int = 1
    maxnreg: int | None = None


@dataclass
class Emulation:
    """How the emulator runs kernels, for tests: the arguments of `emulator.run` of these names."""

    delay: float = 0.0
    seed: int = 0
    kill: tuple[int, int] | None = None
    launches: int = field(default=0, compare=False)  # that it has run


emulation = Emulation()
POLLS = 1 << 26  # of a barrier until it is given up: tens of seconds on a device
_POLLS_EMULATED = 1 << 14


def launch(
    kernel: Any,
    grid: tuple[int, int],
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, int],
    precision: str,
    options: Options,
    *,
    outputs: Sequence[str],
) -> None:
    """Run a kernel on the device of its tensors, on the current stream; tensors on the CPU are emulated.

    All programs of the grid have to be on the device at once: a cooperative launch, which the driver refuses where they do not fit.

    Raises:
        Refused: by the driver.
    """
    arguments: dict[str, Any] = {name: _as_stored(tensor) for name, tensor in tensors.items()} | dict(numbers)
    if next(iter(tensors.values())).device.type == "cpu":
        from . import emulator

        emulation.launches += 1
        arguments["limit"] = _POLLS_EMULATED
        emulator.run(
            kernel, grid, arguments, {"ASM": False, "PREC": precision}, outputs=outputs,
            delay=emulation.delay, seed=emulation.seed, kill=emulation.kill,
        )  # fmt: skip
        return
    arguments["limit"] = POLLS
    more = {} if options.maxnreg is None else {"maxnreg": options.maxnreg}
    try:
        with torch.cuda.device(next(iter(tensors.values())).device):
            kernel[(*grid, 1)](
                **arguments, ASM=True, PREC=precision, num_warps=options.warps, num_stages=options.stages,
                launch_cooperative_grid=grid[0] > 1, **more,
            )  # fmt: skip
    except Exception as error:
        if not _is_refusal(error):
            raise
        raise Refused(f"the driver refuses {grid[0]} x {grid[1]} programs at once: {error}") from error


def _is_refusal(error: Exception) -> bool:
    """Whether it is a launch that did not fit, which leaves the device as it was: Triton tells that by its text, or its name."""
    return type(error).__name__ == "OutOfResources" or any(sign in str(error) for sign in ("cooperative launch", "resources"))


def _as_stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
