"""What becomes of a run when the disk is full: it ends, in words, and its results find the room that was kept for them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from runs.harness.protocol import Results, RunFolder

#: Full, more than somebody may have, or bigger than a file may be.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Kept from the start of a run, in its folder, for what it writes at the end.
ROOM = ".room"
_ROOM_BYTES = 1 << 20
#: What goes first when there is none left all the same: no verdict stands in them.
_DISPENSABLE = ("picture.png", "docker-events.txt", "service-*.log", "junit-*.xml", "hook-*.txt", "log.txt")


class DiskFull(Exception):
    """Nothing can be written any more; the message says where, and what to do."""


def full(error: OSError, place: Path) -> DiskFull | None:
    """What to tell of an error, if it means that the disk is full; else None."""
    if error.errno not in _FULL:
        return None
    named = error.filename2 or error.filename  # of a copy, the second is where it goes
    where = Path(named) if isinstance(named, str) and named.startswith("/") else place
    while not where.is_dir():
        where = where.parent
    left = ""
    with suppress(OSError):
        left = f" ({shutil.disk_usage(where).free >> 20} MB are free)"
    return DiskFull(f"The disk is full: {where} takes no more{left}. Make room there, and start the run again.")


def said_so(code: int, words: bytes, folder: Path) -> bool:
    """Whether a program that failed did so because `folder` takes no more: by its signal, by its words, or there is no room."""
    if code == -signal.SIGXFSZ or b"No space left on device" in words or b"Disk quota exceeded" in words:
        return True
    try:
        return shutil.disk_usage(folder).free < _ROOM_BYTES >> 4
    except OSError:
        return False


def keep_room(folder: RunFolder) -> None:
    """Set room aside for the end of the run. Raises OSError when there is none."""
    handle = os.open(folder.path / ROOM, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(handle, 0, _ROOM_BYTES)
    except OSError as error:
        if error.errno in _FULL:  # else it is a file system that cannot do it
            raise
    finally:
        os.close(handle)


def give_room(folder: RunFolder) -> None:
    with suppress(OSError):
        (folder.path / ROOM).unlink(missing_ok=True)


def write(folder: RunFolder, results: Results) -> None:
    """Write the results, at the price of the logs where there is no other way. Raises DiskFull, and OSError."""
    give_room(folder)
    try:
        folder.write_results(results)
        return
    except OSError as error:
        if not (told := full(error, folder.path)):
            raise
    for pattern in _DISPENSABLE:
        for path in folder.path.glob(pattern):
            with suppress(OSError):
                path.unlink()
    stages = [stage.model_copy(update={"cases": []}) for stage in results.stages]
    warnings = [*results.warnings[:20], "The disk was full: the logs and the single tests are lost."]
    short = {"artefacts": [], "stages": stages, "warnings": warnings, "lint": [], "changed": [], "extras": type(results.extras)()}
    try:
        folder.write_results(results.model_copy(update=short))
    except OSError as error:
        raise (full(error, folder.path) or told) from error
