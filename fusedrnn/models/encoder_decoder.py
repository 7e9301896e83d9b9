"""What `fusedrnn train g2p` trains: a bidirectional GRU encoder, and a GRU decoder with attention or without. In: words, or tokens and
their targets; out: phonemes, or logits."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import feedback
from ..cells import AttentionWrapper, BahdanauAttention, LuongAttention
from ..loop import raw_rnn
from ..result import Result
from ..rnn import reversed_rows
from ..trees import Tree
from . import files
from . import g2p_checkpoint as checkpoint
from .phonemizer import Phonemizer

ATTENTIONS = ("none", "bahdanau", "luong")
WEIGHTS = "model.safetensors"
Run = Callable[..., Result]


@dataclass(frozen=True)
class Sizes:
    """What an `EncoderDecoder` is built from.

    Attributes:
        attention: "none", "bahdanau" or "luong".
        embedding_size: E, of graphemes and of phonemes.
        hidden_size: H, of each direction of the encoder and of the decoder.
    """

    attention: str = "bahdanau"
    embedding_size: int = 128
    hidden_size: int = 256

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(map(repr, ATTENTIONS))}, got {self.attention!r}")
        for name in ("embedding_size", "hidden_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")


class Encoded(NamedTuple):
    """What the encoder made of a batch.

    Attributes:
        memory: ``[B, S, 2H]``, both directions' outputs at each grapheme, zeros past a word's end.
        lengths: ``[B]`` int64.
        state: ``[B, H]``, the decoder's first.
        executors: that ran the two directions.
    """

    memory: torch.Tensor
    lengths: torch.Tensor
    state: torch.Tensor
    executors: tuple[str, ...]


class EncoderDecoder(Phonemizer):
    """Graphemes through a GRU in both directions; phonemes from a GRU that attends to the encoder's outputs, or has its last states alone.

    Args:
        sizes: see `Sizes`.
        dropout: in [0, 1), in training mode: of the graphemes' embeddings and of the memory, element by element; of the decoder's inputs
            and outputs with one mask for all steps of a row (Gal and Ghahramani 2016). The masks come from torch's default generator,
            before the loops: no loop draws for them.
    """

    def __init__(self, sizes: Sizes | None = None, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.sizes = sizes or Sizes()
        self.dropout = dropout
        embedding, hidden = self.sizes.embedding_size, self.sizes.hidden_size
        memory = 2 * hidden
        self.grapheme_embedding = nn.Embedding(len(checkpoint.GRAPHEMES), embedding)
        self.forward_cell = nn.GRUCell(embedding, hidden)
        self.backward_cell = nn.GRUCell(embedding, hidden)
        self.bridge = nn.Linear(memory, hidden)
        self.phoneme_embedding = nn.Embedding(len(checkpoint.PHONEMES), embedding)
        self.decoder: nn.Module
        if self.sizes.attention == "none":
            self.decoder = nn.GRUCell(embedding, hidden)
        else:
            bahdanau = self.sizes.attention == "bahdanau"
            mechanism = BahdanauAttention(hidden, memory, hidden) if bahdanau else LuongAttention(hidden, memory)
            # Without alignments in the state one captured loop serves memories of every length.
            self.decoder = AttentionWrapper(
                nn.GRUCell(embedding + hidden, hidden), mechanism, attention_size=hidden, keep_alignments=False
            )  # fmt: skip
        self.project = nn.Linear(hidden, len(checkpoint.PHONEMES))

    def encode(self, graphemes: torch.Tensor, lengths: torch.Tensor, *, backend: str = "auto", run: Run = raw_rnn) -> Encoded:
        """Run the encoder over ``graphemes`` ``[S, B]`` and ``lengths`` ``[B]``, both int64, S the greatest length. ``run``: what runs a
        loop, called as `raw_rnn`."""
        inputs = self._dropped(self.grapheme_embedding(graphemes))
        start = inputs.new_zeros(len(lengths), self.sizes.hidden_size)
        onwards = run(self.forward_cell, feedback.sequence(inputs, lengths, start), scope="g2p.encode", backend=backend)
        turned = feedback.sequence(reversed_rows(inputs, lengths), lengths, start)
        backwards = run(self.backward_cell, turned, scope="g2p.encode", backend=backend)
        outputs = torch.cat((onwards.emit_ta.stack(), reversed_rows(backwards.emit_ta.stack(), lengths)), -1)
        state = torch.tanh(self.bridge(torch.cat((onwards.final_state, backwards.final_state), -1)))
        return Encoded(self._dropped(outputs.transpose(0, 1)), lengths, state, (onwards.executor, backwards.executor))

    def logits(
        self,
        encoded: Encoded,
        targets: torch.Tensor,
        lengths: torch.Tensor,
        *,
        sampling: float | torch.Tensor = 0.0,
        backend: str = "auto",
        run: Run = raw_rnn,
    ) -> torch.Tensor:
        """What the decoder says of each target, having been fed those before it.

        Args:
            encoded: the batch's.
            targets: ``[T, B]`` int64, each row with `PHONEME_END` last; T the greatest length.
            lengths: ``[B]`` int64, of the targets.
            sampling: the probability of feeding a token drawn from the logits instead of the target (scheduled sampling); its draws follow
                from torch's default generator.
            backend, run: as for `encode`.

        Returns:
            ``[T, B, V]``, zeros past a row's length.
        """
        cell, state = self._bound(encoded)
        embed, project = self._masked_embedding(encoded.state), self._masked_project(encoded.state)
        if isinstance(sampling, torch.Tensor) or sampling > 0:
            loop_fn = feedback.scheduled_sampling(
                embed, project, targets, lengths, checkpoint.PHONEME_START, state, probability=sampling
            )  # fmt: skip
        else:
            loop_fn = feedback.teacher_forcing(embed, project, targets, lengths, checkpoint.PHONEME_START, state)
        return run(cell, loop_fn, scope="g2p.decode", backend=backend).emit_ta.stack()  # type: ignore[no-any-return]

    def _phonemes(self, graphemes: torch.Tensor, lengths: torch.Tensor, backend: str) -> tuple[Result, tuple[str, ...]]:
        encoded = self.encode(graphemes, lengths, backend=backend)
        cell, state = self._bound(encoded)
        start, end, most = checkpoint.PHONEME_START, checkpoint.PHONEME_END, checkpoint.MAX_STEPS
        greedy = feedback.greedy(self.phoneme_embedding, self.project, start, end, state, most)
        return raw_rnn(cell, greedy, scope="g2p.decode", backend=backend), encoded.executors

    def _bound(self, encoded: Encoded) -> tuple[Any, Tree]:
        """The decoder's cell for this batch, and its first state."""
        if not isinstance(self.decoder, AttentionWrapper):
            return self.decoder, encoded.state
        bound = self.decoder.bind(encoded.memory, encoded.lengths)
        return bound, bound.initial_state(encoded.state)

    def _drops(self) -> bool:
        return self.training and self.dropout > 0

    def _dropped(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(values, self.dropout) if self._drops() else values

    def _masked_embedding(self, state: torch.Tensor) -> Any:
        embedding = self.phoneme_embedding
        if not self._drops():
            return embedding
        mask = self._dropped(state.new_ones(len(state), self.sizes.embedding_size))
        return lambda tokens: embedding(tokens) * mask

    def _masked_project(self, state: torch.Tensor) -> nn.Module:
        return _Masked(self.project, self._dropped(torch.ones_like(state.detach()))) if self._drops() else self.project

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the weights and sizes to ``model.safetensors`` in a directory, in place of what stood there.

        Raises:
            ModuleNotFoundError: safetensors is not installed; the message says how to install it.
            OSError: the file cannot be written.
        """
        files.save(self, asdict(self.sizes), Path(directory) / WEIGHTS, extra="train")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> EncoderDecoder:
        """The model that `save` wrote, in eval mode on the CPU.

        Raises:
            ModuleNotFoundError: safetensors is not installed; the message says how to install it.
            FileNotFoundError: there is no such file.
            ValueError: it is not what `save` writes.
        """
        missing = f"`fusedrnn train g2p --out {directory}` writes it"
        return files.load(cls, Sizes, Path(directory) / WEIGHTS, command="fusedrnn train g2p", missing=missing, extra="train")


class _Masked(nn.Module):
    """A linear layer behind a dropout mask that is given."""

    mask: torch.Tensor

    def __init__(self, linear: nn.Linear, mask: torch.Tensor) -> None:
        super().__init__()
        self.linear, self.out_features = linear, linear.out_features
        self.register_buffer("mask", mask, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.linear.weight

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.linear(values * self.mask)  # type: ignore[no-any-return]
