"""Time limits and the wish to stop, looked at in every wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


class Cancelled(Exception):
    """Somebody asked for the run to stop."""


class TimedOut(Exception):
    """The run or a stage took longer than it may."""


class Exceeded(Exception):
    """The app takes more of the machine than it may."""


class Watch:
    """`check` raises when the run shall stop: cancelled, out of time, or when `exceeded` says so."""

    def __init__(self, cancel: Path, run_seconds: float) -> None:
        self._cancel = cancel
        self._run_seconds = run_seconds
        self._run_until = time.monotonic() + run_seconds
        self._stage_until = 0.0
        self._stage_text = ""
        self._looked = 0.0
        self.cancelled = False
        self.exceeded: Callable[[], str] = str

    def stage(self, name: str, seconds: float) -> None:
        """Begin a stage of at most `seconds`."""
        self._stage_until = time.monotonic() + seconds
        self._stage_text = f"The stage {name} took longer than {seconds:g} s."

    def check(self) -> None:
        now = time.monotonic()
        if not self.cancelled and now - self._looked > 0.4:
            self._looked = now
            self.cancelled = self._cancel.exists()
        if self.cancelled:
            raise Cancelled("The run was cancelled.")
        if words := self.exceeded():
            raise Exceeded(words)
        if now > self._run_until:
            raise TimedOut(f"The run took longer than {self._run_seconds:g} s.")
        if self._stage_until and now > self._stage_until:
            raise TimedOut(self._stage_text)
