"""What runs contribute to the admin's start page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.core.cache import cache
from django.db.models import CharField, Count
from django.db.models.functions import Cast, Substr
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from controlplane.operator_page import SHOWN, listed
from controlplane.registry import Concern, Figure
from controlplane.staff import may_see
from runs.models import ACTIVE, HOLDING, RemoteExecutor, Report, State, TestRun

#: A run that takes longer than this, or waits longer, is worth a look.
LONG_RUN, LONG_WAIT = timedelta(hours=4), timedelta(hours=2)
#: Days of the trend, and where it is kept.
DAYS, TREND = 14, "runs.trend"
#: The parts of a day's bar, from below, with their colours.
TONES = {State.PASSED: "good", State.FAILED: "bad", State.TIMED_OUT: "bad", State.ERRORED: "warn"}


def concerns(request: HttpRequest) -> Iterator[Concern]:
    if may_see(request.user, "runs.testrun"):
        yield from _runs()
    if may_see(request.user, "runs.report"):
        yield from _reports()
    if may_see(request.user, "runs.remoteexecutor"):
        for row in RemoteExecutor.objects.filter(failures__gt=0).order_by("name")[:SHOWN]:
            url = reverse("admin:runs_remoteexecutor_change", args=[row.pk])
            yield Concern("error", f"The executor {row.name} does not answer as it should", row.last_error[:300], url, "See it")


def _runs() -> Iterator[Concern]:
    """Runs that await approval, take or wait too long, or ended by a fault of ours in the last day."""
    now = timezone.now()
    columns = ("state", "reason", "created_at", "started_at", "requested_by", "repository__owner", "repository__name")
    rows = TestRun.objects.select_related("repository").only(*columns).order_by()
    # Two indexes: with "or" between the conditions, SQLite would read all runs.
    errored = rows.filter(state=State.ERRORED, created_at__gt=now - timedelta(days=1))
    of: dict[str, list[TestRun]] = defaultdict(list)
    for run in rows.filter(state__in=ACTIVE).union(errored, all=True)[:500]:
        begun, longest = (run.started_at, LONG_RUN) if run.state in HOLDING else (run.created_at, LONG_WAIT)
        if run.state in (State.ERRORED, State.AWAITING_APPROVAL) or (begun and begun < now - longest):
            of[run.state].append(run)
    for state, level, what, fix in (
        (State.ERRORED, "error", "ended by a fault of ours", "See what failed"),
        (State.STARTING, "error", "has been starting for hours", "Cancel it"),
        (State.RUNNING, "error", "has been running for hours", "Cancel it"),
        (State.QUEUED, "warning", "has waited for hours", "See why"),
        (State.AWAITING_APPROVAL, "warning", "awaits approval", "Read and approve"),
    ):
        found = sorted(of[state], key=lambda run: run.created_at, reverse=True)
        for run in found[:SHOWN]:
            detail = run.reason[:300] or f"Asked for by {run.requested_by}, {run.created_at:%Y-%m-%d %H:%M} UTC."
            yield Concern(level, f"{run} of {run.repository} {what}", detail, run.get_absolute_url(), fix)  # type: ignore[arg-type]
        if (more := len(found) - SHOWN) > 0:
            url = listed("runs.testrun", f"state__exact={state}")
            yield Concern(level, f"{more} more runs: each {what}", "", url, "See all of them")  # type: ignore[arg-type]


def _reports() -> Iterator[Concern]:
    # A range, which SQLite answers by the index, as it does not for "is not null".
    failing = Report.objects.filter(next_try_at__gt=datetime(2000, 1, 1, tzinfo=UTC)).exclude(last_error="").order_by()
    rows = list(failing.values_list("last_error", flat=True)[:100])
    if rows:
        number = f"{len(rows)}{'+' if len(rows) == 100 else ''}"
        text = f"{number} reports to the forges fail" if len(rows) > 1 else "A report to a forge fails"
        yield Concern(
            "warning", text, f"They are tried again. {rows[0]}"[:300], listed("runs.report", "standing=failing"), "See which"
        )


def figures(request: HttpRequest) -> Iterator[Figure]:
    if not may_see(request.user, "runs.testrun"):
        return
    counts = dict(TestRun.objects.filter(state__in=ACTIVE).order_by().values_list("state").annotate(Count("pk")))
    running = counts.get(State.RUNNING, 0) + counts.get(State.STARTING, 0)
    yield Figure(running, "runs under way", listed("runs.testrun", "state__in=starting,running"))
    yield Figure(counts.get(State.QUEUED, 0), "runs queued", listed("runs.testrun", "state__exact=queued"))


def trend(request: HttpRequest) -> dict[str, Any]:
    """Runs of each of the last days, by how they ended, as the bars of a chart. Up to a minute old: it counts 40,000 in 40 ms."""
    if not may_see(request.user, "runs.testrun"):
        return {}
    return cache.get_or_set(TREND, _counted, 60) or {}


def _counted() -> dict[str, Any]:
    today = timezone.now().date()
    days = [today - timedelta(days=number) for number in reversed(range(DAYS))]
    ended = TestRun.objects.filter(state__in=TONES, created_at__gte=f"{days[0]}T00:00:00Z").order_by()
    # Cut from the text, which both databases do for 100,000 runs in no time, and an index has all that is asked.
    day = Substr(Cast("created_at", CharField()), 1, 10)
    counts: dict[date, dict[str, int]] = {one: dict.fromkeys(("good", "bad", "warn"), 0) for one in days}
    for at, state, number in ended.annotate(day=day).values_list("day", "state").annotate(Count("pk")):
        if (one := date.fromisoformat(at)) in counts:
            counts[one][TONES[State(state)]] += number
    most = max(1, *(sum(of_day.values()) for of_day in counts.values()))
    return {"days": [_day(one, of_day, most) for one, of_day in counts.items()], "total": _total(counts.values())}


def _day(day: date, counts: dict[str, int], most: int) -> dict[str, Any]:
    bars, top = [], 100.0
    for tone, number in counts.items():
        height = 100 * number / most
        top -= height
        bars.append({"tone": tone, "y": round(top, 2), "height": round(height, 2)})
    words = f"{day:%a %d %b}: {counts['good']} passed, {counts['bad']} failed, {counts['warn']} by a fault of ours"
    begin, end = (f"{one} 00:00:00+00:00" for one in (day, day + timedelta(days=1)))
    query = urlencode({"created_at__gte": begin, "created_at__lt": end})
    return {"day": day, "bars": bars, "words": words, "url": listed("runs.testrun", query)}


def _total(days: Any) -> dict[str, int]:
    return {tone: sum(of_day[tone] for of_day in days) for tone in ("good", "bad", "warn")}
