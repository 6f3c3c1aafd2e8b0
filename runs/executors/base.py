"""The interface of executors: each call may be repeated, made concurrently, and interrupted anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from runs.harness.protocol import Event, FolderState, Results
from runs.models import TestRun


class ExecutorError(Exception):
    """The executor cannot do it now. The message says what and why."""


@dataclass(frozen=True)
class Observation:
    """A run as its executor sees it: its state, what happened since the last observation, and the results at the end."""

    state: FolderState
    events: list[Event] = field(default_factory=list)
    log: str = ""
    log_offset: int = 0
    results: Results | None = None
    files: dict[str, bytes] = field(default_factory=dict)  #: the artefacts of the results, by name
    lost: str = "killed, or the machine went down"  #: of a lost run: what happened


class Executor(Protocol):
    def start(self, run: TestRun) -> None:
        """Start this attempt; do nothing if it has been started. Raises ExecutorError."""
        ...

    def observe(self, run: TestRun) -> Observation:
        """What happened after the run's `event_seq` and `log_offset`."""
        ...

    def stop(self, run: TestRun) -> None:
        """Ask it to stop and tear down, without waiting; `observe` shows the end."""
        ...

    def kill(self, run: TestRun) -> None:
        """Kill it, because it did not stop in time. A sweep removes what it leaves."""
        ...

    def longest(self, run: TestRun) -> timedelta:
        """How long this attempt may take from when it was claimed, with all waiting and the teardown."""
        ...

    def sweep(self) -> None:
        """Remove what lost and killed runs left where they ran, without waiting."""
        ...
