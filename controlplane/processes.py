"""Process handling on Linux: children that die with their parent, and cleaning up after an earlier supervisor.

Every process started by `cc-ci work` carries a mark in its environment: the lock it works under, and its session. A harness
inherits the mark, but starts a session of its own, and so is never mistaken for a leftover.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from controlplane.config import MARK

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class AlreadyRunning(Exception):
    """Another `cc-ci work` holds the lock."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which must be its parent, exits; exit now if it already has.

    Linux binds this to the parent's *thread* that forked, so parents must fork in their main thread.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it exited before prctl
        os._exit(1)


def forks_die_with_parent() -> None:
    """Bind every later `os.fork()` of this process and its descendants the same way: none outlives its parent.

    Programs started by `subprocess` are unaffected: the kernel clears the signal at their fork, and no hook runs.
    """
    parents: list[int] = []
    os.register_at_fork(
        before=lambda: parents.append(os.getpid()),
        after_in_parent=parents.clear,
        after_in_child=lambda: die_with_parent(parents.pop()),
    )


def hold(lock: Path) -> int:
    """Hold the lock file for the life of this process; returns its descriptor. Raises AlreadyRunning."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 200).decode(errors="replace").strip()
        os.close(handle)
        raise AlreadyRunning(holder or "an unknown process") from None
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()}\n".encode())
    return handle


def mark(lock: Path) -> str:
    """The value of `CC_CI_WORK` for this process's children."""
    return f"{os.getsid(0)}:{lock}"


def left_over(lock: Path) -> list[int]:
    """Processes left by an earlier supervisor under this lock. Only valid while this process holds the lock."""
    found = []
    for pid in _pids():
        if pid == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            session = os.getsid(pid)
        except (OSError, ProcessLookupError):
            continue  # gone, or somebody else's
        if f"{MARK}={session}:{lock}".encode() in environment.split(b"\0"):
            found.append(pid)
    return found


def end_left_over(lock: Path, seconds: float = 5) -> int:
    """Kill what an earlier supervisor left behind, and wait until it is gone. Returns the number of processes."""
    ended: set[int] = set()
    deadline = time.monotonic() + seconds
    while (pids := left_over(lock)) and time.monotonic() < deadline:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        ended.update(pids)
        time.sleep(0.05)
    return len(ended)


def kill_group(group: int) -> None:
    """SIGKILL a child's process group. Call it before the child is reaped, while its id cannot be reused."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def has_ended(pid: int) -> bool:
    """Whether this child has exited; leaves it unreaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def reap_strangers(known: set[int]) -> None:
    """Reap exited children that we did not start: as process 1 in a container we inherit all orphans."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in known:
            return
        os.waitpid(ended.si_pid, 0)


def _pids() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)
