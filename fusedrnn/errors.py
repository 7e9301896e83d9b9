"""The exceptions of fusedrnn that Python has no name for."""

from __future__ import annotations


class PlanError(RuntimeError):
    """A named backend cannot run a program.

    Attributes:
        reason: one line: what stands in the way and what to do instead.
        location: ``file:line`` of the user's code that is meant, or None.
    """

    def __init__(self, reason: str, location: str | None = None) -> None:
        super().__init__(reason if location is None else f"{reason} ({location})")
        self.reason = reason
        self.location = location


class CommandError(Exception):
    """What a command reports in one line and ends with, exit code 2."""
