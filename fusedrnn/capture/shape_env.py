"""Torch's record of symbolic sizes. In: nothing; out: a `ShapeEnv` that keeps no stack traces."""

from __future__ import annotations

from typing import Any

from torch._guards import SLoc
from torch.fx.experimental.symbolic_shapes import ShapeEnv


class SilentShapeEnv(ShapeEnv):
    """Its symbols and guards do not note where they were made: to tell torch's own frames from the user's, for messages that no one sees,
    torch would import its exporter, which takes half a second."""

    def _get_stack_summary(self, is_debug: bool = False, framework_loc: Any = None) -> tuple[SLoc, str]:
        return SLoc(framework_loc, None), ""
