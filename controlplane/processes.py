"""Linux's part of the supervised tree: children that die with their parent, and what an earlier tree left behind.

Every process that `cc-ci work` starts carries a mark in its environment: the lock it works under and the session it was
started in. A harness inherits the mark, but makes a session of its own, and so is never taken for a left-over.
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
    """Have the kernel kill this process when `parent`, which must be its parent, ends; end at once if it already has.

    Linux binds this to the parent's *thread* that forked, so parents must fork in their main thread.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before we could ask
        os._exit(1)


def forks_die_with_parent() -> None:
    """Bind every later `os.fork()` of this process, and theirs, in the same way: no part outlives the one above it.

    Programs started by `subprocess` are not touched: the kernel clears the signal at their fork, and no hook is run.
    """
    parents: list[int] = []
    os.register_at_fork(
        before=lambda: parents.append(os.getpid()),
        after_in_parent=parents.clear,
        after_in_child=lambda: die_with_parent(parents.pop()),
    )


def hold(lock: Path) -> int:
    """Take the lock file for as long as this process lives, and return its descriptor. Raises AlreadyRunning."""
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
    """The value of `CC_CI_WORK` for the children of this process."""
    return f"{os.getsid(0)}:{lock}"


def left_over(lock: Path) -> list[int]:
    """Processes of an earlier tree under this lock. Only sound while this process holds the lock."""
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
    """Kill what an earlier tree left behind, and wait until it is gone. Returns how many there were."""
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
    """SIGKILL a child's process group. Call it before the child is reaped: until then the number is nobody else's."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def has_ended(pid: int) -> bool:
    """Whether this child has ended; it stays unreaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def reap_strangers(known: set[int]) -> None:
    """Reap ended children that we did not start: as process 1 of a container we are given every orphan."""
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
