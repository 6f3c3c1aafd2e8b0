"""Removes folders with untrusted content: a checkout, a mirror of references, the scratch space of tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(folder: Path) -> bool:
    """Remove a folder with its content. Returns whether it is gone. Never raises.

    It walks one level at a time, holding one descriptor: `shutil.rmtree` recurses into each level, and a stranger can create more
    levels than Python has frames.
    """
    with suppress(OSError):
        _empty(folder)
        folder.rmdir()
    return not os.path.lexists(folder)


@contextmanager
def temporary(prefix: str) -> Iterator[Path]:
    """A temporary folder that is removed when the block is left."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        remove(folder)


def _empty(top: Path) -> None:
    here = os.open(top, _FOLDER)
    try:
        todo = [_without_files(here)]
        way: list[tuple[str, tuple[int, int]]] = []  # the name of each folder from `top` to here, and which one it lies in
        while todo[-1] or way:
            if todo[-1]:
                name, place = todo[-1].pop(), _identity(here)
                with suppress(OSError):
                    inner = os.open(name, _FOLDER, dir_fd=here)
                    os.close(here)
                    here = inner
                    way.append((name, place))
                    todo.append(_without_files(here))
                continue
            todo.pop()
            name, place = way.pop()
            above = os.open("..", _FOLDER, dir_fd=here)
            os.close(here)
            here = above
            if _identity(here) != place:  # somebody moved it while we were inside
                return
            with suppress(OSError):
                os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)


def _without_files(handle: int) -> list[str]:
    """Remove everything except folders from this one. Returns the folders' names."""
    folders = []
    with suppress(OSError), os.scandir(handle) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                with suppress(OSError):
                    os.unlink(entry.name, dir_fd=handle)
    return folders


def _identity(handle: int) -> tuple[int, int]:
    status = os.fstat(handle)
    return status.st_dev, status.st_ino
