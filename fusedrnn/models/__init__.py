"""Models whose loops run through `fusedrnn.raw_rnn`."""

from .characters import Characters
from .encoder_decoder import EncoderDecoder
from .g2p import G2P
from .recogniser import Recogniser

__all__ = ["G2P", "Characters", "EncoderDecoder", "Recogniser"]
