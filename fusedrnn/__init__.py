"""fusedrnn: TensorFlow's raw_rnn for PyTorch. A recurrence is a cell and a loop_fn; `raw_rnn` runs it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import feedback, nn, random
from ._version import __version__
from .cells import (
    AttentionWrapper,
    AttentionWrapperState,
    BahdanauAttention,
    BasicRNNCell,
    DropoutWrapper,
    GRUCell,
    LSTMCell,
    LuongAttention,
    MultiRNNCell,
    ResidualWrapper,
    RNNCell,
    ZoneoutWrapper,
)
from .checkpoints import checkpointed
from .decode import dynamic_decode
from .errors import PlanError
from .fallback import fallbacks
from .loop import raw_rnn
from .rnn import bidirectional_dynamic_rnn, dynamic_rnn
from .tensor_array import TensorArray

if TYPE_CHECKING:
    from .compiled import Loop, compile
    from .explanation import Explanation, explain
    from .quantization import quantize

__all__ = [
    "AttentionWrapper",
    "AttentionWrapperState",
    "BahdanauAttention",
    "BasicRNNCell",
    "DropoutWrapper",
    "Explanation",
    "GRUCell",
    "LSTMCell",
    "Loop",
    "LuongAttention",
    "MultiRNNCell",
    "PlanError",
    "RNNCell",
    "ResidualWrapper",
    "TensorArray",
    "ZoneoutWrapper",
    "__version__",
    "bidirectional_dynamic_rnn",
    "checkpointed",
    "compile",
    "dynamic_decode",
    "dynamic_rnn",
    "explain",
    "fallbacks",
    "feedback",
    "nn",
    "quantize",
    "random",
    "raw_rnn",
]

_LATER = {
    "Loop": ".compiled",
    "compile": ".compiled",
    "Explanation": ".explanation",
    "explain": ".explanation",
    "quantize": ".quantization",
}  # a second to import


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_LATER[name], __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
