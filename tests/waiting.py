"""Waiting for evidence: tests wait for a state that comes, and never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Seconds until a wait is given up. It takes as long as the machine needs; this only ends what never comes.
PATIENCE = 600.0


def until(
    what: Callable[[], Any], why: str | Callable[[], object] = "it did not come about", *, seconds: float = PATIENCE
) -> Any:
    """Wait until `what` gives something true, and return that. `why`: what a failure says."""
    end, pause = time.monotonic() + seconds, 0.02
    while not (found := what()):
        assert time.monotonic() < end, why() if callable(why) else why
        time.sleep(pause := min(pause * 1.2, 0.5))
    return found
