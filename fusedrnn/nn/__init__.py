"""torch.nn's recurrent modules on fusedrnn's loops. In: sequences and states as torch.nn takes them; out: what torch.nn gives.

`LSTM`, `GRU` and `RNN` have the arguments, attributes, parameters, ``state_dict`` keys, initial values and results of their namesakes in
``torch.nn``, and beside those layer normalisation, zoneout, lengths that stay on the device, resets within a sequence, per-sample
gradients and a place in ``torch.compile(fullgraph=True)``.
"""

from .gru import GRU
from .lstm import LSTM
from .rnn import RNN

__all__ = ["GRU", "LSTM", "RNN"]
