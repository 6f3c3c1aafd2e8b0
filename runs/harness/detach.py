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

LOCKED, TAKEN, FINISHED, BROKEN = b"locked", b"taken", b"finished", b"broken"
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
        said = os.read(reader, 64)
    if said in (LOCKED, TAKEN, FINISHED):
        return 0
    sys.stderr.write(f"The harness did not start; see {os.path.join(folder, 'harness.err')}\n")  # noqa: PTH118
    return 1


def _detached(folder: str, credential: dict[str, str], tell: int) -> None:
    """In the grandchild: let go of everything that was inherited, and run."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        errors = os.open(f"{folder}/harness.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
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
    said = _take(folder)
    if tell is not None:
        os.write(tell, said)
        os.close(tell)
    if said != LOCKED:
        return 3
    from pathlib import Path

    from runs.harness.engine import Engine
    from runs.harness.protocol import RunFolder, Verdict

    run_folder = RunFolder(Path(folder))
    try:
        engine = Engine(run_folder, credential)
    except (OSError, ValueError) as error:
        run_folder.write_results(_unreadable(run_folder.path, error))
        return 2

    def cancel(_number: int, _frame: object) -> None:
        engine.watch.cancelled = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, cancel)
    results = engine.run()
    return {Verdict.PASSED: 0, Verdict.FAILED: 1}.get(results.verdict, 2)


def _unreadable(folder: Path, error: Exception) -> Results:
    """The verdict on a request that cannot be read, such as one that another version wrote."""
    from datetime import UTC, datetime

    from runs.harness.protocol import Results, Verdict

    now = datetime.now(UTC)
    reason = f"The request cannot be read: {' '.join(str(error).split())[:500]}"
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
    with open(temporary, "w") as file:  # noqa: PTH123
        file.write(json.dumps({"pid": os.getpid(), "started": time.time()}))
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, f"{folder}/begun")  # noqa: PTH104
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
