"""The cells and wrappers."""

from .protocol import RNNCell, as_cell, zero_state

__all__ = ["RNNCell", "as_cell", "zero_state"]
