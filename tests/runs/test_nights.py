"""When a repository's turn for a scheduled run comes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.time_window import Window
from runs import nights

WINDOW = Window.parse("22:00-04:00 Europe/Berlin")
NIGHT = date(2026, 11, 25)  # a Wednesday; Berlin is one hour ahead of UTC
OPENS = datetime(2026, 11, 25, 21, tzinfo=UTC)


@given(st.integers(1, 10**9))
def test_each_repository_has_its_moment_in_the_window_the_same_every_night(number: int) -> None:
    after = nights.moment(number, NIGHT, WINDOW) - OPENS
    assert timedelta(0) <= after < timedelta(hours=6)
    assert nights.moment(number, NIGHT + timedelta(days=1), WINDOW) - OPENS == after + timedelta(days=1)
    assert nights.due(number, OPENS + after - timedelta(seconds=1), WINDOW, weekly=False) is None
    assert nights.due(number, OPENS + after, WINDOW, weekly=False) == NIGHT


def test_they_are_spread_over_the_night() -> None:
    hours = [int((nights.moment(number, NIGHT, WINDOW) - OPENS).total_seconds() // 3600) for number in range(1, 601)]
    assert all(70 <= hours.count(hour) <= 130 for hour in range(6))


@pytest.mark.parametrize(
    ("hours", "night"),
    [(-1, None), (6, NIGHT), (11.9, NIGHT), (12.1, None), (23.9, None), (30, NIGHT + timedelta(days=1))],
    ids=["before", "at its end", "made up for", "too late", "the next evening", "the next night"],
)
def test_a_missed_night_is_made_up_for_some_hours(hours: float, night: date | None) -> None:
    assert nights.due(1, OPENS + timedelta(hours=hours), WINDOW, weekly=False) == night


@given(st.integers(1, 10**6))
def test_a_weekly_run_is_due_from_its_own_day_on_and_named_after_the_monday(number: int) -> None:
    window = Window.parse("Mon-Fri 01:00-05:00")
    monday = date(2026, 11, 23)
    due = [
        nights.due(number, datetime(2026, 11, 23, 5, 30, tzinfo=UTC) + timedelta(days=day), window, weekly=True)
        for day in range(7)
    ]
    own = number % 5
    assert due == [None] * own + [monday] * (5 - own) + [None, None]


@pytest.mark.parametrize("text", ["00:00-24:00", "02:30-03:30 Europe/Berlin", "Sun 23:00-01:00 America/New_York", ""])
@given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)))
def test_every_moment_has_at_most_one_night_also_when_clocks_change(text: str, now: datetime) -> None:
    window = Window.parse(text)
    night = nights.due(7, now, window, weekly=False)
    assert night is None or nights.moment(7, night, window) <= now < nights.moment(7, night, window) + timedelta(hours=31)
