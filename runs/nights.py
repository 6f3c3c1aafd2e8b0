"""When a repository's turn for a scheduled run comes. Pure.

Each repository has a moment of its own in the window, which follows from its id: the same every night, and evenly spread over
them. Who missed it, because nothing ran then, is still due for some hours.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime, time, timedelta

from controlplane.time_window import Window

#: How long after its window's end a missed night is made up for.
LATE = timedelta(hours=6)
DAY = 24 * 60


def fraction(repository_id: int) -> float:
    """Its place among all, from 0 to 1: the same in every process."""
    return int.from_bytes(hashlib.sha256(str(repository_id).encode()).digest()[:6]) / 2**48


def opens(window: Window, night: date) -> datetime:
    """When the window opens on this day, in UTC. Nights are named after the day on which they begin."""
    return datetime.combine(night, time(window.start // 60, window.start % 60), window.zone).astimezone(UTC)


def length(window: Window) -> timedelta:
    return timedelta(minutes=(window.end - window.start) % DAY or DAY)


def moment(repository_id: int, night: date, window: Window) -> datetime:
    """When its turn comes."""
    return opens(window, night) + fraction(repository_id) * length(window)


def current_night(window: Window, now: datetime) -> date | None:
    """When the window opened last; None if that is so long ago that nothing more is started."""
    today = now.astimezone(window.zone).date()
    for night in (today, today - timedelta(days=1)):
        if night.weekday() in window.days and opens(window, night) <= now:
            return night if now < opens(window, night) + length(window) + LATE else None
    return None


def due(repository_id: int, now: datetime, window: Window, *, weekly: bool) -> date | None:
    """The date of its night, if it is due now, else None. Of a weekly run it is the Monday of its week.

    A weekly run has its own day of the week, among those of the window, and is due in each later night of that week as well.
    """
    night = current_night(window, now)
    if night is None or now < moment(repository_id, night, window):
        return None
    if not weekly:
        return night
    days = sorted(window.days)
    if night.weekday() < days[repository_id % len(days)]:
        return None
    return night - timedelta(days=night.weekday())
