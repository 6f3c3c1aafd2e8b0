"""When an app may be upgraded, through the nights in which the clock is changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.time_window import BadWindow, Window

NIGHT = Window.parse("Mon-Fri 02:00-05:00 Europe/Berlin")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def open_minutes(window: Window, start: str, hours: int) -> int:
    at = utc(start) - timedelta(hours=2)  # it is later in Berlin
    return sum(window.contains(at + timedelta(minutes=minute)) for minute in range(hours * 60))


def test_days_hours_and_place() -> None:
    # Tuesday, 24 November 2026: Berlin is one hour ahead.
    assert not NIGHT.contains(utc("2026-11-24 00:59:59"))
    assert NIGHT.contains(utc("2026-11-24 01:00"))
    assert NIGHT.contains(utc("2026-11-24 03:59:59"))
    assert not NIGHT.contains(utc("2026-11-24 04:00"))
    assert not NIGHT.contains(utc("2026-11-22 02:00")), "a Sunday"
    assert NIGHT.contains(utc("2026-07-01 00:00")), "two hours ahead in summer"


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        # 29 March 2026: from two to three there is no time in Berlin. 25 October: that hour comes twice.
        ("02:00-03:00 Europe/Berlin", {"2026-03-28": 60, "2026-03-29": 0, "2026-10-25": 120}),
        ("02:30-03:30 Europe/Berlin", {"2026-03-28": 60, "2026-03-29": 30, "2026-10-25": 90}),
        ("01:00-05:00 Europe/Berlin", {"2026-03-28": 240, "2026-03-29": 180, "2026-10-25": 300}),
        ("02:00-03:00", {"2026-03-28": 60, "2026-03-29": 60, "2026-10-25": 60}),
    ],
)
def test_nights_in_which_the_clock_is_changed(text: str, hours: dict[str, int]) -> None:
    window = Window.parse(text)
    for day, minutes in hours.items():
        assert open_minutes(window, f"{day} 00:00", 8) == minutes, (text, day)


def test_the_opening_that_does_not_come() -> None:
    window = Window.parse("Sun 02:00-03:00 Europe/Berlin")
    assert window.opens(utc("2026-03-28 12:00")) == utc("2026-04-05 00:00"), "a week later"
    assert Window.parse("Sun 02:30-03:30 Europe/Berlin").opens(utc("2026-03-28 12:00")) == utc("2026-03-29 01:00")


def test_over_midnight_it_belongs_to_the_day_it_opens_on() -> None:
    window = Window.parse("fri 22:00-03:00 Europe/Berlin")
    assert window.contains(utc("2026-11-27 21:00"))
    assert window.contains(utc("2026-11-28 01:59")), "Saturday morning"
    assert not window.contains(utc("2026-11-28 02:00"))
    assert not window.contains(utc("2026-11-27 01:00")), "Friday morning would belong to Thursday"
    assert window.closes(utc("2026-11-27 23:10")) == utc("2026-11-28 02:00")


@pytest.mark.parametrize(
    ("text", "days"),
    [("Mon,Wed,Sat-Sun 00:00-24:00", {0, 2, 5, 6}), ("Sat-Mon 00:00-24:00", {5, 6, 0}), ("10:00-11:00", set(range(7)))],
)
def test_days(text: str, days: set[int]) -> None:
    assert Window.parse(text).days == days


def test_without_a_window_it_is_always_open() -> None:
    always = Window.parse(" ")
    now = utc("2026-11-24 12:34:56")
    assert always == Window()
    assert always.contains(now) and always.opens(now) == now and always.closes(now) is None
    assert str(always) == "always"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Mon-Fri", "invalid window"),
        ("Mon-Fri 2:00-5:00", "invalid window"),
        ("Mon-Fri 02:00-25:00 Europe/Berlin", "invalid time 25:00"),
        ("02:00-02:00", "never open"),
        ("24:00-02:00", "never open"),
        ("Moon 02:00-03:00", "invalid day 'Moon': expected Mon"),
        ("Mon-Fri 02:00-05:00 Europe/Berlim", "unknown time zone Europe/Berlim"),
        ("Mon-Fri 02:00-05:00 ../../etc/passwd", "invalid window"),
    ],
)
def test_what_is_no_window(text: str, why: str) -> None:
    with pytest.raises(BadWindow, match=why):
        Window.parse(text)


@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)),
    st.sampled_from(["02:00-05:00", "Sat 23:30-00:30", "Mon-Fri 09:00-17:00"]),
)
def test_the_next_opening_is_the_first(moment: datetime, text: str) -> None:
    window = Window.parse(f"{text} America/New_York")
    now = moment.replace(tzinfo=UTC)
    opens = window.opens(now)
    assert opens >= now and window.contains(opens)
    assert opens == now or not window.contains(opens - timedelta(minutes=1))
    closes = window.closes(opens)
    assert closes and closes > opens and not window.contains(closes) and window.contains(closes - timedelta(minutes=1))
