"""Runs that nobody asks for: each watched recipe's default branch and newest published version, nightly or weekly.

They are ordinary runs without a pull request, which start when nobody else waits. `step` is a recurring task that may die
anywhere: a row is made in the same transaction as its run, and a verdict is compared once, by a conditional UPDATE.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from controlplane.registry import registry
from controlplane.secrets import SecretUnreadable
from controlplane.time_window import Window
from enrollment.forge_access.clients import client_for
from enrollment.forge_access.rate_limit import Purpose
from enrollment.forges.base import ForgeClient, ForgeError, OddRows, RemoteTag
from enrollment.models import Repository
from enrollment.repositories import update_facts
from infra.recipe_version import Version, is_version
from runs import case_history, nights, outcomes, reporting
from runs.manual import stages_of
from runs.models import ACTIVE, FINAL, JUDGED, ScheduledRun, State, TestRun
from runs.render import HEADLINE

log = logging.getLogger(__name__)

Kind = ScheduledRun.Kind
#: Seconds of one step; the rest follows in the next.
STEP_SECONDS = 30
BY = "the schedule"
WEEK = timedelta(days=7)
#: Lines of a digest, and flaky tests named of each recipe.
MOST_LINES, MOST_TESTS = 200, 5
#: What is not read of runs here: up to half a megabyte of each.
LARGE = ("run__log", "run__details")


def step() -> str:
    """Start what is due, and report what changed."""
    settled = settle()
    return f"{start_due(timezone.now())} started, {settled} settled"


# --- starting


def start_due(now: datetime) -> int:
    """Start the runs of all repositories whose turn has come. Returns how many runs were made.

    A forge that fails is left alone until the next step. The order is another one each time: perhaps it fails for one repository.
    """
    config = settings.CC_CI
    if config.schedule == "never":
        return 0
    window, deadline = Window.parse(config.schedule_window), time.monotonic() + STEP_SECONDS
    if nights.current_night(window, now) is None:
        return 0
    started, down = 0, set()
    for row in Repository.objects.watched().select_related("forge").order_by("?"):
        night = nights.due(row.pk, now, window, weekly=config.schedule == "weekly")
        if night is None or row.forge_id in down or (row.forge.backoff_until and row.forge.backoff_until > now):
            continue
        settled = Q(night=night) | Q(extra=config.schedule_extra_tests, run__state__in=ACTIVE)
        kinds = ScheduledRun.objects.filter(settled, repository=row).order_by().values("kind").distinct()
        if kinds.count() == len(Kind):  # `start` would ask the forge for nothing
            continue
        if time.monotonic() > deadline:
            break
        try:
            started += len(start(row, night=night, extra=config.schedule_extra_tests, by=BY))
        except (ForgeError, SecretUnreadable) as error:
            log.info("%s: cannot start its scheduled runs: %s", row, error)
            if not isinstance(error, ForgeError) or error.passing:
                down.add(row.forge_id)
        except Exception:  # one repository must not keep all others from their turn
            log.exception("%s: cannot start its scheduled runs", row)
    return started


def start(row: Repository, *, extra: bool, by: str, night: date | None = None) -> list[TestRun]:
    """Queue the runs of a repository's default branch and newest published version, except those queued or running already.

    If both are the same commit, one run counts for both. Raises ForgeError and SecretUnreadable.
    """
    client = client_for(row.forge, Purpose.UPKEEP)
    update_facts(row, client)  # by its id: names change hands, and so may the default branch
    head = client.branch_head(row.owner, row.name, row.default_branch)
    newest = newest_version(client, row)
    made: dict[str, TestRun] = {}
    try:
        with transaction.atomic():
            # One at a time for each repository: the second one sees what the first one made.
            if Repository.objects.select_for_update(of=("self",)).watched().filter(pk=row.pk).first() is None:
                return []
            for kind in Kind:
                rows = ScheduledRun.objects.filter(repository=row, kind=kind)
                if (night and rows.filter(night=night).exists()) or rows.filter(extra=extra, run__state__in=ACTIVE).exists():
                    continue
                fields = {"repository": row, "kind": kind, "night": night, "extra": extra}
                if kind == Kind.VERSION and newest is None:
                    if night:
                        ScheduledRun.objects.create(**fields, note="There is no published version.", settled_at=timezone.now())
                    continue
                sha, ref, version = head, f"refs/heads/{row.default_branch}", ""
                if kind == Kind.VERSION and newest:
                    sha, ref, version = newest.sha, f"refs/tags/{newest.name}", newest.name
                if sha not in made:
                    made[sha] = outcomes.create_run(
                        row, sha=sha, ref=ref, stages=stages_of(extra), requested_by=by, trusted=True, text=by, scheduled=True
                    )
                ScheduledRun.objects.create(**fields, version=version, run=made[sha])
    except IntegrityError:
        if not ScheduledRun.objects.filter(repository=row, night=night).exists():
            raise
        return []  # another process was first
    return list(made.values())


def newest_version(client: ForgeClient, row: Repository) -> RemoteTag | None:
    """The highest version that is published: an annotated tag `X.Y.Z+app`. Raises ForgeError."""
    found = [tag for tag in _tags(client, row) if tag.annotated and is_version(tag.name)]
    return max(found, key=lambda tag: Version.parse(tag.name), default=None)


def _tags(client: ForgeClient, row: Repository) -> Iterator[RemoteTag]:
    try:
        yield from client.tags(row.owner, row.name)
    except OddRows as error:  # a tag that cannot be read is no version; all others were listed
        log.info("%s: %s", row, error)


# --- reporting


def change_of(before: str, now: str) -> str:
    """`worse` or `better` than the run before, by their states, or empty. Pure. Without a run before, it counts as passed."""
    good = now == State.PASSED
    was_good = before in ("", State.PASSED)
    return "" if good == was_good or now not in JUDGED else "better" if good else "worse"


def settle() -> int:
    """Compare the verdicts of runs that have ended, oldest first, and report changes. Returns how many were settled."""
    rows = ScheduledRun.objects.filter(settled_at=None, run__state__in=FINAL).select_related("run", "repository__forge")
    return sum(_settle(row) for row in rows.defer(*LARGE).order_by("id")[:200])


def _settle(row: ScheduledRun) -> bool:
    assert row.run is not None
    series = ScheduledRun.objects.filter(repository=row.repository, kind=row.kind, extra=row.extra, id__lt=row.pk)
    before = series.filter(run__state__in=JUDGED).values_list("run__state", flat=True).first() or ""
    change = change_of(before, row.run.state)
    worse = series.filter(change="worse").first() if change == "better" else None
    has_issue = worse is not None and reporting.has_issue(worse)
    if change and not (has_issue or (change == "worse" and settings.CC_CI.schedule_issues)):
        # Before the row says so: an alert is sent once by its key, so whoever dies in between loses nothing.
        head = f"{row.repository.full_name}: the scheduled test of the {row.what} {HEADLINE[State(row.run.state)]}"
        registry.ask("alert", "scheduled", [head, *([row.run.reason] if row.run.reason else [])], f"row:{row.pk}", row.run.url)
    with transaction.atomic():
        mine = ScheduledRun.objects.filter(pk=row.pk, settled_at=None).update(settled_at=timezone.now(), change=change)
        if mine and worse and has_issue:
            reporting.enqueue_issue_closed(worse, row)
        elif mine and change == "worse" and settings.CC_CI.schedule_issues:
            reporting.enqueue_issue(row)
    return bool(mine)


def weekly_digest(now: datetime | None = None) -> str:
    """Send the digest of last week's scheduled runs, once: its key is the week."""
    today = (now or timezone.now()).astimezone(UTC).date()
    monday = today - timedelta(days=today.weekday())
    end = datetime(monday.year, monday.month, monday.day, tzinfo=UTC)
    lines = digest(end - WEEK, end)
    if not lines:
        return "there were no scheduled runs"
    year, week, _ = (monday - WEEK).isocalendar()
    sent = registry.ask("alert", "digest", lines, f"{year}-W{week:02}", f"{settings.CC_CI.base_url}/runs/")
    return "sent" if sent else "was sent before"


def digest(start: datetime, end: datetime) -> list[str]:
    """What scheduled runs showed between two times: for each recipe its newest verdicts, what changed, and its flaky tests."""
    rows = ScheduledRun.objects.filter(created_at__gte=start, created_at__lt=end, run__isnull=False)
    by_recipe: dict[Repository, list[ScheduledRun]] = {}
    rows = rows.select_related("run", "repository").defer(*LARGE)
    for row in rows.order_by("repository__owner", "repository__name", "repository", "-id"):
        by_recipe.setdefault(row.repository, []).append(row)
    lines = []
    for recipe, of_recipe in by_recipe.items():
        newest = {row.kind: row for row in reversed(of_recipe)}
        verdicts = [f"{row.what} {State(row.run.state).label}" for row in newest.values() if row.run]
        text = f"{recipe.full_name}: {', '.join(verdicts)}; {len(of_recipe)} {'run' if len(of_recipe) == 1 else 'runs'}"
        changes = [f"{row.what} {row.change} on {row.created_at:%a}" for row in reversed(of_recipe) if row.change]
        flaky = case_history.sorted_cases(case_history.flaky(recipe.pk))
        names = ", ".join(history.case.name[:80] for history in flaky[:MOST_TESTS])
        more = f" and {len(flaky) - MOST_TESTS} more" if len(flaky) > MOST_TESTS else ""
        lines.append(
            text + (f"; changed: {', '.join(changes)}" if changes else "") + (f"; flaky tests: {names}{more}" if flaky else "")
        )
    return lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} more recipes"]
