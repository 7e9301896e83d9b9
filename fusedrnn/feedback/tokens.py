"""Token loops: a step's logits become a token, the token's embedding the next input.

A `TokenLoop` is made of four plain parts: ``project`` (output -> logits), ``pick`` (logits -> token), ``feed`` (token -> the token
that is fed back) and ``ends`` (token -> finished). The builders below only choose the parts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .. import frames, random, trees
from ..trees import Tree
from .sequences import checked_lengths, time_and_batch

Embedding = nn.Embedding | torch.Tensor | Callable[[torch.Tensor], torch.Tensor]
Project = Callable[[torch.Tensor], torch.Tensor] | None
Part = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class BasicDecoderOutput(NamedTuple):
    """The emit of a token loop with ``emit="both"``.

    Attributes:
        rnn_output: ``[B, V]``, the logits (the cell's output where there is no project).
        sample_id: ``[B]`` int64, the tokens.
    """

    rnn_output: torch.Tensor
    sample_id: torch.Tensor


@dataclass(frozen=True, repr=False)
class TokenLoop:
    """A loop_fn that feeds tokens back; also what `forced_prefix` and `BasicDecoder` take apart.

    Attributes:
        embed: tokens ``[B]`` int64 -> the cell's inputs ``[B, E]``.
        project: the cell's output ``[B, H]`` -> logits ``[B, V]``.
        pick: (time, logits) -> tokens ``[B]``; ``time`` is the number of steps done, 1 after the first.
        feed: (time, tokens) -> the tokens to embed as the next input.
        ends: (time, tokens) -> the rows that are finished after this step, bool ``[B]`` or one bool.
        start: ``[B]`` int64, the token whose embedding is the first input.
        initial_state: the cell's state at the start.
        emit: "tokens", "logits" or "both".
        example: the time-0 emit for that choice.
    """

    embed: Callable[[torch.Tensor], torch.Tensor]
    project: Callable[[torch.Tensor], torch.Tensor]
    pick: Part
    feed: Part
    ends: Part
    start: torch.Tensor
    initial_state: Tree
    emit: str
    example: Tree

    def __repr__(self) -> str:
        return f"TokenLoop({len(self.start)} rows, emit={self.emit!r})"

    def __call__(self, time: torch.Tensor, output: Any, state: Any, loop_state: Any) -> tuple[Any, Any, Any, Any, Any]:
        if output is None:
            return self.ends(time, torch.full_like(self.start, -1)), self.embed(self.start), self.initial_state, self.example, None
        logits = self.project(output)
        tokens = self.pick(time, logits)
        emit = tokens if self.emit == "tokens" else logits if self.emit == "logits" else BasicDecoderOutput(logits, tokens)
        return self.ends(time, tokens), self.embed(self.feed(time, tokens)), state, emit, None


def greedy(
    embedding: Embedding,
    project: Project,
    start: int | torch.Tensor,
    end: int | None,
    initial_state: Tree,
    max_steps: int | None = None,
    *,
    emit: str = "tokens",
) -> TokenLoop:
    """Feed the most probable token back; of equal logits the one with the lowest index.

    Past a row's end the emitted tokens are 0, which may be a token too: ``lengths`` of the emits tells them apart.

    Args:
        embedding: an ``nn.Embedding``, a table ``[V, E]`` or a function from tokens ``[B]`` int64 to inputs ``[B, E]``.
        project: from the cell's output ``[B, H]`` to logits ``[B, V]``, such as an ``nn.Linear``; None if they are the same.
        start: the first token: one for all rows, or ``[B]`` integers.
        end: the token that ends a row, in the step that picks it (which is emitted); None: only ``max_steps`` ends it.
        initial_state: the cell's state at the start, leaves ``[B, ...]``.
        max_steps: the most steps a row takes; None sets no bound here.
        emit: "tokens" (int64 ``[B]`` a step), "logits" (``[B, V]``) or "both" (a `BasicDecoderOutput`).

    Raises:
        TypeError: ``start`` or ``end`` is no integer.
        ValueError: ``start`` has another batch size than ``initial_state``; neither ``end`` nor ``max_steps`` is given; a bad ``emit``.
    """
    return _token_loop(embedding, project, start, initial_state, emit, _most_probable, _as_picked, _ends(end, max_steps))


def sample(
    embedding: Embedding,
    project: Project,
    start: int | torch.Tensor,
    end: int | None,
    initial_state: Tree,
    max_steps: int | None = None,
    *,
    temperature: float | torch.Tensor = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | torch.Tensor | None = None,
    emit: str = "tokens",
) -> TokenLoop:
    """Feed a token back that is drawn from the softmax of the logits, by Gumbel-max with counter-based draws.

    Args (besides those of `greedy`):
        temperature: the logits are divided by it; one number or ``[B]``. 0 takes the most probable token.
        top_k: draw among the k most probable tokens (and those that tie with the last of them).
        top_p: draw among the fewest tokens whose probabilities, after temperature and top_k, add up to at least this.
        seed: one int, from which and the row's index each row's seed follows, or ``[B]`` int64 row seeds. The same seed draws the same
            tokens, whatever the batch. None takes a fresh one for each loop, which ``torch.manual_seed`` decides.

    Raises:
        ValueError: besides those of `greedy`, a negative temperature, ``top_k < 1``, or ``top_p`` outside (0, 1].
    """
    pick = _sampler(temperature, top_k, top_p, seed)
    return _token_loop(embedding, project, start, initial_state, emit, pick, _as_picked, _ends(end, max_steps))


def teacher_forcing(
    embedding: Embedding,
    project: Project,
    targets: torch.Tensor,
    lengths: torch.Tensor | None,
    start: int | torch.Tensor,
    initial_state: Tree,
    *,
    emit: str = "logits",
) -> TokenLoop:
    """Feed the target back, whatever the logits say: step t sees ``targets[t - 1]`` and should predict ``targets[t]``.

    The loop ends with its longest row, so the logits are ``[T_run, B, V]`` with T_run the largest length: compare them with
    ``targets[:len(logits)]``.

    Args (besides those of `greedy`):
        targets: ``[T, B]`` integers.
        lengths: ``[B]`` integers: how many targets each row has. None: all rows have T.
        emit: with "tokens" or "both", the most probable tokens.

    Raises:
        TypeError, ValueError: as `greedy`; ``targets`` is not ``[T, B]`` integers or ``lengths`` not ``[B]``.
    """
    feed, ends = _targets(targets, lengths)
    return _token_loop(embedding, project, start, initial_state, emit, _most_probable, feed, ends)


def scheduled_sampling(
    embedding: Embedding,
    project: Project,
    targets: torch.Tensor,
    lengths: torch.Tensor | None,
    start: int | torch.Tensor,
    initial_state: Tree,
    *,
    probability: float | torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    seed: int | torch.Tensor | None = None,
    emit: str = "logits",
) -> TokenLoop:
    """Feed the target back, or with some probability a token drawn from the logits (Bengio et al. 2015).

    Args (besides those of `teacher_forcing` and `sample`):
        probability: of feeding the drawn token, in each row and step anew; one number or ``[B]``.
        emit: with "tokens" or "both", the drawn tokens.

    Raises:
        ValueError: besides those of `teacher_forcing`, a ``probability`` outside [0, 1].
    """
    chance = torch.as_tensor(probability)
    if not bool(((chance >= 0) & (chance <= 1)).all()):
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    target, ends = _targets(targets, lengths)
    seed = _lifted(seed)

    def feed(time: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        own = random.bernoulli((), _row_seeds(seed, tokens), p=chance.to(tokens.device))
        return torch.where(own, tokens, target(time, tokens))

    return _token_loop(embedding, project, start, initial_state, emit, _sampler(temperature, None, None, seed), feed, ends)


def forced_prefix(loop_fn: TokenLoop, tokens: torch.Tensor, lengths: torch.Tensor | None = None) -> TokenLoop:
    """The same token loop, made to pick a given prefix first: the first ``lengths[b]`` tokens of row b are ``tokens[:, b]``.

    A forced token never ends its row; the bound on the steps still holds.

    Args:
        loop_fn: what `greedy`, `sample` or another builder of this module returned.
        tokens: ``[P, B]`` integers.
        lengths: ``[B]`` integers; None: P for all rows.

    Raises:
        TypeError: ``loop_fn`` is no `TokenLoop`, so its embedding is not known.
        ValueError: ``tokens`` has another batch size than the loop's ``start``, or the loop feeds targets back.
    """
    if not isinstance(loop_fn, TokenLoop):
        raise TypeError(f"loop_fn must come from a builder of fusedrnn.feedback (a TokenLoop), got {type(loop_fn).__name__}")
    if loop_fn.feed is not _as_picked:
        raise ValueError("this loop_fn feeds targets back, whatever it picks: put the prefix into the targets")
    steps, batch = time_and_batch(_integers(tokens, "tokens"), "tokens")
    if batch != len(loop_fn.start):
        raise ValueError(f"tokens are [P, B] with B = {batch}, the loop_fn has {len(loop_fn.start)} rows")
    ends_of = checked_lengths(lengths, batch, steps, "lengths")
    prefix = tokens.to(torch.int64)

    def pick(time: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        own = loop_fn.pick(time, logits)
        # Beyond the prefix its last tokens are read, and not used.
        return torch.where(time <= ends_of, prefix[(time - 1).clamp(max=prefix.shape[0] - 1)], own) if steps else own

    def ends(time: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
        # A token that is none, -1, leaves only the bound on the steps to end the row.
        return loop_fn.ends(time, torch.where(time <= ends_of, -1, picked))

    return replace(loop_fn, pick=pick, ends=ends)


def _token_loop(
    embedding: Embedding, project: Project, start: Any, initial_state: Tree, emit: str, pick: Part, feed: Part, ends: Part
) -> TokenLoop:
    embed, to_logits = parts(embedding, project)
    if emit not in ("tokens", "logits", "both"):
        raise ValueError(f"emit must be 'tokens', 'logits' or 'both', got {emit!r}")
    first = start_tokens(start, initial_state)
    token = torch.zeros((), dtype=torch.int64)
    example: Tree = token if emit == "tokens" else _example_logits(project, embedding)
    if emit == "both":
        example = BasicDecoderOutput(example, token)
    return TokenLoop(embed, to_logits, pick, feed, ends, first, initial_state, emit, example)


def parts(embedding: Any, project: Any) -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """The two as functions: tokens to inputs, and the cell's output to logits."""
    embed = (lambda tokens: F.embedding(tokens, embedding)) if isinstance(embedding, torch.Tensor) else embedding
    if not callable(embed):
        raise TypeError(f"embedding must be an nn.Embedding, a tensor [V, E] or a function, got {type(embedding).__name__}")
    if project is not None and not callable(project):
        raise TypeError(f"project must be a function or None, got {type(project).__name__}")
    return embed, project or (lambda output: output)


def start_tokens(start: Any, initial_state: Tree) -> torch.Tensor:
    """The first tokens as ``[B]`` int64, with B and the device from the initial state."""
    rows = next((leaf for leaf in trees.leaves(initial_state) if isinstance(leaf, torch.Tensor) and leaf.ndim), None)
    if rows is None:
        raise ValueError(
            f"initial_state must hold a tensor [B, ...], such as cell.zero_state(batch_size), got {trees.describe(initial_state)}"
        )
    tokens = _integers(torch.as_tensor(start), "start").to(torch.int64)
    if tokens.ndim == 0:
        return tokens.to(rows.device).expand(len(rows))
    if tokens.shape != (len(rows),):
        raise ValueError(f"start must be one token or [B] with B = {len(rows)} (the initial state's rows), got shape {list(tokens.shape)}")
    return tokens


def _example_logits(project: Any, embedding: Any) -> torch.Tensor | None:
    """A row of logits; None, which stands for the cell's output, where nothing projects."""
    if project is None:
        return None
    weight = getattr(project, "weight", None)
    if not hasattr(project, "out_features") or not isinstance(weight, torch.Tensor):
        raise ValueError("to emit logits, project must tell their number: an nn.Linear or a module with out_features and weight")
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return torch.zeros(project.out_features, dtype=dtype)


def _integers(value: torch.Tensor, name: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {trees.describe(value)}")
    return value


def _most_probable(time: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def _as_picked(time: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return tokens


def _ends(end: int | None, max_steps: int | None) -> Part:
    if end is None and max_steps is None:
        raise ValueError("give end, max_steps or both: nothing else ends the loop")
    for name, value in (("end", end), ("max_steps", max_steps)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} must be an int or None, got {value!r}")
    if max_steps is not None and max_steps < 0:
        raise ValueError(f"max_steps must not be negative, got {max_steps}")

    def ends(time: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        if max_steps is None:
            return tokens.eq(end)  # type: ignore[arg-type]
        over = time >= max_steps
        return over if end is None else tokens.eq(end) | over

    return ends


def _targets(targets: torch.Tensor, lengths: torch.Tensor | None) -> tuple[Part, Part]:
    steps, batch = time_and_batch(_integers(targets, "targets"), "targets")
    until = checked_lengths(lengths, batch, steps, "lengths")
    table = targets.to(torch.int64)
    return lambda time, _: table[time - 1], lambda time, _: time >= until


def _row_seeds(seed: int | torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    if seed is None:
        frame = frames.current()
        seed = frames.fresh_seed() if frame is None else frame.seed
    return random.row_seeds(seed, rows.shape[0], rows.device)


def _lifted(seed: int | torch.Tensor | None) -> torch.Tensor | None:
    """A seed as a tensor: a number would be part of the captured program, which each new one would capture anew."""
    if seed is None:
        return None
    random.row_seeds(seed, len(seed) if isinstance(seed, torch.Tensor) and seed.ndim else 1)  # refuses what is no seed
    return seed if isinstance(seed, torch.Tensor) else torch.tensor(random.signed(operator.index(seed)), dtype=torch.int64)


def _sampler(temperature: Any, top_k: int | None, top_p: float | None, seed: int | torch.Tensor | None) -> Part:
    heat = torch.as_tensor(temperature)
    if not bool((heat >= 0).all()):
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int)):
        raise TypeError(f"top_k must be an int or None, got {top_k!r}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    seed = _lifted(seed)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")

    def pick(time: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        degrees = heat.to(logits).reshape(-1, 1)
        scaled = logits / torch.where(degrees > 0, degrees, 1)
        if top_k is not None and top_k < logits.shape[-1]:
            scaled = scaled.masked_fill(scaled < scaled.topk(top_k, -1).values[:, -1:], -torch.inf)
        if top_p is not None:
            scaled = _nucleus(scaled, top_p)
        noise = random.gumbel(tuple(logits.shape[1:]), _row_seeds(seed, logits), dtype=logits.dtype)
        return torch.where(degrees > 0, scaled + noise, logits).argmax(-1)

    return pick


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """The logits without those outside the nucleus (Holtzman et al. 2020): a token stays while those before it fall short of top_p."""
    ranked, order = logits.sort(dim=-1, descending=True, stable=True)
    probability = ranked.softmax(-1)
    before = probability.cumsum(-1) - probability
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)
