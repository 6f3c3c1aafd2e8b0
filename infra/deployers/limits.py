"""Limits on memory and processes by cgroup (version 1 or 2), where we may write one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Cgroup:
    """Folders that hold one sandbox: one for each controller (version 1), or one for all (version 2)."""

    folders: tuple[Path, ...]

    @property
    def procs(self) -> list[str]:
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed something in here for want of memory."""
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                with suppress(OSError):
                    for line in (folder / name).read_text().splitlines():
                        key, _, value = line.partition(" ")
                        if key == "oom_kill" and int(value):
                            return True
        return False

    def pids(self) -> set[int]:
        """The processes in it."""
        found: set[int] = set()
        for folder in self.folders:
            with suppress(OSError):
                found |= {int(pid) for pid in (folder / "cgroup.procs").read_text().split()}
        return found

    def remove(self) -> bool:
        """Kill what is left in it and remove it. Whether it is gone."""
        for _ in range(40):
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for folder in self.folders:
                with suppress(OSError):
                    folder.rmdir()
            if not any(folder.exists() for folder in self.folders):
                return True
            time.sleep(0.05)
        return False


def create(name: str, memory_mb: int, processes: int) -> Cgroup | None:
    """A cgroup with these limits; None where we may not make one."""
    made: list[Path] = []
    try:
        for base in _bases():
            folder = base / name
            folder.mkdir(exist_ok=True)
            made.append(folder)
            _limit(folder, memory_mb << 20, processes)
    except OSError:
        made_one = Cgroup(tuple(made))
        made_one.remove()
        return None
    return Cgroup(tuple(made)) if made else None


def _limit(folder: Path, memory: int, processes: int) -> None:
    for name, value in (
        ("memory.max", memory),
        ("memory.swap.max", 0),
        ("memory.oom.group", 0),
        ("memory.limit_in_bytes", memory),
        ("memory.memsw.limit_in_bytes", memory),
        ("pids.max", processes),
    ):
        if (folder / name).exists():
            (folder / name).write_text(str(value))


def _bases() -> list[Path]:
    """Where our folders go. Empty when nothing can be limited here."""
    if (ROOT / "cgroup.controllers").exists():
        base = ROOT / "cc-ci"
        wanted = "+memory +pids"
        with suppress(OSError):
            (ROOT / "cgroup.subtree_control").write_text(wanted)
        base.mkdir(exist_ok=True)
        (base / "cgroup.subtree_control").write_text(wanted)
        return [base]
    bases = [ROOT / controller / "cc-ci" for controller in ("memory", "pids")]
    if not all(base.parent.is_dir() for base in bases):
        return []
    for base in bases:
        base.mkdir(exist_ok=True)
    return bases


def refused_processes(container: str) -> bool:
    """Whether the kernel has refused a container of Docker's a process, for its limit; False where that is not to be seen."""
    places = (f"pids/docker/{container}", f"docker/{container}", f"system.slice/docker-{container}.scope")
    for place in (*places, f"pids/system.slice/docker-{container}.scope"):
        with suppress(OSError, ValueError):
            for line in (ROOT / place / "pids.events").read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "max" and int(value):
                    return True
    return False


def existing(prefix: str = "") -> Iterator[tuple[str, Cgroup]]:
    """Name and cgroup of every sandbox on this machine whose name starts with `prefix`."""
    found: dict[str, list[Path]] = {}
    for base in (ROOT / "cc-ci", ROOT / "memory" / "cc-ci", ROOT / "pids" / "cc-ci"):
        with suppress(OSError):
            for folder in base.iterdir():
                if folder.is_dir() and folder.name.startswith(prefix):
                    found.setdefault(folder.name, []).append(folder)
    for name, folders in found.items():
        yield name, Cgroup(tuple(folders))
