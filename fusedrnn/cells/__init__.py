"""The cells and wrappers."""

from .activations import ACTIVATIONS
from .attention import (
    AttentionMechanism,
    AttentionWrapper,
    AttentionWrapperState,
    BahdanauAttention,
    BoundAttention,
    LuongAttention,
)
from .basic import BasicRNNCell
from .dropout import DropoutWrapper
from .gru import GRUCell
from .lstm import LSTMCell
from .protocol import RNNCell, as_cell, zero_state
from .residual import ResidualWrapper
from .stack import MultiRNNCell
from .zoneout import ZoneoutWrapper

__all__ = [
    "ACTIVATIONS",
    "AttentionMechanism",
    "AttentionWrapper",
    "AttentionWrapperState",
    "BahdanauAttention",
    "BasicRNNCell",
    "BoundAttention",
    "DropoutWrapper",
    "GRUCell",
    "LSTMCell",
    "LuongAttention",
    "MultiRNNCell",
    "RNNCell",
    "ResidualWrapper",
    "ZoneoutWrapper",
    "as_cell",
    "zero_state",
]
