"""Docker's events about one stack: they wake up whoever waits for it, and are kept as readable lines."""

from __future__ import annotations

import collections
import json
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from infra.deployers.docker.cli import environment
from infra.deployers.isolation import children

_KEPT = 1000
#: What is told of each kind of thing. A health check alone runs a command (exec_*) each few seconds: that says nothing.
_TOLD: Mapping[str, frozenset[str]] = {
    "container": frozenset({"create", "start", "die", "oom", "kill", "stop", "destroy", "health_status"}),
    "service": frozenset({"create", "update", "remove"}),
    "network": frozenset({"create", "remove"}),
    "volume": frozenset({"create", "destroy"}),
    "config": frozenset({"create", "remove"}),
    "secret": frozenset({"create", "remove"}),
}
#: Events come in bursts, and each look costs several commands: for so long the rest of a burst is waited for, in seconds.
_GATHER = 0.05
#: An event is a line of JSON, with all labels of the thing; what is longer says nothing.
_LONGEST = 1 << 20
#: After these the stack may be another one than before.
_WAKE = frozenset({"start", "die", "health_status", "update", "remove"})


class EventFollower:
    """Follows `docker events` in a thread, from `start` to `stop`.

    Silent if the daemon does not answer: whoever waits for an event has to poll from time to time anyway.
    """

    def __init__(self, stack: str) -> None:
        self._stack = stack
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT)
        self._woken = threading.Event()
        self._stopped = False
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start following from now on. Further calls change nothing."""
        if self._thread and self._thread.is_alive():
            return
        self._stopped = False
        self._thread = threading.Thread(target=self._follow, args=(time.time(),), daemon=True, name="docker-events")
        self._thread.start()

    def stop(self) -> None:
        """Stop following and end the process. The recorded lines are kept."""
        with self._lock:
            self._stopped = True
            process = self._process
        if process:
            children.end(process)
        if self._thread:
            self._thread.join(5)

    def wait(self, seconds: float) -> bool:
        """Wait for an event that may have changed the stack. Returns whether there was one since the last call."""
        woken = self._woken.wait(seconds)
        if woken:
            time.sleep(_GATHER)
        self._woken.clear()
        return woken

    def note(self, text: str) -> None:
        """Add a line for which Docker has no event."""
        self._lines.append(f"{_clock(time.time())} {text}")

    def lines(self) -> Sequence[str]:
        """The last 1000 events, one per line."""
        return list(self._lines)

    def _follow(self, since: float) -> None:
        command = ["docker", "events", f"--since={since:.6f}", "--format={{json .}}"]
        with self._lock:
            if self._stopped:
                return
            try:
                process = children.start(
                    command,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            except OSError:
                return
            self._process = process
        with process:
            assert process.stdout
            while raw := process.stdout.readline(_LONGEST):
                with suppress(ValueError, KeyError, TypeError, AttributeError):
                    self._hear(json.loads(raw))

    def _hear(self, event: Mapping[str, Any]) -> None:
        if not concerns(event, self._stack):
            return
        if text := line(event, self._stack):
            self._lines.append(text)
            if event["Type"] in ("container", "service") and str(event["Action"]).partition(":")[0] in _WAKE:
                self._woken.set()


def concerns(event: Mapping[str, Any], stack: str) -> bool:
    """Whether an event (one object of `docker events`) concerns the stack.

    Containers are recognized by the stack's label; services, networks, volumes, configs and secrets by their names.
    """
    actor = event["Actor"]
    attributes = actor.get("Attributes") or {}
    if event["Type"] == "container":
        return bool(attributes.get("com.docker.stack.namespace") == stack)
    return str(attributes.get("name") or actor.get("ID", "")).startswith(f"{stack}_")


def line(event: Mapping[str, Any], stack: str) -> str:
    """An event as a line: time (UTC), kind, name without the stack's, action. Empty for events that nobody needs."""
    kind, (action, _, detail) = str(event["Type"]), str(event["Action"]).partition(":")
    if action not in _TOLD.get(kind, ()) or (kind == "network" and event.get("scope") == "local"):
        return ""  # an overlay network is told of twice, once by the swarm and once by the node
    attributes = event["Actor"].get("Attributes") or {}
    name = str(attributes.get("name") or event["Actor"].get("ID", "")).removeprefix(f"{stack}_")
    if kind == "container":
        name = name.rpartition(".")[0] or name  # without the task's id
    message = detail.strip()
    if action == "die":
        message = f"exit code {attributes.get('exitCode', '?')}"
    elif action == "kill":
        message = f"signal {attributes.get('signal', '?')}"
    elif action == "update" and "updatestate.new" in attributes:
        message = f"{attributes.get('updatestate.old') or 'new'} -> {attributes['updatestate.new']}"
    elif action == "update" and "replicas.new" in attributes:
        message = f"{attributes.get('replicas.old', '?')} -> {attributes['replicas.new']} replicas"
    return f"{_clock(float(event['time']))} {kind} {name} {action}{f': {message}' if message else ''}"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S")
