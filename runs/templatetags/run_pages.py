"""How the pages of runs show states, stages and tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import template

from controlplane.templatetags.frame import weblink
from enrollment.forge_access.clients import kind_of
from enrollment.models import Repository
from runs import render
from runs.comparison import Comparison
from runs.models import StageResult
from runs.overview import TREND, Overview, StageChart

register = template.Library()
register.filter("once", render.once)
register.filter("counts", render.counts)

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
def commits_url(comparison: Comparison) -> str:
    """The forge's page of the commits between the two runs; empty where it has none, or both are of one commit."""
    repository, before, now = comparison.now.repository, comparison.before, comparison.now
    url, page = weblink(repository.html_url), kind_of(repository.forge).pages.compare
    return page.format(repository=url, before=before.sha, sha=now.sha) if url and before.sha != now.sha else ""


@register.filter
def metadata_lines(claims: list[dict[str, Any]]) -> str:
    """The lines of a README's metadata that a run shows to be others."""
    return "\n".join(f"* **{claim['name']}**: {claim['shown']}" for claim in claims if not claim["agrees"])


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds as `12.3 s` (whole ones as `12 s`) or `2 min 5 s`; a dash for None."""
    if isinstance(seconds, int) and 0 < seconds < 60:
        return f"{seconds} s"
    return render.seconds(seconds or None)


@register.filter
def last_lines(text: str, number: int) -> str:
    """The end of a text. Also limits characters: a single line can have any length."""
    return "\n".join(text.rstrip().splitlines()[-number:])[-8000:]


@register.filter
def longer_than(text: str, number: int) -> bool:
    """Whether `last_lines` would cut the text."""
    return len(text.rstrip().splitlines()) > number or len(text) > 8000


#: The size of a chart's bar, and of the space for it.
BAR, STEP, TALL = 5, 7, 28
#: The length of the line that stands for the time of a run.
LINE = 96


@register.inclusion_tag("runs/_bars.html")
def trend(overview: Overview) -> dict[str, Any]:
    """How the last runs of a recipe ended, as bars: a full one passed, a half one did not."""
    bars = [_bar(number, tone(run.state), 1.0 if run.state == "passed" else 0.5) for number, run in enumerate(overview.trend)]
    what = f"The last {len(bars)} runs, the newest on the right: {overview.words}" if bars else "No runs yet"
    return {"bars": bars, "width": STEP * TREND, "height": TALL, "label": what}


@register.inclusion_tag("runs/_bars.html")
def times(chart: StageChart) -> dict[str, Any]:
    """How long a stage took in each run, as bars."""
    most = max((seconds for seconds, _ in chart.points), default=0) or 1
    bars = [_bar(number, tone(status), max(seconds / most, 0.08)) for number, (seconds, status) in enumerate(chart.points)]
    label = f"{chart.name}: how long it took in the last {len(bars)} runs, at most {duration(most)}, the newest on the right"
    return {"bars": bars, "width": STEP * len(bars), "height": TALL, "label": label}


@register.inclusion_tag("runs/_bars.html")
def timeline(stage: StageResult, stages: Iterable[StageResult]) -> dict[str, Any]:
    """When a stage ran, as a part of the time that all took; nothing for one that was taken over or did not run."""
    ran = [(one.started_at, one.finished_at) for one in stages if one.started_at and one.finished_at and not one.taken_from]
    if stage.taken_from or not stage.started_at or not stage.finished_at:
        return {}
    begun, ended = min(start for start, _ in ran), max(end for _, end in ran)
    whole = (ended - begun).total_seconds() or 1
    start, end = ((at - begun).total_seconds() for at in (stage.started_at, stage.finished_at))
    bars = [
        {"x": 0, "y": 1, "width": LINE, "height": 4, "tone": "track"},
        {
            "x": LINE * start / whole,
            "y": 0,
            "width": max(LINE * (end - start) / whole, 2),
            "height": 6,
            "tone": tone(stage.status),
        },
    ]
    return {"bars": bars, "width": LINE, "height": 6, "label": f"{stage.name} ran from second {start:.0f} to {end:.0f}"}


def _bar(number: int, colour: str, share: float) -> dict[str, Any]:
    height = round(TALL * share, 1)
    return {"x": number * STEP, "y": TALL - height, "width": BAR, "height": height, "tone": colour}
