"""Delay before a retry: the one rule for polling, intake and reports."""

from __future__ import annotations

import random
from datetime import timedelta

LONGEST = timedelta(minutes=15)


def wait(failures: int, first: timedelta) -> timedelta:
    """Exponential backoff from `first`, doubled for each of the earlier `failures`, up to LONGEST; with 25 % jitter, so that
    simultaneous failures do not retry at the same time.
    """
    return min(LONGEST, first * (1 << min(failures, 10))) * random.uniform(0.75, 1.25)  # noqa: S311
