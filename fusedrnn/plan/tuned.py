"""Which of a few layouts is the fastest on a device, kept on disk. In: layouts that compile without spills, and what runs one; out: the
fastest.

The model that orders layouts knows neither how reads of the level-2 cache contend nor what the compiler made of them: where two are close,
only running them tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from ..kernels.cpu.build import cache_folder, replace
from .plan import Plan

MOST = 3  # layouts that are tried
WORTH = 1.5  # times the model's best: what is slower by the model is not tried
_RUNS = 5  # of each layout, after one that does not count


def key(plans: Sequence[Plan], batch: int, device: str, versions: str) -> str:
    """What the choice depends on: the step as the best plan by the model shows it, the rows, the device and who compiles."""
    text = "\n".join([device, versions, str(batch), *plans[0].lines(batch)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def name(plan: Plan) -> str:
    """A layout among those of one step."""
    tiles = ", ".join(
        f"{'resident' if tile.resident else 'streamed'} {tile.chunk} {tile.window}{f' stack of {tile.vectors}' if tile.vectors > 1 else ''}"
        for tile in plan.schedule.tiles
    )
    sharing = plan.schedule.sharing
    whole = f", each computes widths {sorted(sharing.replicated)}" if sharing.replicated else ""
    spread = ", layers along the diagonal" if plan.schedule.step.made.wavefront is not None else ""
    late = "" if plan.ahead else ", reads when it needs them"
    return f"{plan.programs} x {plan.batch_tile} rows, {plan.options.warps} warps, {tiles}{whole}{spread}{late}"


def known(plans: Sequence[Plan], at: str) -> Plan | None:
    """The layout that was the fastest under this key; None where nobody has tried."""
    try:
        found = json.loads(_path(at).read_text())["fastest"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or not ours
        return None
    return next((plan for plan in plans if name(plan) == found), None)


def fastest(plans: Sequence[Plan], run: Callable[[Plan], float], at: str) -> Plan:
    """Run each layout a few times, and keep which was the fastest.

    Args:
        run: runs the loop and gives its microseconds.
        at: the key to keep it under.
    """
    times = {}
    for plan in plans:
        run(plan)
        times[name(plan)] = statistics.median(run(plan) for _ in range(_RUNS))
    best = min(plans, key=lambda plan: times[name(plan)])
    text, path = json.dumps({"fastest": name(best), "microseconds": times}, indent=2), _path(at)
    with contextlib.suppress(OSError):  # not writable, or full: the next process tries again
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace(path, lambda temporary: temporary.write_text(text))
    return best


def _path(at: str) -> Path:
    return cache_folder() / f"layout_{at}.json"
