"""How states, stages and tests are told on the pages of runs."""

from __future__ import annotations

from collections.abc import Iterable

from django import template

from runs import render
from runs.models import CaseResult

register = template.Library()

#: The colour of a state or status; it is always said in words and by an icon as well.
TONES = {
    "passed": "good",
    "climbed": "good",
    "stopped": "bad",
    "failed": "bad",
    "errored": "warn",
    "timed_out": "warn",
    "running": "busy",
    "starting": "busy",
}


@register.filter
def tone(status: str) -> str:
    return TONES.get(status, "quiet")


@register.filter
def words(status: str) -> str:
    """A state or status as people write it."""
    return status.replace("_", " ")


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds as `12.3 s` (whole ones as `12 s`) or `2 min 5 s`; a dash for nothing."""
    if isinstance(seconds, int) and 0 < seconds < 60:
        return f"{seconds} s"
    return render.seconds(seconds or None)


@register.filter
def counts(cases: Iterable[CaseResult]) -> str:
    return render.counts(cases)


@register.filter
def last_lines(text: str, number: int) -> str:
    """The end of a text. Cut by characters too: one line alone can be as long as it likes."""
    return "\n".join(text.rstrip().splitlines()[-number:])[-8000:]


@register.filter
def longer_than(text: str, number: int) -> bool:
    """Whether `last_lines` would leave something out."""
    return len(text.rstrip().splitlines()) > number or len(text) > 8000
