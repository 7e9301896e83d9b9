"""The device library: what persistent loops are built of, the launcher and the emulator. In: nothing of the front end.

With ``FUSEDRNN_EMULATE=1`` in the environment at import, Triton interprets: persistent kernels then run on CPU tensors (`emulator`).
"""

import os
import sys

EMULATED = os.environ.get("FUSEDRNN_EMULATE") == "1"

if EMULATED and os.environ.get("TRITON_INTERPRET") != "1":
    if "triton.language" in sys.modules:
        raise ImportError("FUSEDRNN_EMULATE=1 must be seen before Triton is imported: import fusedrnn first, or set TRITON_INTERPRET=1 too")
    os.environ["TRITON_INTERPRET"] = "1"
