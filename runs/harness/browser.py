"""Which browser a run uses: for pictures, and for tests with the fixture `browser`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

#: Debian's is a script that reads files missing in the sandbox; the binary is beside its resources.
_DEBIANS, _BEHIND = "/usr/bin/chromium", Path("/usr/lib/chromium/chromium")


def chromium() -> str:
    """CC_CI_CHROMIUM, else the machine's; empty if there is none."""
    named = os.environ.get("CC_CI_CHROMIUM")
    found = next(filter(None, map(shutil.which, [named] if named else ["chromium", "chromium-browser"])), "")
    return str(_BEHIND) if found == _DEBIANS and _BEHIND.exists() else found
