"""fusedrnn: a cell and a loop_fn in plain PyTorch; the whole recurrence as one loop on the device."""

from ._version import __version__
from .cells import RNNCell
from .errors import PlanError
from .loop import raw_rnn
from .tensor_array import TensorArray

__all__ = ["PlanError", "RNNCell", "TensorArray", "__version__", "raw_rnn"]
