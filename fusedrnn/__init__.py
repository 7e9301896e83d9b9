"""fusedrnn: a cell and a loop_fn in plain PyTorch; the whole recurrence as one loop on the device."""

from . import feedback, random
from ._version import __version__
from .cells import (
    AttentionWrapper,
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
from .decode import dynamic_decode
from .errors import PlanError
from .loop import raw_rnn
from .rnn import bidirectional_dynamic_rnn, dynamic_rnn
from .tensor_array import TensorArray

__all__ = [
    "AttentionWrapper",
    "BahdanauAttention",
    "BasicRNNCell",
    "DropoutWrapper",
    "GRUCell",
    "LSTMCell",
    "LuongAttention",
    "MultiRNNCell",
    "PlanError",
    "RNNCell",
    "ResidualWrapper",
    "TensorArray",
    "ZoneoutWrapper",
    "__version__",
    "bidirectional_dynamic_rnn",
    "dynamic_decode",
    "dynamic_rnn",
    "feedback",
    "random",
    "raw_rnn",
]
