"""BeamSearchDecoder: the W best continuations of every row, kept until none of them can still win."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from .. import trees
from ..cells.protocol import as_cell
from ..trees import Tree
from .tokens import Embedding, Project, parts, start_tokens


class BeamSearchOutput(NamedTuple):
    """A step's choice of the beam; after `dynamic_decode`, ``tokens`` are the n best sequences, best first, and ``parents`` is empty.

    Attributes:
        tokens: ``[B, W]`` int64 a step; finally ``[B, T, N]`` (``[T, B, N]`` time-major), padded with the end token.
        parents: ``[B, W]`` int64: which hypothesis of the step before each one continues.
    """

    tokens: torch.Tensor
    parents: torch.Tensor


class BeamSearchState(NamedTuple):
    """The state of a search. Finally the ``ended`` fields hold the n best, best first; without an end: those cut off at max_steps.

    Attributes:
        cell_state: the cell's state of the live hypotheses, leaves ``[B, W, ...]``.
        log_probs: ``[B, W]``, of the live hypotheses.
        done: ``[B]`` bool: no live hypothesis can reach the n best any more.
        ended_scores: ``[B, W]`` (finally ``[B, N]``), log probability over length penalty; -inf where there is none.
        ended_log_probs: ``[B, W]`` (``[B, N]``).
        ended_lengths: ``[B, W]`` (``[B, N]``) int64, in tokens, the end token included.
        ended_beams: ``[B, W]`` (``[B, N]``) int64: its beam, before the step of its end token or after the last step where it was cut off.
        by_end: ``[B, W]`` (``[B, N]``) bool: it ended with the end token rather than at max_steps.
    """

    cell_state: Tree
    log_probs: torch.Tensor
    done: torch.Tensor
    ended_scores: torch.Tensor
    ended_log_probs: torch.Tensor
    ended_lengths: torch.Tensor
    ended_beams: torch.Tensor
    by_end: torch.Tensor


def tile_beams(tree: Tree, beam_width: int) -> Tree:
    """Every row ``beam_width`` times, ``[B, ...]`` to ``[B * beam_width, ...]``: for what the cell reads of a row, such as a memory.

    Raises:
        ValueError: ``beam_width`` is below 1.
    """
    if beam_width < 1:
        raise ValueError(f"beam_width must be at least 1, got {beam_width}")
    return trees.map_leaves(lambda leaf: leaf.repeat_interleave(beam_width, 0), tree)


class BeamSearchDecoder:
    """Beam search for `dynamic_decode`.

    A hypothesis scores ``log p / lp(length)`` with ``lp(n) = ((5 + n) / 6) ** length_penalty`` (Wu et al. 2016, section 7). Hypotheses that
    end leave the beam and are kept beside it, the W best of them. A row ends when no live hypothesis can still reach its n best,
    whatever follows (log p only falls, and the length is at most max_steps), not when the first W have ended. A hypothesis ends
    where the end token is among the W best continuations of its row; with a width of 1 and no length penalty this is `greedy`.

    Args:
        cell: as for `raw_rnn`; called on ``B * beam_width`` rows, the beams of a row side by side. What it reads of a row must be tiled:
            ``wrapper.bind(tile_beams(memory, beam_width), tile_beams(lengths, beam_width))``.
        embedding, project: as in `greedy`.
        start: the first token, one for all rows or ``[B]`` integers.
        end: the token that ends a hypothesis.
        initial_state: the cell's state at the start, leaves ``[B, ...]``, not tiled: that of a cell bound to the memory itself.
        beam_width: W, the live hypotheses a row.
        max_steps: the most tokens, the end token included; live hypotheses of that length compete too.
        length_penalty: 0 compares log probabilities; larger values favour longer sequences.
        n_best: how many sequences a row to return, at most ``beam_width``.

    Raises:
        TypeError: a number that is no int, an embedding or project that cannot be called.
        ValueError: ``beam_width``, ``max_steps``, ``n_best`` or ``end`` out of range; ``start`` unlike ``initial_state``.
    """

    tracks_own_finished = False

    def __init__(
        self,
        cell: Any,
        embedding: Embedding,
        project: Project,
        start: int | torch.Tensor,
        end: int,
        initial_state: Tree,
        *,
        beam_width: int,
        max_steps: int,
        length_penalty: float = 0.0,
        n_best: int = 1,
    ) -> None:
        for name, value in (("beam_width", beam_width), ("max_steps", max_steps), ("n_best", n_best), ("end", end)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
        if end < 0:
            raise ValueError(f"end must not be negative, got {end}")
        if not math.isfinite(length_penalty):
            raise ValueError(f"length_penalty must be finite, got {length_penalty}")
        if beam_width < 1 or max_steps < 0:
            raise ValueError(f"beam_width must be at least 1 and max_steps not negative, got {beam_width} and {max_steps}")
        if not 1 <= n_best <= beam_width:
            raise ValueError(f"n_best must lie between 1 and beam_width = {beam_width}, got {n_best}")
        self.cell = as_cell(cell)
        self.embed, self.project = parts(embedding, project)
        self.start = start_tokens(start, initial_state)
        self.initial_state = initial_state
        self.end = end
        self.beam_width = beam_width
        self.max_steps = max_steps
        self.length_penalty = length_penalty
        self.n_best = n_best
        size: Any = torch.Size((beam_width,))
        self.output_size = BeamSearchOutput(size, size)
        self.output_dtype = torch.int64

    def initialize(self) -> tuple[torch.Tensor, torch.Tensor, BeamSearchState]:
        batch, width, device = len(self.start), self.beam_width, self.start.device
        leaves = [leaf for leaf in trees.leaves(self.initial_state) if leaf.is_floating_point()]
        dtype = leaves[0].dtype if leaves else torch.get_default_dtype()
        log_probs = torch.full((batch, width), -torch.inf, dtype=dtype, device=device)
        log_probs[:, 0] = 0  # the beams start alike: only one of them is a hypothesis
        none = torch.zeros((batch, width), dtype=torch.int64, device=device)
        state = BeamSearchState(
            cell_state=trees.map_leaves(lambda leaf: leaf.unsqueeze(1).expand(-1, width, *leaf.shape[1:]), self.initial_state),
            log_probs=log_probs,
            done=torch.full((batch,), self.max_steps == 0, device=device),
            ended_scores=torch.full_like(log_probs, -torch.inf),
            ended_log_probs=torch.full_like(log_probs, -torch.inf),
            ended_lengths=none,
            ended_beams=none,
            by_end=none.bool(),
        )
        return state.done, self._inputs(self.start.unsqueeze(1).expand(batch, width)), state

    def step(
        self, time: torch.Tensor, inputs: torch.Tensor, state: BeamSearchState
    ) -> tuple[BeamSearchOutput, BeamSearchState, torch.Tensor, torch.Tensor]:
        batch, width = state.log_probs.shape
        flat = trees.map_leaves(lambda leaf: leaf.flatten(0, 1), state.cell_state)
        output, cell_state = self.cell(inputs.flatten(0, 1), flat)
        logits = self.project(output)
        # Where every continuation is forbidden, log_softmax says NaN.
        gains = logits.log_softmax(-1).masked_fill(logits.isneginf().all(-1, keepdim=True), -torch.inf)
        totals = state.log_probs.unsqueeze(-1) + gains.reshape(batch, width, -1).to(state.log_probs)
        vocabulary = totals.shape[-1]
        if self.end >= vocabulary:
            raise ValueError(f"end is {self.end}, the logits have {vocabulary} tokens")
        length = time + 1

        is_end = torch.arange(vocabulary, device=totals.device) == self.end
        live = totals.masked_fill(is_end, -torch.inf).flatten(1)
        log_probs, chosen = live.topk(width, -1) if vocabulary > 1 else (live, live.to(torch.int64).zero_())
        parents, tokens = chosen // vocabulary, chosen % vocabulary

        # The end token counts where it is among the W best continuations of the row, as any other token must be.
        least = totals.flatten(1).topk(min(width, width * vocabulary), -1).values[:, -1:]
        ends = totals[..., self.end]
        ended = self._merged(state, ends.masked_fill(ends < least, -torch.inf), length, by_end=True)
        over = length >= self.max_steps
        cut = self._merged(ended, log_probs, length, by_end=False)
        ended = [torch.where(over, a, b) for a, b in zip(cut, ended, strict=True)]
        # The longest sequence has the smallest penalty where the penalty grows with length, else the next one has.
        hope = log_probs[:, 0] / self._penalty(torch.full_like(length, self.max_steps) if self.length_penalty >= 0 else length + 1)
        done = state.done | over | (hope <= ended[0][:, self.n_best - 1])

        before = state.done.unsqueeze(1)
        next_state = BeamSearchState(
            trees.map_leaves(lambda leaf: _of_beams(leaf.unflatten(0, (batch, width)), parents), cell_state),
            torch.where(before, state.log_probs, log_probs),
            done,
            *[torch.where(before, old, new) for old, new in zip(state[3:], ended, strict=True)],
        )
        return BeamSearchOutput(tokens, parents), next_state, self._inputs(tokens), done

    def finalize(
        self, outputs: BeamSearchOutput, state: BeamSearchState, lengths: torch.Tensor
    ) -> tuple[BeamSearchOutput, BeamSearchState]:
        """Trace the n best back through their parents. ``outputs`` are time-major ``[T, B, W]``."""
        # Rows that dynamic_decode's maximum_iterations stopped before max_steps: what is live is cut off there.
        length = torch.full_like(state.ended_lengths[:, :1], len(outputs.tokens))
        cut = self._merged(state, state.log_probs, length, by_end=False)
        state = BeamSearchState(*state[:3], *[torch.where(state.done.unsqueeze(1), a, b) for a, b in zip(state[3:], cut, strict=True)])
        best = BeamSearchState(*state[:3], *[leaf[:, : self.n_best] for leaf in state[3:]])
        beams, last = best.ended_beams, best.ended_lengths - 1 - best.by_end.to(torch.int64)
        found = []
        for step in reversed(range(len(outputs.tokens))):
            within = step <= last
            found.append(torch.where(within, outputs.tokens[step].gather(1, beams), self.end))
            beams = torch.where(within, outputs.parents[step].gather(1, beams), beams)
        tokens = torch.stack(found[::-1]) if found else outputs.tokens[..., : self.n_best]
        return BeamSearchOutput(tokens, tokens[..., :0]), best

    def _merged(self, state: Any, log_probs: torch.Tensor, length: torch.Tensor, *, by_end: bool) -> list[torch.Tensor]:
        """The ``ended`` fields with the W best of what had ended and of every beam's hypothesis ``[B, W]`` as it ends now."""
        held = list(state[3:] if isinstance(state, BeamSearchState) else state)
        beams = torch.arange(self.beam_width, device=log_probs.device).expand_as(log_probs)
        now = (
            log_probs / self._penalty(length),
            log_probs,
            torch.zeros_like(beams) + length,
            beams,
            torch.full_like(beams, by_end, dtype=torch.bool),
        )
        joined = [torch.cat(pair, 1) for pair in zip(held, now, strict=True)]
        best = joined[0].sort(dim=-1, descending=True, stable=True).indices[:, : self.beam_width]
        return [leaf.gather(1, best) for leaf in joined]

    def _penalty(self, length: torch.Tensor) -> torch.Tensor:
        return ((5.0 + length.to(torch.float64)) / 6.0) ** self.length_penalty

    def _inputs(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.embed(tokens.flatten())
        return embedded.reshape(*tokens.shape, *embedded.shape[1:])


def _of_beams(leaf: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """A state leaf ``[B, W, ...]`` with each row's beams reordered by ``parents`` ``[B, W]``."""
    return leaf[torch.arange(parents.shape[0], device=parents.device).unsqueeze(1), parents]
