"""Limits on memory, processes and CPU through cgroups (version 1 or 2), where we may create one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
#: What all sandboxes together get of the processors when others want them, too: half of what each of the machine's other
#: groups gets (100; in version 1 1024), however many processes they have.
_WEIGHT = {"cpu.weight": 50, "cpu.shares": 512}


@dataclass(frozen=True)
class Cgroup:
    """The folders of one sandbox: one per controller (version 1), or one for all (version 2)."""

    folders: tuple[Path, ...]

    @property
    def procs(self) -> list[str]:
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed something in it for lack of memory."""
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
        """Kill what is left in it and remove it. Returns whether it is gone."""
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
    """Create a cgroup with these limits; None if that is not permitted."""
    made: list[Path] = []
    try:
        for base in _bases():
            folder = base / name
            folder.mkdir(exist_ok=True)
            made.append(folder)
            _write(folder, _limits(memory_mb << 20, processes))
    except OSError:
        made_one = Cgroup(tuple(made))
        made_one.remove()
        return None
    return Cgroup(tuple(made)) if made else None


def lacking() -> str:
    """What cgroups cannot limit here, as text; empty if they can limit everything."""
    bases: list[Path] = []
    with suppress(OSError):
        bases = _bases()
    if not bases or not all(os.access(base, os.W_OK) for base in bases):
        return "memory, processes and processors"
    return "" if any((base / name).exists() for base in bases for name in _WEIGHT) else "processors"


def _limits(memory: int, processes: int) -> dict[str, int]:
    return {
        "memory.max": memory,
        "memory.swap.max": 0,
        "memory.oom.group": 0,
        "memory.limit_in_bytes": memory,
        "memory.memsw.limit_in_bytes": memory,
        "pids.max": processes,
    }


def _write(folder: Path, values: Mapping[str, int]) -> None:
    """Write those of these values that exist; each version of cgroups has its own names."""
    for name, value in values.items():
        if (folder / name).exists():
            (folder / name).write_text(str(value))


def _bases() -> list[Path]:
    """The folders in which our cgroups go, including CPU if possible. Empty if nothing can be limited here."""
    if (ROOT / "cgroup.controllers").exists():
        base = ROOT / "cc-ci"
        with suppress(OSError):
            _control(ROOT, "+memory +pids")
        with suppress(OSError):  # by itself: a kernel may refuse this one, for the sake of real-time processes
            _control(ROOT, "+cpu")
        base.mkdir(exist_ok=True)
        _control(base, "+memory +pids")
        with suppress(OSError):
            _control(base, "+cpu")
        bases = [base]
    else:
        bases = [ROOT / controller / "cc-ci" for controller in ("memory", "pids")]
        if not all(base.parent.is_dir() for base in bases):
            return []
        for base in bases:
            base.mkdir(exist_ok=True)
        with suppress(OSError):
            (base := ROOT / "cpu" / "cc-ci").mkdir(exist_ok=True)
            bases += [base] if os.access(base, os.W_OK) else []
    for base in bases:
        with suppress(OSError):
            _write(base, _WEIGHT)
    return bases


def _control(folder: Path, controllers: str) -> None:
    (folder / "cgroup.subtree_control").write_text(controllers)


def refused_processes(container: str) -> bool:
    """Whether the kernel refused a Docker container a process because of its limit; False if that is not visible."""
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
    for base in (ROOT / "cc-ci", *(ROOT / controller / "cc-ci" for controller in ("memory", "pids", "cpu"))):
        with suppress(OSError):
            for folder in base.iterdir():
                if folder.is_dir() and folder.name.startswith(prefix):
                    found.setdefault(folder.name, []).append(folder)
    for name, folders in found.items():
        yield name, Cgroup(tuple(folders))
