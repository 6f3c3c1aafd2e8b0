"""Faults for upgrades on a real Swarm: at any point of any step a worker is killed, loses its lease, or meets a full disk or a
Docker that starts anew. A fault is a file, and is met once, whichever worker comes by.

Points are the methods of the real deployer that act; `during` is when the docker command that does the work has just begun.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.deployers.docker import api
from infra.deployers.docker.volumes import Volumes
from infra.deployers.isolation import children
from infra.deployers.swarm.persistent import PersistentDeployer
from infra.lifecycle import move
from infra.models import InfraApp, Upgrade
from infra.runtime import drift
from infra.states import UpgradeState
from infra.upgrades import session

FAULTS = ("killed", "lost lease", "full disk", "docker restart")
WHEN = ("before", "during", "after")
#: Each step's docker command, or request to Docker's socket, whose beginning is its middle.
FORWARD: dict[str, tuple[str, ...]] = {
    "record": ("GET", "/services/"),
    "fetch": ("GET", "/images/"),
    "stop": ("DELETE", "/services/"),
    "pack": ("cp",),
    "prove": ("cp",),
    "deploy": ("stack", "deploy"),
    "settle": ("GET", "/tasks"),
    "probe": ("exec",),
}
BACK: dict[str, tuple[str, ...]] = {
    "stop back": ("DELETE", "/services/"),
    "put back": ("cp",),
    "deploy back": ("POST", "/services/"),
    "settle back": ("GET", "/tasks"),
    "probe back": ("exec",),
}
_METHODS: tuple[tuple[type, str, str], ...] = (
    (PersistentDeployer, "record", "record"),
    (PersistentDeployer, "fetch", "fetch"),
    (PersistentDeployer, "undeploy", "stop"),
    (PersistentDeployer, "deploy", "deploy"),
    (PersistentDeployer, "restore_specs", "deploy back"),
    (PersistentDeployer, "settle", "settle"),
    (PersistentDeployer, "execute", "probe"),
    (Volumes, "pack", "pack"),
    (Volumes, "extracted", "prove"),
    (Volumes, "replace", "put back"),
)


@dataclass
class Faults:
    """`folder` holds the fault that waits; `disk` is the small file system that is filled; `restart` starts Docker anew."""

    folder: Path
    disk: Path
    restart: Callable[[], None]
    rival: Callable[[], None] = lambda: None  #: carries the upgrade out by another worker, to its end
    upgrade: int = 0
    _inside: list[str] = field(default_factory=list)

    def plan(self, point: str, when: str, fault: str) -> None:
        for name in ("fault.json", "fault-met.json"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "fault.json").write_text(json.dumps([point, when, fault]))

    @property
    def met(self) -> bool:
        return (self.folder / "fault-met.json").exists()

    @property
    def ballast(self) -> Path:
        return self.disk / "ballast"

    def make_room(self) -> None:
        """Somebody sees that the disk is full, and mends it after a second."""
        with suppress(FileNotFoundError):
            if time.time() - self.ballast.stat().st_mtime > 1:
                self.ballast.unlink()

    def install(self) -> None:
        """In this process, for good: it is a worker that was forked."""
        for owner, name, point in _METHODS:
            setattr(owner, name, self._around(getattr(owner, name), point))
        session.move = self._moved  # type: ignore[assignment]
        drift.write_pin = self._pinned
        begin, ask = children.start, api._asked

        def started(command: Sequence[str], **options: Any) -> Any:
            process = begin(command, **options)
            if Path(command[0]).name == "docker":
                self._while([word for word in command[1:] if not word.startswith("--")])
            return process

        def asked(method: str, path: str, *args: Any) -> Any:
            answer = ask(method, path, *args)
            self._while([method, path])
            return answer

        children.start = started
        api._asked = asked

    def _around(self, method: Callable[..., Any], point: str) -> Callable[..., Any]:
        def inside(this: Any, *args: Any, **more: Any) -> Any:
            name = f"{point} back" if point in ("stop", "settle", "probe") and self._is_back() else point
            if self._inside:  # a step within a step is no step
                return method(this, *args, **more)
            self._point(name, "before")
            self._inside.append(name)
            try:
                done = method(this, *args, **more)
            finally:
                self._inside.clear()
            self._point(name, "after")
            return done

        return inside

    def _is_back(self) -> bool:
        return Upgrade.objects.filter(pk=self.upgrade, state=UpgradeState.ROLLING_BACK).exists()

    def _while(self, said: Sequence[str]) -> None:
        words = {**FORWARD, **BACK}.get(self._inside[0], ()) if self._inside else ()
        if words and len(said) >= len(words) and all(map(str.startswith, said, words)):
            self._point(self._inside[0], "during")

    def _moved(self, upgrade: Upgrade, event: str, *args: Any, **more: Any) -> bool:
        self._point(f"move {event}", "before")
        done = move(upgrade, event, *args, **more)
        self._point(f"move {event}", "after")
        return done

    def _pinned(self, app: InfraApp, version: str) -> list[str]:
        self._point("pin", "before")
        return []

    def _point(self, name: str, when: str) -> None:
        file = self.folder / "fault.json"
        if not file.exists() or json.loads(file.read_text())[:2] != [name, when]:
            return
        fault = json.loads(file.read_text())[2]
        file.rename(self.folder / "fault-met.json")
        if when == "during":
            time.sleep(0.05)  # the command is in the middle of it
        {"killed": _die, "lost lease": self.rival, "full disk": self._fill, "docker restart": self.restart}[fault]()

    def _fill(self) -> None:
        with suppress(OSError), self.ballast.open("wb") as file:
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        with suppress(OSError), self.ballast.open("ab", buffering=0) as file:  # to the last byte
            while file.write(b"\0"):
                pass
        assert _is_full(self.disk)


def _is_full(disk: Path) -> bool:
    try:
        (disk / "more").write_bytes(b"more")
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
