"""How the pages of runs show states, stages and tests."""

from __future__ import annotations

from collections.abc import Iterable

from django import template

from controlplane.templatetags.frame import weblink
from enrollment.forge_access.clients import kind_of
from enrollment.models import Repository
from runs import render
from runs.models import CaseResult

register = template.Library()

#: The colour of a state or status; text and an icon always show it as well.
TONES = {
    "passed": "good",
    "reached": "good",
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
    """A state or status in human-readable form."""
    return status.replace("_", " ")


@register.filter
def commit_url(repository: Repository | None, sha: str) -> str:
    """The commit's page at the forge; empty where the forge gave no address of the web."""
    url = weblink(repository.html_url) if repository else ""
    return kind_of(repository.forge).pages.commit.format(repository=url, sha=sha) if repository and url else ""


@register.filter
def once(text: str, message: str) -> str:
    """A remark without its reason if the page shows that already."""
    return render.once(text, message)


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds as `12.3 s` (whole ones as `12 s`) or `2 min 5 s`; a dash for None."""
    if isinstance(seconds, int) and 0 < seconds < 60:
        return f"{seconds} s"
    return render.seconds(seconds or None)


@register.filter
def counts(cases: Iterable[CaseResult]) -> str:
    return render.counts(cases)


@register.filter
def last_lines(text: str, number: int) -> str:
    """The end of a text. Also limits characters: a single line can have any length."""
    return "\n".join(text.rstrip().splitlines()[-number:])[-8000:]


@register.filter
def longer_than(text: str, number: int) -> bool:
    """Whether `last_lines` would cut the text."""
    return len(text.rstrip().splitlines()) > number or len(text) > 8000
