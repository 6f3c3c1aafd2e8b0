"""Which browser a run uses: for pictures, and for tests with the fixture `browser`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

#: Debian's is a script that reads files missing in the sandbox; the binary is beside its resources.
_DEBIANS, _BEHIND = "/usr/bin/chromium", Path("/usr/lib/chromium/chromium")


def chromium() -> str:
    """CC_CI_CHROMIUM, else Debian's, else the first in the PATH; empty if there is none."""
    named = os.environ.get("CC_CI_CHROMIUM")
    found = next(filter(None, map(shutil.which, [named] if named else [_DEBIANS, "chromium"])), "")
    # By way of a link, too.
    return str(_BEHIND) if found and os.path.realpath(found) == _DEBIANS and _BEHIND.exists() else found


def needs(program: str) -> dict[str, Path]:
    """What a sandbox mounts for this browser, besides /usr. It is started by its real path there.

    One that is elsewhere has its resources beside it; of a folder without them, which may be anything, the program alone.
    """
    real = Path(program).resolve()
    own = real.parent if (real.parent / "icudtl.dat").exists() else real
    wanted = [Path("/etc/fonts"), *([] if real.is_relative_to("/usr") else [own])]
    return {str(path): path for path in wanted if path.exists()}
