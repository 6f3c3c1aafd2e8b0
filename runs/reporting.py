"""Posts a run's comment, reaction and commit status: an outbox that compares the desired state on the forge with what was posted.

`enqueue_…` makes a report due, inside the transaction that causes it; `send` applies it. What a run's comment and the commit
status say is decided when they are sent, so that a move costs one query and nobody is told what is over. A crash between the
forge's write and ours is covered by the hidden marker in each comment: if a write was started and its outcome is unknown, the
forge is checked before anything is written again.

One comment per pull request: edited while the run progresses, and replaced by a new one at the verdict, because only new
comments notify people.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.db.models import Case, F, Q, When
from django.utils import timezone
from django_q.tasks import async_task

from controlplane import backoff
from controlplane.leases import lease
from controlplane.registry import registry
from controlplane.secrets import SecretUnreadable
from controlplane.untrusted import mention
from enrollment.forge_access.clients import client_for
from enrollment.forge_access.rate_limit import Purpose
from enrollment.forges.base import (
    Forbidden,
    ForgeClient,
    ForgeError,
    Garbage,
    NotFound,
    Rejected,
    RemoteComment,
    StatusState,
)
from enrollment.models import Comment, PullRequest, Repository
from enrollment.repositories import refresh_repository, update_facts
from runs import case_history, render, scheduling
from runs.models import HOLDING, Report, ScheduledRun, State, TestRun

log = logging.getLogger(__name__)

MARKER = "cc-ci:"
#: Minimum time between two progress edits of a comment.
EDIT_EVERY = timedelta(seconds=5)
#: How long not to send commit statuses to a repository after the forge rejected one.
ASK_STATUS_AGAIN = timedelta(days=1)
#: Attempts during which a list of comments lacking the one just posted is not trusted.
ODD_LISTS = 3
LEASE_SECONDS = 120
SEND_SECONDS = 30
STATUS: dict[State, StatusState] = {
    State.PASSED: "success",
    State.FAILED: "failure",
    State.TIMED_OUT: "failure",
    State.ERRORED: "error",
    State.CANCELLED: "error",
    State.SUPERSEDED: "error",
}


# --- what has to be shown


def enqueue_reaction(comment: Comment) -> None:
    """Queue the 👀 reaction to the comment that asked."""
    links = {"comment": comment, "pull_request": comment.pull_request, "repository": comment.pull_request.repository}
    _want(f"reaction:{comment.pk}", Report.Kind.REACTION, {"content": "eyes"}, "", **links)


def enqueue_reply(comment: Comment, text: str) -> None:
    """Queue a reply to a comment, once."""
    marker = f"{MARKER}reply:{comment.forge_comment_id}"
    body = f"<!-- {marker} -->\n{mention(comment.author_login)}: {text}\n"
    links = {"comment": comment, "pull_request": comment.pull_request, "repository": comment.pull_request.repository}
    _want(f"reply:{comment.pk}", Report.Kind.REPLY, {"body": body}, marker, **links)


def enqueue_run(run: TestRun) -> None:
    """Make the comment on the run's pull request due, which is about the newest run there, and the status of its commit."""
    kinds = {f"run:{run.pull_request_id}": Report.Kind.RUN} if run.pull_request_id else {}
    # Anybody can create a waiting run for any commit: it must not affect the commit's status before it is approved.
    # Nobody asked for a scheduled run, and a quick one does not count: the status remains that of the run that does.
    if not run.scheduled and not run.quick and run.state != State.AWAITING_APPROVAL:
        kinds[f"status:{run.repository_id}:{run.sha}"] = Report.Kind.STATUS
    due = {**_due(), "run": run, "pull_request_id": run.pull_request_id, "repository_id": run.repository_id}
    # One statement for new rows and others, which locks them in this order.
    rows = Report.objects.bulk_create(
        [Report(key=key, kind=kind, **due) for key, kind in kinds.items()],
        update_conflicts=True,
        unique_fields=["key"],
        update_fields=list(_due()),
    )
    if rows and not (run.active and run.attempt):  # on the way there is time until `send_due` runs next
        async_task("runs.tasks.send_report", *(row.pk for row in rows))


def enqueue_issue(row: ScheduledRun) -> None:
    """Queue an issue about scheduled runs that no longer pass. `row` is the first of them, and gives the issue its identity."""
    assert row.run is not None
    marker = f"{MARKER}issue:{row.pk}"
    body = f"<!-- {marker} -->\n{render.issue(row.run, row.what, case_history.flaky(row.repository_id))}"
    wanted = {"title": render.issue_title(row.run, row.what), "body": body, "closing": "", "since": row.created_at.isoformat()}
    _want(f"issue:{row.pk}", Report.Kind.ISSUE, wanted, marker, repository=row.repository)


def has_issue(row: ScheduledRun) -> bool:
    """Whether there is an issue about it, or will be: not if the forge refuses it."""
    return Report.objects.filter(key=f"issue:{row.pk}", given_up=False).exists()


def open_issues() -> list[int]:
    """The scheduled runs whose issues are not to be closed yet."""
    keys = Report.objects.filter(kind=Report.Kind.ISSUE, wanted__closing="", given_up=False).values_list("key", flat=True)
    return [int(key.removeprefix("issue:")) for key in keys]


def enqueue_issue_closed(worse: ScheduledRun, better: ScheduledRun) -> None:
    """Queue a comment on the issue that `worse` opened, and its closing, because of the run of `better`."""
    report = Report.objects.get(key=f"issue:{worse.pk}")
    assert better.run is not None
    text = f"<!-- {report.marker}:closing -->\n{render.issue_closing(better.run, better.what)}"
    _want(report.key, Report.Kind.ISSUE, {**report.wanted, "closing": text}, report.marker, repository=report.repository)


def on_run_moved(sender: object, run: TestRun, **kwargs: object) -> None:
    """Receiver of `lifecycle.run_moved`, inside the transaction of the move."""
    enqueue_run(run)


def _overtaken(run: TestRun) -> TestRun | None:
    """The run before this one on its pull request that was under way when this one was asked for, and was not superseded."""
    if settings.CC_CI.supersede != "queued":
        return None
    older = TestRun.objects.filter(pull_request=run.pull_request_id, created_at__lt=run.created_at)
    under_way = Q(state__in=HOLDING) | Q(finished_at__gt=run.created_at)
    return older.filter(under_way).exclude(state=State.SUPERSEDED).order_by("-created_at").first()


def on_head_moved(sender: object, pull: PullRequest, **kwargs: object) -> None:
    """Receiver of `enrollment.signals.head_moved`, inside its transaction: the comment says that it is about an older commit."""
    Report.objects.filter(key=f"run:{pull.pk}").update(**_due())


def update_places() -> None:
    """Have the comments of queued runs edited whose place in the queue has changed materially (`scheduling.moved_up`)."""
    reports = Report.objects.filter(kind=Report.Kind.RUN, run__state=State.QUEUED, wanted__place__isnull=False)
    shown = list(reports.values_list("pk", "run", "wanted__place"))
    places = scheduling.places() if shown else {}
    up = [pk for pk, run, place in shown if run and scheduling.moved_up(place, places.get(run, 0))]
    if up:
        reports.filter(pk__in=up).update(**_due())


def _want(key: str, kind: Report.Kind, wanted: dict[str, Any], marker: str, **links: Any) -> None:
    report, _ = Report.objects.get_or_create(key=key, defaults={"kind": kind, **links})
    if (report.wanted, report.marker) != (wanted, marker):
        Report.objects.filter(pk=report.pk).update(wanted=wanted, marker=marker, **links, **_due())
        async_task("runs.tasks.send_report", report.pk)


def _due() -> dict[str, Any]:
    """The columns of a report that has to be sent."""
    return {"revision": uuid4().hex, "next_try_at": timezone.now(), "tries": 0, "given_up": False, "last_error": ""}


# --- making them true


def send_due() -> str:
    """Send reports that are due, and return how many were sent."""
    deadline = time.monotonic() + SEND_SECONDS
    due = Report.objects.filter(next_try_at__lte=timezone.now()).order_by("next_try_at").values_list("pk", flat=True)
    sent = 0
    for number in list(due[:500]):
        if time.monotonic() > deadline:
            break
        sent += send(number)
    return f"{sent} sent"


def send(report_id: int) -> bool:
    """Send one report if it is due and no other process is sending it. Returns whether the forge now shows it."""
    with lease(f"report:{report_id}", LEASE_SECONDS) as held:
        if held is None:
            return False
        report = Report.objects.select_related("repository__forge", "pull_request", "comment", "run").filter(pk=report_id).first()
        if report is None or report.next_try_at is None or report.next_try_at > timezone.now():
            return False
        forge = report.repository.forge
        if forge.backoff_until and forge.backoff_until > timezone.now():
            # It was just down: wait, to let it recover.
            Report.objects.filter(pk=report.pk).update(next_try_at=forge.backoff_until)
            return False
        try:
            if not _decide(report):
                _settle(report)
            elif _is_early(report):
                assert report.posted_at is not None
                Report.objects.filter(pk=report.pk, revision=report.revision).update(next_try_at=report.posted_at + EDIT_EVERY)
                return False
            else:
                SENDERS[Report.Kind(report.kind)](report, client_for(forge, Purpose.REPORTS))
        except Exception as error:  # an error of ours in one report must not hold up the others
            if not isinstance(error, ForgeError | SecretUnreadable):
                log.exception("%s cannot be sent", report)
            _failed(report, error)
            return False
    return True


def _decide(report: Report) -> bool:
    """Decide what a run's comment or a commit status says now. Returns whether the forge does not show that yet."""
    if report.kind == Report.Kind.RUN:
        found = _comment(report)
    elif report.kind == Report.Kind.STATUS:
        found = _status(report)
    else:  # decided when it was made
        return True
    if found is None:
        return False
    report.run, report.wanted, report.marker = found
    Report.objects.filter(pk=report.pk).update(run=report.run, wanted=report.wanted, marker=report.marker)
    return bool(report.attempted_digest or report.stale_ids) or report.posted_digest != _digest(report)


def _comment(report: Report) -> tuple[TestRun, dict[str, Any], str] | None:
    """The newest run of the pull request, the comment about it, and its marker."""
    runs = TestRun.objects.filter(pull_request=report.pull_request_id).select_related("repository", "pull_request")
    run = runs.defer("log").order_by("-created_at").first()
    if run is None:
        return None
    phase = "live" if run.active else "verdict"
    marker = f"{MARKER}run:{run.id}:{phase}"
    place = scheduling.place_of(run)
    usual = scheduling.usual_seconds(run) if run.active else None
    flaky = {} if run.active else case_history.flaky(run.repository_id, run.sha)
    body = render.report(run, place=place, usual=usual, earlier=_overtaken(run), marker=marker, flaky=flaky)
    return run, {"body": body, "phase": phase, **({"place": place} if place else {})}, marker


def _status(report: Report) -> tuple[TestRun, dict[str, Any], str] | None:
    """The newest run that counts for the commit, and the status that it leads to."""
    assert report.run is not None
    counts = TestRun.objects.filter(scheduled=False, quick=False, events__kind=State.QUEUED)
    of_commit = counts.filter(repository=report.repository_id, sha=report.run.sha).defer("log")
    run = of_commit.order_by("-created_at").first()
    if run is None:
        return None
    state = STATUS.get(State(run.state), "pending")
    return run, {"sha": run.sha, "state": state, "description": render.description(run), "target_url": run.url}, ""


def _is_early(report: Report) -> bool:
    """Whether a comment on a run that goes on was edited just now."""
    recent = report.posted_at is not None and report.posted_at + EDIT_EVERY > timezone.now()
    return recent and report.wanted.get("phase") == "live"


def _digest(report: Report) -> str:
    return hashlib.sha256(json.dumps([report.kind, report.wanted, report.marker], sort_keys=True).encode()).hexdigest()


def _done(report: Report, **fields: Any) -> None:
    """Record that the forge shows what was wanted when the attempt began."""
    now = timezone.now()
    _settle(report, posted_digest=_digest(report), attempted_digest="", posted_at=now, last_error="", tries=0, **fields)


def _settle(report: Report, **fields: Any) -> None:
    """Nothing is left to do, unless it was made due again since the attempt began: then it stays due."""
    next_try_at = Case(When(revision=report.revision, then=None), default=F("next_try_at"))
    Report.objects.filter(pk=report.pk).update(next_try_at=next_try_at, **fields)


def _failed(report: Report, error: Exception) -> None:
    wait = backoff.wait(report.tries, timedelta(seconds=5))
    text = str(error)
    if isinstance(error, ForgeError):
        text = f"{error}. {error.advice}"
        wait = max(wait, timedelta(seconds=min(error.retry_after or 0, 3600)))
    settled = not isinstance(error, NotFound) or _has_its_name(report)
    # Nobody waits for a reaction or status that is not allowed: one line in the admin, and no more requests. A comment is
    # what people wait for, and is retried for some days.
    small = report.kind in (Report.Kind.REACTION, Report.Kind.STATUS, Report.Kind.ISSUE)
    over = (small and isinstance(error, Forbidden | NotFound | Rejected) and report.tries >= 1 and settled) or report.tries >= 300
    over = over or (small and isinstance(error, Forbidden))
    if over and report.kind == Report.Kind.ISSUE:  # before the row says so: whoever dies in between does it again, to no effect
        what = "closed" if report.wanted["closing"] else "opened"
        lines = [f"{report.repository.full_name}: {report.wanted['title']}", f"The issue about it could not be {what}: {text}"]
        registry.ask("alert", "scheduled", lines, f"{report.key}:{what}")
    log.log(logging.DEBUG if small else logging.WARNING, "%s: %s", report, text)
    Report.objects.filter(pk=report.pk).update(
        tries=report.tries + 1,
        last_error=text[:2000],
        given_up=over,
        next_try_at=None if over else timezone.now() + wait,
    )


def _has_its_name(report: Report) -> bool:
    """Whether the repository still has the name that was asked for. If not, the next attempt uses the new one."""
    before = report.repository.full_name
    try:
        refresh_repository(report.repository, client_for(report.repository.forge, Purpose.REPORTS))
    except (ForgeError, SecretUnreadable):
        return False
    return report.repository.full_name == before


def _begin(report: Report) -> None:
    """Record that a write is about to start: its outcome is unknown until `_done`."""
    Report.objects.filter(pk=report.pk).update(attempted_digest=_digest(report))


def _send_reaction(report: Report, client: ForgeClient) -> None:
    assert report.comment is not None
    row = report.repository
    client.react(row.owner, row.name, report.comment.forge_comment_id, report.wanted["content"])
    _done(report)


def _send_status(report: Report, client: ForgeClient) -> None:
    row, wanted = report.repository, report.wanted
    if row.status_refused_at and row.status_refused_at > timezone.now() - ASK_STATUS_AGAIN:
        raise Forbidden("the forge recently rejected a commit status for this repository")
    try:
        client.set_status(
            row.owner,
            row.name,
            wanted["sha"],
            state=wanted["state"],
            context=settings.CC_CI.status_context,
            description=wanted["description"],
            target_url=wanted["target_url"],
        )
    except Forbidden:
        Repository.objects.filter(pk=row.pk).update(status_refused_at=timezone.now())
        raise
    _done(report)


def _send_reply(report: Report, client: ForgeClient) -> None:
    assert report.comment is not None
    if not report.posted_id:
        _post(report, client, report.comment.created_at)
    # Also if an earlier attempt got only this far.
    _remove_doubles(report, client, report.marker, report.comment.created_at)
    _done(report)


def _send_run(report: Report, client: ForgeClient) -> None:
    assert report.run is not None
    if report.attempted_digest:
        _find_lost(report, client)
    wanted = report.wanted
    post_new = wanted["phase"] == "verdict" and settings.CC_CI.verdict == "post" and report.posted_marker != report.marker
    if report.posted_id and not post_new and not _edit(report, client):
        post_new = True  # somebody deleted it; people still wait for it
    if report.posted_id is None or post_new:
        _post(report, client, report.run.created_at)
    else:
        Report.objects.filter(pk=report.pk).update(posted_marker=report.marker)
    for number in list(report.stale_ids):
        _delete(report, client, number)
        # One by one: if there are many and the forge fails now and then, an attempt does not start over.
        report.stale_ids = [other for other in report.stale_ids if other != number]
        Report.objects.filter(pk=report.pk).update(stale_ids=report.stale_ids)
    if wanted["phase"] == "verdict":
        _remove_doubles(report, client, f"{MARKER}run:", report.run.created_at)
    _done(report)


def _find_lost(report: Report, client: ForgeClient) -> None:
    """Mark comments left by a write of unknown outcome, about an earlier state or run, for deletion.

    Such a write started after the last one that is known to have succeeded.
    """
    since = report.posted_at or TestRun.objects.filter(pull_request=report.pull_request).earliest("created_at").created_at
    known = {report.posted_id, *report.stale_ids}
    lost = [
        comment.id
        for comment in _own_comments(report, client, since)
        if comment.id not in known and _carries(comment, f"{MARKER}run:") and not _carries(comment, report.marker)
    ]
    _believe(report, lost)
    if lost:
        report.stale_ids = [*report.stale_ids, *lost]
        Report.objects.filter(pk=report.pk).update(stale_ids=report.stale_ids)


def _edit(report: Report, client: ForgeClient) -> bool:
    """Edit the posted comment. Returns False if it is gone."""
    number, body = report.posted_id, report.wanted["body"]
    assert number is not None
    return _under_its_name(report, client, lambda owner, name: client.edit_comment(owner, name, number, body))


def _delete(report: Report, client: ForgeClient, comment_id: int) -> None:
    """Delete a comment of ours, if it still exists."""
    _under_its_name(report, client, lambda owner, name: client.delete_comment(owner, name, comment_id))


def _under_its_name(report: Report, client: ForgeClient, change: Callable[[str, str], None]) -> bool:
    """Change a comment. Returns False if it is gone. If it is not found, try again under the repository's current name."""
    row = report.repository
    try:
        change(row.owner, row.name)
    except NotFound:
        if not update_facts(row, client):
            return False
        try:
            change(row.owner, row.name)
        except NotFound:
            return False
    return True


def _post(report: Report, client: ForgeClient, since: datetime) -> None:
    """Post the wanted comment, unless an earlier attempt posted it and died before recording that."""
    assert report.pull_request is not None
    row = report.repository
    # A new comment is visible, and must not end up in another repository that took this one's old name.
    update_facts(row, client)
    found = None
    if report.attempted_digest:
        found = next((c for c in _own_comments(report, client, since) if _carries(c, report.marker)), None)
    if found is not None:
        _believe(report, [found.id])
        if found.body.replace("\r\n", "\n").strip() != report.wanted["body"].strip():
            client.edit_comment(row.owner, row.name, found.id, report.wanted["body"])
        posted = found.id
    else:
        _begin(report)
        posted = client.post_comment(row.owner, row.name, report.pull_request.number, report.wanted["body"]).id
        _believe(report, [posted])
    # The previous comment has to be deleted; recorded in the same step, so that a crash loses neither. It may be
    # the one just found: under the repository's old name it seemed to be gone.
    stale = [number for number in (*report.stale_ids, report.posted_id) if number and number != posted]
    report.posted_id, report.stale_ids = posted, stale
    Report.objects.filter(pk=report.pk).update(posted_id=posted, posted_marker=report.marker, stale_ids=stale)


def _at_forge(client: ForgeClient, at: datetime) -> datetime:
    """A time that is not later by the forge's clock, which may be far behind ours."""
    return at - timedelta(minutes=5) - max(timezone.now() - (client.server_time or timezone.now()), timedelta(0))


def _own_comments(report: Report, client: ForgeClient, since: datetime) -> list[RemoteComment]:
    assert report.pull_request is not None
    row = report.repository
    comments = client.pull_comments(row.owner, row.name, report.pull_request.number, _at_forge(client, since))
    return [comment for comment in comments if comment.author.id == row.forge.bot_id]


def _carries(comment: RemoteComment, marker: str) -> bool:
    """Whether the comment starts with the hidden id. Further down it may come from a log."""
    return comment.body.startswith(f"<!-- {marker}")


def _remove_doubles(report: Report, client: ForgeClient, marker: str, since: datetime) -> None:
    """Delete our other comments with this marker; a worker delayed beyond its lease may have posted one.

    Always leaves one: if the id that the forge gave for ours is not in the list, it is not trusted any longer. Raises Garbage
    a few times for a list with none of ours, in case the list is stale; otherwise duplicates would remain.
    """
    found = [comment for comment in _own_comments(report, client, since) if _carries(comment, marker)]
    if report.posted_id not in [comment.id for comment in found]:
        ours = [comment for comment in found if _carries(comment, report.marker)]
        if not ours:
            if report.tries < ODD_LISTS:
                raise Garbage("the list of comments lacks the one that was just posted")
            return
        _believe(report, [ours[-1].id])
        report.posted_id = ours[-1].id
        Report.objects.filter(pk=report.pk).update(posted_id=report.posted_id)
    doubles = [comment.id for comment in found if comment.id != report.posted_id]
    _believe(report, doubles)
    for number in doubles:
        _delete(report, client, number)


def _believe(report: Report, numbers: list[int]) -> None:
    """Raise Garbage if another report has one of these comments: with the wrong id we would edit or delete the other's."""
    others = Report.objects.filter(repository__forge=report.repository.forge_id, posted_id__in=numbers).exclude(pk=report.pk)
    if numbers and others.exclude(kind=Report.Kind.ISSUE).exists():
        raise Garbage("the forge returned the same id for two of our comments")


def _send_issue(report: Report, client: ForgeClient) -> None:
    """Open the issue, once; if it is to be closed, comment on it, once, and close it. `posted_id` is its number."""
    row, wanted = report.repository, report.wanted
    update_facts(row, client)  # it must not end up in another repository that took this one's old name
    since = _at_forge(client, datetime.fromisoformat(wanted["since"]))
    number = report.posted_id
    if number is None and report.attempted_digest:
        ours = (issue for issue in client.issues(row.owner, row.name, since) if issue.author.id == row.forge.bot_id)
        number = next((issue.number for issue in ours if issue.body.startswith(f"<!-- {report.marker} -->")), None)
    if number is None and wanted["closing"]:
        _done(report)  # they pass again before anybody was told that they do not
        return
    if number is None:
        _begin(report)
        number = client.open_issue(row.owner, row.name, title=wanted["title"], body=wanted["body"]).number
    Report.objects.filter(pk=report.pk).update(posted_id=number)
    if wanted["closing"]:
        comments = client.pull_comments(row.owner, row.name, number, since)
        marker = f"{report.marker}:closing"
        if not any(comment.author.id == row.forge.bot_id and _carries(comment, marker) for comment in comments):
            client.post_comment(row.owner, row.name, number, wanted["closing"])
        client.close_issue(row.owner, row.name, number)
    _done(report)


SENDERS: dict[Report.Kind, Callable[[Report, ForgeClient], None]] = {
    Report.Kind.REACTION: _send_reaction,
    Report.Kind.STATUS: _send_status,
    Report.Kind.REPLY: _send_reply,
    Report.Kind.RUN: _send_run,
    Report.Kind.ISSUE: _send_issue,
}
