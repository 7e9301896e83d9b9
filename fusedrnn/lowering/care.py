"""Sources that a compiler gets wrong. In: the C++ of a loop; out: the same, with the flags that it needs."""

from __future__ import annotations

import re

from ..kernels.cpu import build

_LOOP = r"for \(int64_t i\d+ = 0; i\d+ < \d+; \+\+i\d+\) \{\s+"
_BY_SIZE = re.compile(r"\(s\d+\) \? ")  # the same for all elements: no mask
_CHOICES = re.compile(rf"{_LOOP}(?:#pragma GCC ivdep\s+)?{_LOOP}[^\n]* \? ")


def compiled_with_care(text: str) -> str:
    """The source with flags against a fault of GCC 12.2: it miscompiles ``mask ? a : b`` in nested loops of few, known iterations.

    Seen in two of 300 random programs, gone with the flag, with which loops over activations are not vectorised.
    """
    return f"{build.FLAGS_LINE}-fno-tree-forwprop\n{text}" if _CHOICES.search(_BY_SIZE.sub("", text)) else text
