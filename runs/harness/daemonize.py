"""Starts a harness as a separate process and ensures that a folder never has two. Imports nothing heavy."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from runs.harness.deadlines import Deadlines
    from runs.harness.protocol import Results

LOCKED, TAKEN, FINISHED = b"locked", b"taken", b"finished"
_START_SECONDS = 10.0
_LOCK_SECONDS = 2.0


def start(folder: str) -> int:
    """Start a detached harness for `folder`. Returns 0 once it, or an earlier one, holds the folder, else 1."""
    credential = read_credential()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        if os.fork() == 0:
            _detached(folder, credential, writer)
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    state = b""
    if select.select([reader], [], [], _START_SECONDS)[0]:
        state = os.read(reader, 1000)
    if state in (LOCKED, TAKEN, FINISHED):
        return 0
    why = state.decode(errors="replace") or f"see {os.path.join(folder, 'harness.err')}"  # noqa: PTH118
    sys.stderr.write(f"The harness did not start: {why}\n")
    return 1


def _detached(folder: str, credential: dict[str, str], tell: int) -> None:
    """In the grandchild: detach from everything inherited, and run."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            errors = os.open(f"{folder}/harness.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError:  # later writes will report it
            errors = os.open(os.devnull, os.O_WRONLY)
        for source, target in ((null, 0), (errors, 1), (errors, 2)):
            os.dup2(source, target)
        os.dup2(tell, 3)
        os.set_inheritable(3, False)
        os.closerange(4, 4096)
        code = run(folder, credential, tell=3)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def run(folder: str, credential: dict[str, str], tell: int | None = None) -> int:
    """Run the folder's request in this process, unless another harness has or had it.

    Returns 0 for passed, 1 for failed, 2 for anything else, 3 if there was nothing to do.
    """
    os.umask(0o022)
    state, code = LOCKED, 3
    try:
        state = _take(folder)
    except OSError as error:
        state, code = f"Cannot write {folder}: {error.strerror}.".encode(), 2
    if tell is not None:
        os.write(tell, state)
        os.close(tell)
    elif code == 2:
        sys.stderr.write(f"{state.decode()}\n")
    if state != LOCKED:
        return code
    from pathlib import Path

    from runs.harness import disk_full
    from runs.harness.engine import Engine
    from runs.harness.protocol import RunFolder, Verdict

    run_folder = RunFolder(Path(folder))
    try:
        try:
            engine = Engine(run_folder, credential)
        except (OSError, ValueError) as error:
            disk_full.write(run_folder, _unusable(run_folder.path, error))
            return 2
        begin(engine.deadlines, engine.run_seconds)
        results = engine.run()
    except (disk_full.DiskFull, OSError) as error:  # not even the results can be written
        sys.stderr.write(f"{error}\n")
        return 2
    return {Verdict.PASSED: 0, Verdict.FAILED: 1}.get(results.verdict, 2)


def begin(deadlines: Deadlines, run_seconds: int) -> None:
    """Limit this process, and install the handlers for requests to stop and for its own alarm."""
    from runs.harness import process_limits

    def cancel(_number: int, _frame: object) -> None:
        deadlines.cancelled = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, cancel)
    process_limits.hold(run_seconds)
    deadlines.arm()


def _unusable(folder: Path, error: Exception) -> Results:
    """The verdict for an unreadable request, such as one of another version, and for a folder that cannot be written."""
    from datetime import UTC, datetime

    from runs.harness import disk_full
    from runs.harness.protocol import Results, Verdict

    now = datetime.now(UTC)
    full = disk_full.full(error, folder) if isinstance(error, OSError) else None
    reason = str(full) if full else f"Cannot read the request: {' '.join(str(error).split())[:500]}"
    return Results(run_id=folder.parent.name, verdict=Verdict.ERRORED, reason=reason, started=now, finished=now)


def _take(folder: str) -> bytes:
    """Take the lock for the rest of this process, and record that in `begun`."""
    handle = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            # A checker holds it briefly (protocol.RunFolder.state): that is not another harness.
            if os.path.exists(f"{folder}/begun") or time.monotonic() > until:  # noqa: PTH110
                return TAKEN
            time.sleep(0.02)
    if os.path.exists(f"{folder}/results.json"):  # noqa: PTH110
        return FINISHED
    if os.path.exists(f"{folder}/begun"):  # noqa: PTH110
        return TAKEN  # it ran and was killed: the run is lost, and not restarted here
    temporary = f"{folder}/.begun.{os.getpid()}"
    try:
        with open(temporary, "w") as file:  # noqa: PTH123
            file.write(json.dumps({"pid": os.getpid(), "started": time.time()}))
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, f"{folder}/begun")  # noqa: PTH104
    except OSError:
        if os.path.exists(temporary):  # noqa: PTH110
            os.unlink(temporary)  # noqa: PTH108
        raise
    return LOCKED


def read_credential() -> dict[str, str]:
    """The clone credential from standard input: a JSON object of strings, or nothing."""
    if sys.stdin is None or sys.stdin.isatty():
        return {}
    text = sys.stdin.read()
    if not text.strip():
        return {}
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("the credential on standard input is not a JSON object")
    return {str(key): str(item) for key, item in value.items()}
