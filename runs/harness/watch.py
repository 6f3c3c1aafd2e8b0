"""Time limits and the wish to stop, looked at in every wait, and by an alarm in whatever forgets to look."""

from __future__ import annotations

import atexit
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: How long after the time was up, or somebody wanted the end, the alarm ends what has not looked itself, and how often.
PATIENCE = 3.0
_AGAIN = 10.0
_TICK = 0.5


class Cancelled(Exception):
    """Somebody asked for the run to stop."""


class TimedOut(Exception):
    """The run or a stage took longer than it may."""


class Exceeded(Exception):
    """The app takes more of the machine than it may."""


class Watch:
    """`check` raises when the run shall stop: cancelled, out of time, when `exceeded` says so, or for what `also` raises."""

    def __init__(self, cancel: Path, run_seconds: float, also: Callable[[], None] = lambda: None) -> None:
        self._cancel = cancel
        self._also = also
        self._run_seconds = run_seconds
        self._run_until = time.monotonic() + run_seconds
        self._stage_until = 0.0
        self._stage_text = ""
        self._looked = 0.0
        self._overdue = 0.0  #: when the alarm may end it; 0 while nothing is overdue
        self._insisting = False
        self.cancelled = False
        self.exceeded: Callable[[], str] = str  #: why the app takes more than it may; empty while it does not

    def stage(self, name: str, seconds: float) -> None:
        """Begin a stage of at most `seconds`."""
        self.part(f"The stage {name}", seconds)

    def part(self, what: str, seconds: float) -> None:
        """Begin a part of the run of at most `seconds`, such as "The stage install"."""
        self._stage_until = time.monotonic() + seconds
        self._stage_text = f"{what} took longer than {seconds:g} s."

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
        self._also()

    def arm(self) -> None:
        """Set the alarm, for the life of this process, which is the harness: to be called from its main thread."""
        signal.signal(signal.SIGALRM, self._alarm)
        signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # at its end Python takes the handlers away

    @contextmanager
    def insisting(self) -> Iterator[None]:
        """In this block the alarm counts: what `check` would raise comes even where nobody calls it (a child that is read from, a
        file whose reading takes for ever). Outside, as in the teardown, nothing is interrupted."""
        self._insisting = True
        try:
            yield
        finally:
            self._insisting = False

    def _alarm(self, _number: int, _frame: object) -> None:
        if not self._insisting:
            return
        try:
            self.check()
        except Exception:
            now = time.monotonic()
            if not self._overdue:
                self._overdue = now + PATIENCE
            if now < self._overdue:
                return
            self._overdue = now + _AGAIN
            raise
        self._overdue = 0.0
