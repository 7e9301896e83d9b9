"""Persistent kernels against the same program in float64: errors within twice those of the plain loop in the kernel's own dtype.

Tokens are checked by teacher forcing: fed with the kernel's own tokens, float64 must find each of them as good as the best, to within what
the logits of the plain loop are wrong by. Two runs give the same bits.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

import fusedrnn

from ..loops import Greedy, Reads
from . import Row, Where

_SLACK = 1e-5


def cases(where: Where) -> list[Row]:
    def reads(cell: str, size: int, rows: int, dtype: str) -> Row:
        return {"feedback": "sequence", "cell": cell, "H": size, "B": rows, "T": 4 if where.dry else 24, "dtype": dtype}

    def greedy(cell: str, size: int, words: int, rows: int, dtype: str) -> Row:
        return reads(cell, size, rows, dtype) | {"feedback": "greedy", "V": words}

    if where.dry:
        found = [reads("lstm", 16, 3, "bfloat16"), greedy("gru", 16, 20, 5, "float32"), reads("gru before", 24, 19, "float16")]
        return [*found, reads("rnn", 16, 1, "float32")]
    return [
        reads("lstm", 512, 8, "bfloat16"), reads("gru", 256, 33, "bfloat16"), greedy("gru", 256, 74, 33, "bfloat16"),
        greedy("lstm", 512, 1000, 8, "bfloat16"), reads("gru before", 512, 8, "float16"), reads("lstm", 64, 33, "float32"),
        reads("rnn", 512, 8, "bfloat16"), reads("lstm", 512, 8, "float32"), greedy("gru", 256, 74, 8, "float32"),
        reads("lstm", 256, 1, "bfloat16"), reads("lstm", 200, 70, "float16"), reads("lstm", 1024, 64, "bfloat16"),
        reads("lstm", 2048, 8, "bfloat16"), greedy("lstm", 512, 8000, 8, "bfloat16"), greedy("gru", 256, 74, 256, "float16"),
    ]  # fmt: skip


def measure(case: Row, where: Where, seconds: float) -> list[Row]:
    dtype = getattr(torch, case["dtype"])
    if case["feedback"] == "greedy":
        return [_greedy(Greedy.made(case["cell"], case["H"], case["V"], case["B"], case["T"], dtype), case)]
    ends = itertools.cycle([case["T"], 1, 0, case["T"] - 1, 2])
    lengths = torch.tensor([next(ends) for _ in range(case["B"])])
    return [_reads(Reads.made(case["cell"], case["H"], case["B"], case["T"], dtype, lengths), case)]


def _reads(reads: Reads, case: Row) -> Row:
    dtype = getattr(torch, case["dtype"])
    exact, plain = _values(reads.to(torch.float64).loop("reference")()), _values(reads.to(dtype).loop("reference")())
    result = reads.loop("persistent")()
    error = _difference(_values(result), exact)
    allowed = 2 * _difference(plain, exact) + _SLACK
    lengths = reads.lengths.clamp(max=len(reads.x))  # type: ignore[union-attr]
    faults = _twice(reads, result)
    if not error <= allowed:  # NaN is not
        faults.append(f"the error is {error:.2g}, allowed are {allowed:.2g}")
    if not torch.equal(result.lengths.long(), lengths):
        faults.append(f"lengths {result.lengths.tolist()} for {lengths.tolist()}")
    return {"largest_error": error, "allowed": allowed, "alone_equal": _alone(reads, result), "faults": faults}


def _greedy(greedy: Greedy, case: Row) -> Row:
    exact = greedy.to(torch.float64)
    free = exact.loop("reference")().emit_ta.stack()
    greedy.end = exact.end = int(free[case["T"] // 2, 0])  # a token that ends rows, one of them half-way
    result = greedy.loop("persistent")()
    tokens, lengths = result.emit_ta.stack(), result.lengths.long()
    faults = _twice(greedy, result)
    if bool((tokens < 0).any() | (tokens >= case["V"]).any()):
        return {"faults": [*faults, f"tokens from {int(tokens.min())} to {int(tokens.max())} of {case['V']}"]}
    right = exact.logits(tokens)
    live = torch.arange(len(tokens))[:, None] < lengths
    regret = (right.amax(-1) - right.gather(-1, tokens[..., None]).squeeze(-1))[live].max().item()
    allowed = 4 * (greedy.logits(tokens).double() - right).abs().amax(-1)[live].max().item() + _SLACK  # each of two logits may be off
    if not regret <= allowed:
        faults.append(f"a token is worse than the best by {regret:.2g}, allowed are {allowed:.2g}")
    ended = torch.where(tokens == greedy.end, torch.arange(1, len(tokens) + 1)[:, None], case["T"]).amin(0)
    if not torch.equal(lengths, ended):
        faults.append(f"lengths {lengths.tolist()} where the end comes at {ended.tolist()}")
    if bool((tokens.masked_fill(live, 0) != 0).any()):
        faults.append("tokens stand behind the end of a row")
    ended_early = int((lengths < case["T"]).sum())
    found = {"largest_error": regret, "allowed": allowed, "alone_equal": _alone(greedy, result), "faults": faults}
    return found | {"steps": len(tokens), "ended_early": ended_early}


def _twice(what: Reads | Greedy, result: fusedrnn.Result) -> list[str]:
    """Whether the same inputs give the same bits again."""
    return [] if _equal(_values(result), _values(what.loop("persistent")())) else ["two runs differ in their bits"]


def _alone(what: Reads | Greedy, result: fusedrnn.Result) -> bool:
    """Whether a row alone has the bits that it has in the batch. Told, no fault: products made before the loop are torch's, whose sums
    may depend on how many rows there are."""
    row = int(result.lengths.argmax())
    steps = int(result.lengths[row])
    in_batch = [result.emit_ta.stack()[:steps, row : row + 1], *[value[row : row + 1] for value in _state(result)]]
    return _equal(_values(what.row(row).loop("persistent")()), in_batch)


def _state(result: fusedrnn.Result) -> list[torch.Tensor]:
    state: Any = result.final_state
    return list(state) if isinstance(state, tuple) else [state]


def _values(result: fusedrnn.Result) -> list[torch.Tensor]:
    return [result.emit_ta.stack(), *_state(result)]


def _equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _difference(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return max((one.double() - other.double()).abs().max().item() for one, other in zip(some, others, strict=True))
