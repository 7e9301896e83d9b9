"""Values of a device that the host learns without waiting for what is launched after them. In: a tensor; out: a look at it."""

from __future__ import annotations

import torch


class Look:
    """The values that a tensor has after all that has been launched on the current stream.

    Args:
        status: an int32 tensor.
    """

    def __init__(self, status: torch.Tensor) -> None:
        on_device = status.device.type != "cpu"
        self._arrived = torch.empty(status.shape, dtype=status.dtype, pin_memory=on_device)
        self._arrived.copy_(status, non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if on_device:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def ready(self) -> bool:
        """Whether `read` would not wait."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def read(self) -> list[int]:
        if self._event is not None:
            self._event.synchronize()
        return self._arrived.tolist()
