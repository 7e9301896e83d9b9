"""Models whose loops run through `fusedrnn.raw_rnn`."""

from .encoder_decoder import EncoderDecoder
from .g2p import G2P

__all__ = ["G2P", "EncoderDecoder"]
