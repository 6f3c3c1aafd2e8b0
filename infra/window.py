"""When an app may be upgraded: `Mon-Fri 02:00-05:00 Europe/Berlin`. Pure.

A window speaks of what the clock on the wall shows there. So in the night in which the hour from two to three is left out a
window of that hour does not come, and in the night that has it twice it is open twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, available_timezones

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_SHAPE = re.compile(r"(?:(?P<days>[A-Za-z,-]+) )?(?P<start>\d\d:\d\d)-(?P<end>\d\d:\d\d)(?: (?P<zone>[A-Za-z][A-Za-z0-9_+/-]*))?")
_MINUTE = timedelta(minutes=1)
_UTC = ZoneInfo("UTC")


class BadWindow(ValueError):
    """The text is no window; the message says what is wrong with it."""


@dataclass(frozen=True)
class Window:
    """Days and hours at a place. One without a text is always open."""

    text: str = ""
    days: frozenset[int] = frozenset(range(7))
    start: int = 0  #: minutes after midnight
    end: int = 24 * 60
    zone: ZoneInfo = _UTC

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read `[DAYS ]HH:MM-HH:MM[ ZONE]`; without days every day, without a zone UTC, empty: always. Raises BadWindow.

        An end before the start lies on the next day: `Fri 22:00-03:00` closes on Saturday.
        """
        text = " ".join(text.split())
        if not text:
            return cls()
        match = _SHAPE.fullmatch(text)
        if not match:
            raise BadWindow(f"{text!r} is no window: it must read like Mon-Fri 02:00-05:00 Europe/Berlin")
        start, end = _minutes(match["start"]), _minutes(match["end"])
        if start == end or start == 24 * 60:
            raise BadWindow(f"the window {text!r} is never open: for the whole day write 00:00-24:00")
        zone = match["zone"] or "UTC"
        if zone not in available_timezones():
            raise BadWindow(f"there is no time zone {zone}: write one like Europe/Berlin")
        return cls(text, _days(match["days"] or "Mon-Sun"), start, end, ZoneInfo(zone))

    def contains(self, moment: datetime) -> bool:
        """Whether it is open at `moment` (with a time zone)."""
        local = moment.astimezone(self.zone)
        minute, today = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return today in self.days and self.start <= minute < self.end
        return (today in self.days and minute >= self.start) or ((today - 1) % 7 in self.days and minute < self.end)

    def opens(self, moment: datetime) -> datetime:
        """When it is open next, from `moment` on, to the minute; `moment` itself when it is open. In UTC."""
        found = self._next(moment, True)
        assert found is not None  # every window opens within a week, and a lost hour only puts it off
        return found

    def closes(self, moment: datetime) -> datetime | None:
        """When it closes after `moment`, at which it is open; None when it never does. In UTC."""
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
        raise BadWindow(f"{text} is no time of the day: write 00:00 to 24:00") from None
    return at.hour * 60 + at.minute


def _days(text: str) -> frozenset[int]:
    """`Mon-Wed,Sat` as numbers, Monday 0; a range may go over the week's end."""
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low, high = _day(first), _day(last if dash else first)
        days |= {(low + step) % 7 for step in range((high - low) % 7 + 1)}
    return frozenset(days)


def _day(text: str) -> int:
    if text.title() not in DAYS:
        raise BadWindow(f"{text!r} is no day: write {', '.join(DAYS)}")
    return DAYS.index(text.title())
