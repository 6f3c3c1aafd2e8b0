"""Starts a harness as a process of its own and makes sure that a folder never has two. Imports nothing heavy."""

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

    from runs.harness.protocol import Results
    from runs.harness.watch import Watch

LOCKED, TAKEN, FINISHED = b"locked", b"taken", b"finished"
_START_SECONDS = 10.0
_LOCK_SECONDS = 2.0


def start(folder: str) -> int:
    """Start a detached harness for `folder`; 0 as soon as it, or an earlier one, holds the folder. Else 1."""
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
    said = b""
    if select.select([reader], [], [], _START_SECONDS)[0]:
        said = os.read(reader, 1000)
    if said in (LOCKED, TAKEN, FINISHED):
        return 0
    why = said.decode(errors="replace") or f"see {os.path.join(folder, 'harness.err')}"  # noqa: PTH118
    sys.stderr.write(f"The harness did not start: {why}\n")
    return 1


def _detached(folder: str, credential: dict[str, str], tell: int) -> None:
    """In the grandchild: let go of everything that was inherited, and run."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            errors = os.open(f"{folder}/harness.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError:  # what else there is to write will say so
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
    """Run the folder's request here and now, unless another harness has or had it.

    Gives 0 passed, 1 failed, 2 anything else, 3 when there was nothing to do.
    """
    os.umask(0o022)
    said, code = LOCKED, 3
    try:
        said = _take(folder)
    except OSError as error:
        said, code = f"{folder} cannot be written: {error.strerror}.".encode(), 2
    if tell is not None:
        os.write(tell, said)
        os.close(tell)
    elif code == 2:
        sys.stderr.write(f"{said.decode()}\n")
    if said != LOCKED:
        return code
    from pathlib import Path

    from runs.harness import disk
    from runs.harness.engine import Engine
    from runs.harness.protocol import RunFolder, Verdict

    run_folder = RunFolder(Path(folder))
    try:
        try:
            engine = Engine(run_folder, credential)
        except (OSError, ValueError) as error:
            disk.write(run_folder, _unusable(run_folder.path, error))
            return 2
        begin(engine.watch, engine.run_seconds)
        results = engine.run()
    except (disk.DiskFull, OSError) as error:  # not even the results can be written
        sys.stderr.write(f"{error}\n")
        return 2
    return {Verdict.PASSED: 0, Verdict.FAILED: 1}.get(results.verdict, 2)


def begin(watch: Watch, run_seconds: int) -> None:
    """Bound this process, and have it listen to whoever asks it to stop and to its own alarm."""
    from runs.harness import bounds

    def cancel(_number: int, _frame: object) -> None:
        watch.cancelled = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, cancel)
    bounds.hold(run_seconds)
    watch.arm()


def _unusable(folder: Path, error: Exception) -> Results:
    """The verdict on a request that cannot be read, such as one of another version, and on a folder that takes nothing more."""
    from datetime import UTC, datetime

    from runs.harness import disk
    from runs.harness.protocol import Results, Verdict

    now = datetime.now(UTC)
    full = disk.full(error, folder) if isinstance(error, OSError) else None
    reason = str(full) if full else f"The request cannot be read: {' '.join(str(error).split())[:500]}"
    return Results(run_id=folder.parent.name, verdict=Verdict.ERRORED, reason=reason, started=now, finished=now)


def _take(folder: str) -> bytes:
    """Take the lock for the rest of this process's life and say so in `begun`."""
    handle = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            # Somebody who only asks holds it for a moment (protocol.RunFolder.state): that is no other harness.
            if os.path.exists(f"{folder}/begun") or time.monotonic() > until:  # noqa: PTH110
                return TAKEN
            time.sleep(0.02)
    if os.path.exists(f"{folder}/results.json"):  # noqa: PTH110
        return FINISHED
    if os.path.exists(f"{folder}/begun"):  # noqa: PTH110
        return TAKEN  # it lived and was killed: the run is lost, not to be begun again here
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
    """The clone credential from standard input: one JSON object of texts, or nothing."""
    if sys.stdin is None or sys.stdin.isatty():
        return {}
    text = sys.stdin.read()
    if not text.strip():
        return {}
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("the credential on standard input is no JSON object")
    return {str(key): str(item) for key, item in value.items()}
