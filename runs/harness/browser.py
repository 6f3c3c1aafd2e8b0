"""Which browser a run uses: for pictures, and for tests with the fixture `browser`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from infra.deployers.isolation.bubblewrap import PROGRAMS

#: Chromium's own, of which one is beside it.
_RESOURCES = ("resources.pak", "headless_lib_data.pak")
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

    One that is elsewhere has its resources beside it, in a folder of its own. Of any other folder, the program alone.
    """
    real = Path(program).resolve()
    place = real.parent
    own = (
        len(place.parts) > 2 and any((place / name).exists() for name in _RESOURCES) and not Path(PROGRAMS).is_relative_to(place)
    )
    wanted = [Path("/etc/fonts"), *([] if real.is_relative_to("/usr") else [place if own else real])]
    return {str(path): path for path in wanted if path.exists()}
