"""Grapheme to phoneme: words in, their pronunciations in ARPAbet out. A GRU encoder-decoder, both loops written for `raw_rnn`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..loop import raw_rnn
from ..result import Result
from . import g2p_checkpoint as checkpoint
from .phonemizer import Phonemizer


class G2P(Phonemizer):
    """The GRU encoder-decoder of the package g2p-en, greedy, at most 20 phonemes a word.

    ``G2P()`` has random weights; `pretrained` has the published ones.
    """

    def __init__(self, embedding_size: int = checkpoint.EMBEDDING_SIZE, hidden_size: int = checkpoint.HIDDEN_SIZE) -> None:
        super().__init__()
        self.grapheme_embedding = nn.Embedding(len(checkpoint.GRAPHEMES), embedding_size)
        self.encoder = nn.GRUCell(embedding_size, hidden_size)
        self.phoneme_embedding = nn.Embedding(len(checkpoint.PHONEMES), embedding_size)
        self.decoder = nn.GRUCell(embedding_size, hidden_size)
        self.project = nn.Linear(hidden_size, len(checkpoint.PHONEMES))

    @classmethod
    def pretrained(cls) -> G2P:
        """The model with the weights that the package g2p-en ships, in float32 on the CPU.

        Raises:
            ModuleNotFoundError: g2p-en is not installed; the message says how to install it.
            FileNotFoundError, ValueError: its checkpoint is not there, or not as it should be.
        """
        arrays = checkpoint.arrays()
        model = cls().eval()
        model.load_state_dict({ours: torch.from_numpy(arrays[theirs]) for ours, theirs in _CHECKPOINT_NAMES.items()})
        return model

    def _phonemes(self, graphemes: torch.Tensor, lengths: torch.Tensor, backend: str) -> tuple[Result, tuple[str, ...]]:
        encoded = self._encoded(graphemes, lengths, backend)
        return self._tokens(encoded.final_state, backend), (encoded.executor,)

    def encode(self, graphemes: torch.Tensor, lengths: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        """The encoder's last state ``[B, H]`` of each word, from ``graphemes`` ``[T, B]`` and ``lengths`` ``[B]``, both int64."""
        return self._encoded(graphemes, lengths, backend).final_state  # type: ignore[no-any-return]

    def _encoded(self, graphemes: torch.Tensor, lengths: torch.Tensor, backend: str) -> Result:
        encoder, embedding = self.encoder, self.grapheme_embedding  # not self: loop_fn uses these parts alone
        initial_state = embedding.weight.new_zeros(len(lengths), encoder.hidden_size)

        def loop_fn(time: torch.Tensor, output: Any, state: Any, loop_state: Any) -> Any:
            next_state = initial_state if state is None else state
            return time >= lengths, embedding(graphemes[time]), next_state, (), None  # only the last state counts: nothing is emitted

        return raw_rnn(encoder, loop_fn, scope="g2p.encode", backend=backend)

    def decode(self, initial_state: torch.Tensor, backend: str = "auto") -> torch.Tensor:
        """The most likely phoneme at each step, ``[T_run, B]`` int64; 0 after a word's end. From the encoder's state ``[B, H]``."""
        return self._tokens(initial_state, backend).emit_ta.stack()  # type: ignore[no-any-return]

    def _tokens(self, initial_state: torch.Tensor, backend: str) -> Result:
        embedding, project = self.phoneme_embedding, self.project
        start, end, most = checkpoint.PHONEME_START, checkpoint.PHONEME_END, checkpoint.MAX_STEPS

        def loop_fn(time: torch.Tensor, output: Any, state: Any, loop_state: Any) -> Any:
            if output is None:
                first = initial_state.new_full(initial_state.shape[:1], start, dtype=torch.int64)
                return False, embedding(first), initial_state, torch.zeros((), dtype=torch.int64), None
            token = project(output).argmax(-1)
            return (token == end) | (time >= most), embedding(token), state, token, None

        return raw_rnn(self.decoder, loop_fn, scope="g2p.decode", backend=backend)


_CHECKPOINT_NAMES = {
    "grapheme_embedding.weight": "enc_emb",
    "encoder.weight_ih": "enc_w_ih",
    "encoder.weight_hh": "enc_w_hh",
    "encoder.bias_ih": "enc_b_ih",
    "encoder.bias_hh": "enc_b_hh",
    "phoneme_embedding.weight": "dec_emb",
    "decoder.weight_ih": "dec_w_ih",
    "decoder.weight_hh": "dec_w_hh",
    "decoder.bias_ih": "dec_b_ih",
    "decoder.bias_hh": "dec_b_hh",
    "project.weight": "fc_w",
    "project.bias": "fc_b",
}
