"""fusedrnn: TensorFlow's raw_rnn for PyTorch. A recurrence is a cell and a loop_fn; `raw_rnn` runs it."""

from . import feedback, random
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
from .compiled import Loop, compile
from .decode import dynamic_decode
from .errors import PlanError
from .explanation import Explanation, explain
from .fallback import fallbacks
from .loop import raw_rnn
from .rnn import bidirectional_dynamic_rnn, dynamic_rnn
from .tensor_array import TensorArray

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
    "compile",
    "dynamic_decode",
    "dynamic_rnn",
    "explain",
    "fallbacks",
    "feedback",
    "random",
    "raw_rnn",
]
