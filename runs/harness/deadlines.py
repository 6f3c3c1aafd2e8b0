"""Time limits and requests to stop: checked in every wait, and enforced by an alarm elsewhere.

Pulling images and starting the app have their own limits, during which those of the stage and the run are paused (`apart`).
"""

from __future__ import annotations

import atexit
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Grace period after a deadline or a request to stop before the alarm enforces it, and its interval.
PATIENCE = 3.0
_AGAIN = 10.0
_TICK = 0.5


class Cancelled(Exception):
    """The run was asked to stop."""


class TimedOut(Exception):
    """The run or a stage exceeded its time limit."""


class Exceeded(Exception):
    """The app exceeded its share of the machine's resources."""


class Deadlines:
    """`check` raises if the run has to stop: cancelled, out of time, if `exceeded` says so, or whatever `also` raises."""

    def __init__(self, cancel: Path, run_seconds: float, also: Callable[[], None] = lambda: None) -> None:
        self._cancel = cancel
        self._also = also
        self._run_seconds = run_seconds
        self._run_until = time.monotonic() + run_seconds
        self._stage_until = 0.0
        self._stage_text = ""
        self._looked = 0.0
        self._apart = 0
        self._spent = 0.0  #: seconds that counted against no limit
        self._note = cancel.with_name("apart")  #: where whoever watches this process reads them: `RunFolder.apart`
        self._overdue = 0.0  #: when the alarm may end it; 0 while nothing is overdue
        self._insisting = False
        self.cancelled = False
        self.exceeded: Callable[[], str] = str  #: why the app exceeds its limits; empty while it does not

    def stage(self, name: str, seconds: float) -> None:
        """Begin a stage of at most `seconds`."""
        self.part(f"The stage {name}", seconds)

    def part(self, what: str, seconds: float) -> None:
        """Begin a part of the run of at most `seconds`, such as "The stage install"."""
        self._stage_until = time.monotonic() + seconds
        self._stage_text = f"{what} took longer than {seconds:g} s."

    @contextmanager
    def apart(self, most: float) -> Iterator[None]:
        """Pause the clocks of the stage and the run in this block, for at most `most` seconds."""
        started = time.monotonic()
        self._apart += 1
        if self._apart == 1:
            self._write(self._spent + most)
        try:
            yield
        finally:
            self._apart -= 1
            if not self._apart:
                spent = time.monotonic() - started
                self._spent += spent
                self._write(self._spent)
                self._run_until += spent
                self._stage_until += spent if self._stage_until else 0.0

    def _write(self, seconds: float) -> None:
        with suppress(OSError):  # a full disk is reported elsewhere
            self._note.write_text(f"{seconds:.1f}")

    def check(self) -> None:
        now = time.monotonic()
        if not self.cancelled and now - self._looked > 0.4:
            self._looked = now
            self.cancelled = self._cancel.exists()
        if self.cancelled:
            raise Cancelled("The run was cancelled.")
        if text := self.exceeded():
            raise Exceeded(text)
        if self._apart:
            self._also()
            return
        if now > self._run_until:
            raise TimedOut(f"The run took longer than {self._run_seconds:g} s.")
        if self._stage_until and now > self._stage_until:
            raise TimedOut(self._stage_text)
        self._also()

    def arm(self) -> None:
        """Set the alarm for the rest of this process, which is the harness. Call it from the main thread."""
        signal.signal(signal.SIGALRM, self._alarm)
        signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # Python removes the handlers at exit

    @contextmanager
    def insisting(self) -> Iterator[None]:
        """Enforce `check` by the alarm in this block, even where nobody calls it (reading from a child, or from a slow file).

        Outside, as in the teardown, nothing is interrupted.
        """
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
