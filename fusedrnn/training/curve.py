"""The loss curve. In: a run's progress; out: a PNG that can be read on a light page and on a dark one."""

from __future__ import annotations

import io

from ..extras import needed
from .trainer import Progress

_TEXT, _LOSS, _WORDS = "#808890", "#3b82d6", "#d9822b"  # none of them near white or black: the background is transparent


def png(progress: Progress) -> bytes:
    """The training loss, and the word error rate on the words for validation, by minutes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to install it.
    """
    figure = needed("matplotlib.figure", "train").Figure(figsize=(8, 4.5), layout="constrained")
    loss = figure.add_subplot(xlabel="minutes", ylabel="training loss, nats a phoneme")
    words = loss.twinx()
    words.set_ylabel("validation WER, %")
    loss.plot([seconds / 60 for seconds, _ in progress.curve], [value for _, value in progress.curve], color=_LOSS, linewidth=1.2)
    wrong = [(seconds / 60, 100 * rate) for seconds, _, rate, _ in progress.validations]
    words.plot([minutes for minutes, _ in wrong], [rate for _, rate in wrong], "o-", color=_WORDS, markersize=4)
    for axes, side, color in ((loss, "left", _LOSS), (words, "right", _WORDS)):
        axes.set_ylim(bottom=0)
        axes.tick_params(colors=_TEXT)
        axes.tick_params(axis="y", colors=color)
        axes.yaxis.label.set_color(color)
        axes.xaxis.label.set_color(_TEXT)
        for spine in axes.spines.values():
            spine.set_color(_TEXT)
        axes.spines[side].set_color(color)
    loss.grid(color=_TEXT, alpha=0.25)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120, transparent=True)
    return written.getvalue()
