"""Writes a run's events and its log, with credentials redacted."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TextIO
from urllib.parse import quote

from runs.harness import disk_full
from runs.harness.protocol import Event, RunFolder, Timing

#: A recipe's code decides how much it prints; the disk is ours.
LONGEST_LOG = 16 << 20  #: bytes
LONGEST_LINE = 8192  #: characters
MOST_EVENTS = 5000
MOST_WARNINGS, LONGEST_WARNING = 100, 2000

SHORTEST_SECRET = 8

#: What a terminal does not show (ECMA-48): control sequences, control strings with what they hold, other escapes, and the rest.
_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x00-\x1f\x7f-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class Journal:
    """events.jsonl and log.txt of one run. Thread-safe; flushes every line."""

    def __init__(self, folder: RunFolder, secrets: Sequence[str] = ()) -> None:
        self._secrets = sorted((secret for secret in secrets if secret), key=len, reverse=True)
        self._folder = folder.path
        self._lock = threading.Lock()
        self._events = folder.events_file.open("a")
        self._log = folder.log.open("a")
        self._seq = 0
        self._written = 0
        self.stage = ""
        self.warnings: list[str] = []
        self.timings: list[Timing] = []
        self._own: list[str] = []
        self.leaks: set[str] = set()  #: artefacts in which a secret of the run was redacted
        self._failed: OSError | None = None

    def event(self, kind: str, text: str = "", **data: Any) -> None:
        """Append an event, and its text to the log."""
        text = self.clean(text)
        with self._lock:
            if self._seq >= MOST_EVENTS and kind == "step":
                return
            self._seq += 1
            event = Event(seq=self._seq, at=datetime.now(UTC), kind=kind, stage=self.stage, text=text, data=data)
            self._write(self._events, json.dumps(event.model_dump(mode="json")) + "\n")
        if text:
            self.log(f"== {text}")

    def step(self, text: str) -> None:
        self.event("step", text)

    def warn(self, text: str) -> None:
        """Add a warning for the reader of the results, once."""
        text = self.clean(text)
        text = text if len(text) <= LONGEST_WARNING else f"{text[:LONGEST_WARNING]}…"
        if text in self.warnings:
            return
        if len(self.warnings) >= MOST_WARNINGS:
            self.log(f"== {text}")
            text = f"There were more than {MOST_WARNINGS} warnings; the others are in the log."
        if text not in self.warnings:
            self.warnings.append(text)
            self.event("warning", text)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Record the duration of a step, however it ends."""
        started, stage = time.monotonic(), self.stage
        try:
            yield
        finally:
            self.timings.append(Timing(step=step, stage=stage, seconds=round(time.monotonic() - started, 3)))

    def hide(self, secrets: Sequence[str]) -> None:
        """Also redact the secrets created for this run. Skips short ones, which occur in ordinary text."""
        self._own = sorted({*self._own, *(s for s in secrets if len(s) >= SHORTEST_SECRET)}, key=len, reverse=True)

    def without_secrets(self, text: str, artefact: str) -> str:
        """`text` with the run's own secrets redacted; records an artefact that contained one."""
        for secret in self._own:
            for form in _forms(secret):
                if form in text:
                    self.leaks.add(artefact)
                    text = text.replace(form, "[secret]")
        return text

    def log(self, line: str) -> None:
        """Append lines to the log, up to a limit for the whole run."""
        if self._written > LONGEST_LOG:  # before any work: a recipe may print forever
            return
        stamp = datetime.now(UTC).strftime("%H:%M:%S")
        text = "".join(f"{stamp} {part[:LONGEST_LINE]}\n" for part in self.clean(line).split("\n"))
        with self._lock:
            if self._log.closed:
                return
            self._written += len(text.encode())
            if self._written > LONGEST_LOG:
                text = f"{stamp} == The log was cut here: it exceeded {LONGEST_LOG >> 20} MB.\n"
            self._write(self._log, text)

    def _write(self, file: TextIO, text: str) -> None:
        """Record a failed write without raising, since any thread may be here; `check` raises it."""
        try:
            file.write(text)
            file.flush()
        except OSError as error:
            self._failed = self._failed or error

    def check(self) -> None:
        """Raises DiskFull or OSError if something could not be written."""
        if self._failed:
            raise disk_full.full(self._failed, self._folder) or self._failed

    def clean(self, text: str, artefact: str = "log.txt") -> str:
        """`text` without credentials, terminal codes and invalid characters. `artefact`: where it will be written."""
        hidden = self._hidden(text, artefact)
        bare = _CONTROL.sub("", hidden)
        if bare != hidden:  # a code may have stood within a secret
            bare = self._hidden(bare, artefact)
        return bare.encode(errors="replace").decode()

    def _hidden(self, text: str, artefact: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return self.without_secrets(text, artefact)

    def close(self) -> None:
        with self._lock:
            for file in (self._events, self._log):
                with suppress(OSError):
                    file.close()


def _forms(secret: str) -> tuple[str, ...]:
    """A secret literally, and in the forms in which it is transmitted: in a URL, in basic authentication."""
    return tuple(dict.fromkeys([secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode()]))
