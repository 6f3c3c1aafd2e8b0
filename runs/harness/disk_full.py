"""Handles a full disk: the run ends with a clear message, and its results use space that was reserved for them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from runs.harness.protocol import Results, RunFolder

#: Disk full, quota exceeded, or file too large.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Reserved from the start of a run, in its folder, for what it writes at the end.
ROOM = ".room"
_ROOM_BYTES = 1 << 20
#: Deleted first if there is still no space: they contain no verdict.
_DISPENSABLE = ("picture.png", "docker-events.txt", "service-*.log", "junit-*.xml", "hook-*.txt", "log.txt")


class DiskFull(Exception):
    """Nothing can be written any more; the message says where, and what to do."""


def full(error: OSError, place: Path) -> DiskFull | None:
    """The DiskFull to report for an error that means a full disk; else None."""
    if error.errno not in _FULL:
        return None
    named = error.filename2 or error.filename  # for a copy, the second is the target
    where = Path(named) if isinstance(named, str) and named.startswith("/") else place
    while not where.is_dir():
        where = where.parent
    left = ""
    with suppress(OSError):
        left = f" ({shutil.disk_usage(where).free >> 20} MB are free)"
    return DiskFull(f"The disk is full: cannot write to {where}{left}. Free some space there, and start the run again.")


def caused(code: int, text: bytes, folder: Path) -> bool:
    """Whether a program failed because `folder` is full: judged by its signal, its output, or the free space."""
    if code == -signal.SIGXFSZ or b"No space left on device" in text or b"Disk quota exceeded" in text:
        return True
    try:
        return shutil.disk_usage(folder).free < _ROOM_BYTES >> 4
    except OSError:
        return False


def keep_room(folder: RunFolder) -> None:
    """Reserve space for the end of the run. Raises OSError if there is none."""
    handle = os.open(folder.path / ROOM, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, _ROOM_BYTES)
    except OSError as error:
        if error.errno in _FULL:  # else the file system does not support it
            raise
    finally:
        os.close(handle)


def give_room(folder: RunFolder) -> None:
    with suppress(OSError):
        (folder.path / ROOM).unlink(missing_ok=True)


def write(folder: RunFolder, results: Results) -> None:
    """Write the results, deleting the logs if there is no other way. Raises DiskFull and OSError."""
    give_room(folder)
    try:
        folder.write_results(results)
        return
    except OSError as error:
        if not (message := full(error, folder.path)):
            raise
    for pattern in _DISPENSABLE:
        for path in folder.path.glob(pattern):
            with suppress(OSError):
                path.unlink()
    stages = [stage.model_copy(update={"cases": []}) for stage in results.stages]
    warnings = [*results.warnings[:20], "The disk was full: the logs and the individual test results were lost."]
    short = {"artefacts": [], "stages": stages, "warnings": warnings, "lint": [], "changed": [], "extras": type(results.extras)()}
    try:
        folder.write_results(results.model_copy(update=short))
    except OSError as error:
        raise (full(error, folder.path) or message) from error
