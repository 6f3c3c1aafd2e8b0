"""Which time counts: the forge's clock, and how far it is trusted.

Whatever is older than the time read up to is never requested again, so one response with a date in the far future would hide
years of comments.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.utils import timezone

from enrollment.forges.base import ForgeClient

#: How far the forge's clock may be ahead of ours; a time beyond that is not trusted.
AHEAD = timedelta(minutes=10)


def server_now(client: ForgeClient) -> datetime:
    """The forge's clock at its last response; ours if it sent no date, or one more than AHEAD of ours.

    If the forge's clock really is further ahead, windows end too early: what lies after them is read repeatedly, recognised by
    id, and nothing is lost. `skew_message` reports it.
    """
    return believed(client.server_time) or timezone.now()


def believed(time: datetime | None) -> datetime | None:
    """A time reported by a forge, now or earlier; None if it is in the future, which means it was wrong or our clock was set
    back.
    """
    return time if time and time <= timezone.now() + AHEAD else None


def skew_message(client: ForgeClient) -> str:
    """By how much the forge's clock, at its last response, differs from ours, as a message; empty if that does no harm."""
    now = timezone.now()
    away = (client.server_time or now) - now
    if abs(away) <= AHEAD:
        return ""
    minutes = int(abs(away).total_seconds() // 60)
    text = f"the forge's clock is {minutes} minutes {'ahead of' if away > timedelta(0) else 'behind'} this server's"
    if away > timedelta(0):
        return f"{text}: comments are read many times over, and some older than an enrolment may count; correct the wrong clock"
    return f"{text}: deliveries may seem older than they are; correct the wrong clock"
