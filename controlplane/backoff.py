"""How long to wait before what failed is tried again: the one rule, for polling, intake and reports."""

from __future__ import annotations

import random
from datetime import timedelta

LONGEST = timedelta(minutes=15)


def wait(failures: int, first: timedelta) -> timedelta:
    """Twice as long after each of the earlier `failures`, from `first` on, at most LONGEST; a quarter more or less, so that
    what failed together does not come back together."""
    return min(LONGEST, first * (1 << min(failures, 10))) * random.uniform(0.75, 1.25)  # noqa: S311
