"""When apps may be upgraded and scheduled runs start: `Mon-Fri 02:00-05:00 Europe/Berlin`. Pure.

A window is in local wall-clock time. When the clock skips the hour from two to three, a window in that hour does not open; when
the hour repeats, it opens twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_SHAPE = re.compile(r"(?:(?P<days>[A-Za-z,-]+) )?(?P<start>\d\d:\d\d)-(?P<end>\d\d:\d\d)(?: (?P<zone>[A-Za-z][A-Za-z0-9_+/-]*))?")
_MINUTE = timedelta(minutes=1)
_UTC = ZoneInfo("UTC")
_zones = cache(available_timezones)  # it reads hundreds of files


class BadWindow(ValueError):
    """Not a valid window; the message says why."""


@dataclass(frozen=True)
class Window:
    """Days and hours in a time zone. An empty text means always open."""

    text: str = ""
    days: frozenset[int] = frozenset(range(7))
    start: int = 0  #: minutes after midnight
    end: int = 24 * 60
    zone: ZoneInfo = _UTC

    @classmethod
    def parse(cls, text: str) -> Window:
        """Parse `[DAYS ]HH:MM-HH:MM[ ZONE]`. Default: every day, UTC; empty means always. Raises BadWindow.

        An end before the start is on the next day: `Fri 22:00-03:00` closes on Saturday.
        """
        text = " ".join(text.split())
        if not text:
            return cls()
        match = _SHAPE.fullmatch(text)
        if not match:
            raise BadWindow(f"invalid window {text!r}: expected, for example, Mon-Fri 02:00-05:00 Europe/Berlin")
        start, end = _minutes(match["start"]), _minutes(match["end"])
        if start == end or start == 24 * 60:
            raise BadWindow(f"the window {text!r} is never open: for the whole day use 00:00-24:00")
        zone = match["zone"] or "UTC"
        if zone not in _zones():
            raise BadWindow(f"unknown time zone {zone}: expected, for example, Europe/Berlin")
        return cls(text, _days(match["days"] or "Mon-Sun"), start, end, ZoneInfo(zone))

    def contains(self, moment: datetime) -> bool:
        """Whether it is open at `moment` (timezone-aware)."""
        local = moment.astimezone(self.zone)
        minute, today = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        return (today in self.days and minute >= self.start) or ((today - 1) % 7 in self.days and minute < self.end)

    def opens(self, moment: datetime) -> datetime:
        """When it opens next, from `moment` on, to the minute; `moment` itself if it is open. In UTC."""
        found = self._next(moment, True)
        assert found is not None  # every window opens within a week; a skipped hour only delays it
        return found

    def closes(self, moment: datetime) -> datetime | None:
        """When it closes after `moment`, at which it is open; None if never. In UTC."""
        return self._next(moment, False)

    def _next(self, moment: datetime, wanted: bool) -> datetime | None:
        if self.contains(moment) == wanted:
            return moment.astimezone(UTC)
        at = moment.astimezone(UTC).replace(second=0, microsecond=0) + _MINUTE
        for _ in range(15 * 24 * 60):  # by the minute: no arithmetic on local times that might not exist
            if self.contains(at) == wanted:
                return at
            at += _MINUTE
        return None

    def __str__(self) -> str:
        return self.text or "always"


def _minutes(text: str) -> int:
    if text == "24:00":
        return 24 * 60
    try:
        at = time.fromisoformat(text)
    except ValueError:
        raise BadWindow(f"invalid time {text}: expected 00:00 to 24:00") from None
    return at.hour * 60 + at.minute


def _days(text: str) -> frozenset[int]:
    """Parse `Mon-Wed,Sat` to numbers, Monday 0; a range may wrap around the week's end."""
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low, high = _day(first), _day(last if dash else first)
        days |= {(low + step) % 7 for step in range((high - low) % 7 + 1)}
    return frozenset(days)


def _day(text: str) -> int:
    if text.title() not in DAYS:
        raise BadWindow(f"invalid day {text!r}: expected {', '.join(DAYS)}")
    return DAYS.index(text.title())
