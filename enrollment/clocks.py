"""Whose time it is: the forge's clock, and how far it is believed.

What was seen up to a time is never asked for again, so one answer with a date in the far future would hide years of comments.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.utils import timezone

from enrollment.forges.base import ForgeClient

#: How far the forge's clock may be ahead of ours; a time beyond that is not believed.
AHEAD = timedelta(minutes=10)


def server_now(client: ForgeClient) -> datetime:
    """The forge's clock at its last answer; ours where it tells none, or one that is more than AHEAD of ours.

    Where the forge's clock is really so far ahead, windows that end here end too early: what lies behind is read again and
    again, found by its id, and nothing is lost. `words_on` tells people.
    """
    return believed(client.server_time) or timezone.now()


def believed(told: datetime | None) -> datetime | None:
    """A time that a forge told, now or once. None when it is from the future: never true, or our own clock was set back."""
    return told if told and told <= timezone.now() + AHEAD else None


def words_on(client: ForgeClient) -> str:
    """How far the forge's clock, as its last answer has it, is away from ours, for people; empty when that does no harm."""
    now = timezone.now()
    away = (client.server_time or now) - now
    if abs(away) <= AHEAD:
        return ""
    minutes = int(abs(away).total_seconds() // 60)
    text = f"the forge's clock is {minutes} minutes {'ahead of' if away > timedelta(0) else 'behind'} this server's"
    if away > timedelta(0):
        return f"{text}: comments are read many times over, and some older than an enrolment may count; set the wrong one right"
    return f"{text}: deliveries may seem older than they are; set the wrong one right"
