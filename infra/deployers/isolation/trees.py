"""Removes folders with untrusted content: a checkout, a mirror of references, the scratch space of tests."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def remove(folder: Path) -> bool:
    """Remove a folder with its content. Returns whether it is gone. Never raises.

    By `rm`, for which no folder is too deep: `shutil.rmtree` recurses into each level, and a stranger can create more levels than
    Python has frames.
    """
    with suppress(OSError):
        if not folder.is_symlink():
            # The system's own, whatever our PATH is.
            environment = {"PATH": os.defpath}
            subprocess.run(
                ["rm", "-rf", "--", folder], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
            )
    return not os.path.lexists(folder)


@contextmanager
def temporary(prefix: str) -> Iterator[Path]:
    """A temporary folder that is removed when the block is left."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        remove(folder)
