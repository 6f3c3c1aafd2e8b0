"""What an executor does: three verbs, each of which may be called twice, and at the same time as itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from runs.harness.protocol import Event, FolderState, Results
from runs.models import TestRun


class ExecutorError(Exception):
    """The place could not do it now. The message says what and why."""


@dataclass(frozen=True)
class Observation:
    """How a run stands where it runs: its state there, what happened since the last look, and the results at the end."""

    state: FolderState
    events: list[Event] = field(default_factory=list)
    log: str = ""
    log_offset: int = 0
    results: Results | None = None
    files: dict[str, bytes] = field(default_factory=dict)  #: the artefacts of the results, by name


class Executor(Protocol):
    def start(self, run: TestRun) -> None:
        """Start this attempt; does nothing when it has been started. Raises ExecutorError."""
        ...

    def observe(self, run: TestRun) -> Observation:
        """What is to be seen, after the run's `event_seq` and `log_offset`."""
        ...

    def stop(self, run: TestRun) -> None:
        """Ask it to stop and tear down. It goes on for a moment; `observe` shows the end."""
        ...

    def kill(self, run: TestRun) -> None:
        """End it without being asked twice: it did not stop in time. What it left is swept."""
        ...
