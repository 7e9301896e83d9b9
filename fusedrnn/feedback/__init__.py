"""loop_fns for what people write: read a sequence, decode greedily or by sampling, force targets or a prefix, search with a beam.

Each builder returns a loop_fn for `fusedrnn.raw_rnn`. Sequences are time-major: inputs ``[T, B, ...]``, targets and prefixes ``[T, B]``.
"""

from .basic_decoder import BasicDecoder
from .beam_search import BeamSearchDecoder, BeamSearchOutput, BeamSearchState, tile_beams
from .sequences import fixed_steps, sequence
from .tokens import BasicDecoderOutput, TokenLoop, forced_prefix, greedy, sample, scheduled_sampling, teacher_forcing

__all__ = [
    "BasicDecoder",
    "BasicDecoderOutput",
    "BeamSearchDecoder",
    "BeamSearchOutput",
    "BeamSearchState",
    "TokenLoop",
    "fixed_steps",
    "forced_prefix",
    "greedy",
    "sample",
    "scheduled_sampling",
    "sequence",
    "teacher_forcing",
    "tile_beams",
]
