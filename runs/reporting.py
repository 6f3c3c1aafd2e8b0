"""Run -> comment, reaction, commit status: an outbox that compares what should stand on the forge with what was posted.

`want_…` writes down a wish, inside the transaction that causes it. `send` makes one wish true. A crash between the forge's
write and ours is covered by the hidden marker in each comment: when a write was begun and its end is not known, the
forge is looked at before anything is written again.

One comment per pull request: edited on the way, posted anew at the verdict (only new comments notify people), and the old one
deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone
from django_q.tasks import async_task

from controlplane import backoff
from controlplane.leases import lease
from controlplane.secrets import SecretUnreadable
from controlplane.untrusted import mention
from enrollment.budget import Purpose
from enrollment.clients import client_for
from enrollment.enrolling import refresh_repository, update_facts
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
from enrollment.models import Comment, Repository
from runs import render
from runs.models import Report, State, TestRun

log = logging.getLogger(__name__)

MARKER = "cc-ci:"
#: Between two edits of a comment that only tell how far a run is.
EDIT_EVERY = timedelta(seconds=5)
#: A forge that refused a commit status of a repository is not asked again for this long.
ASK_STATUS_AGAIN = timedelta(days=1)
#: Tries of a report in which a list of comments without the one that was just posted is not believed.
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


# --- wishes


def want_reaction(comment: Comment) -> None:
    """👀 on the comment that asked."""
    links = {"comment": comment, "pull_request": comment.pull_request, "repository": comment.pull_request.repository}
    _want(f"reaction:{comment.pk}", Report.Kind.REACTION, {"content": "eyes"}, "", **links)


def want_reply(comment: Comment, text: str) -> None:
    """A reply to a comment, once."""
    marker = f"{MARKER}reply:{comment.forge_comment_id}"
    body = f"<!-- {marker} -->\n{mention(comment.author_login)}: {text}\n"
    links = {"comment": comment, "pull_request": comment.pull_request, "repository": comment.pull_request.repository}
    _want(f"reply:{comment.pk}", Report.Kind.REPLY, {"body": body}, marker, **links)


def want_run(run: TestRun) -> None:
    """The pull request's comment and the commit's status, as the run stands now; an older run's news are no news."""
    if (
        run.pull_request_id
        and not TestRun.objects.filter(pull_request=run.pull_request_id, created_at__gt=run.created_at).exists()
    ):
        phase = "live" if run.active else "verdict"
        marker = f"{MARKER}run:{run.id}:{phase}"
        body = render.report(run, ahead=ahead_of(run), marker=marker)
        links = {"run": run, "pull_request": run.pull_request, "repository": run.repository}
        _want(f"run:{run.pull_request_id}", Report.Kind.RUN, {"body": body, "phase": phase}, marker, **links)
    # Anybody can have a run wait for a commit, somebody else's too: it has no say in the commit's status before it is let go.
    of_commit = TestRun.objects.filter(repository=run.repository_id, sha=run.sha, events__kind=State.QUEUED)
    if of_commit.filter(pk=run.pk).exists() and not of_commit.filter(created_at__gt=run.created_at).exists():
        state = STATUS.get(State(run.state), "pending")
        wanted = {"sha": run.sha, "state": state, "description": render.description(run), "target_url": run.url}
        links = {"run": run, "pull_request": run.pull_request, "repository": run.repository}
        _want(f"status:{run.repository_id}:{run.sha}", Report.Kind.STATUS, wanted, "", **links)


def on_run_moved(sender: object, run: TestRun, **kwargs: object) -> None:
    """Receiver of `lifecycle.run_moved`: in the transaction of the move."""
    want_run(run)


def ahead_of(run: TestRun) -> int:
    """How many waiting runs are before this one."""
    return TestRun.objects.filter(state=State.QUEUED, created_at__lt=run.created_at).count()


def _want(key: str, kind: Report.Kind, wanted: dict[str, Any], marker: str, **links: Any) -> None:
    digest = hashlib.sha256(json.dumps([kind, wanted, marker], sort_keys=True).encode()).hexdigest()
    report, _ = Report.objects.get_or_create(key=key, defaults={"kind": kind, **links})
    if report.wanted_digest == digest:
        return
    now = timezone.now()
    due = now
    if wanted.get("phase") == "live" and report.posted_at:
        due = max(now, report.posted_at + EDIT_EVERY)
    Report.objects.filter(pk=report.pk).update(
        wanted=wanted, wanted_digest=digest, marker=marker, next_try_at=due, tries=0, given_up=False, last_error="", **links
    )
    if due == now:
        async_task("runs.tasks.send_report", report.pk)


# --- making them true


def send_due() -> str:
    """Send what is due. Returns how much."""
    deadline = time.monotonic() + SEND_SECONDS
    due = Report.objects.filter(next_try_at__lte=timezone.now()).order_by("next_try_at").values_list("pk", flat=True)
    sent = 0
    for number in list(due[:500]):
        if time.monotonic() > deadline:
            break
        sent += send(number)
    return f"{sent} sent"


def send(report_id: int) -> bool:
    """Make one wish true, if it is due and nobody else is at it. Returns whether it stands on the forge now."""
    with lease(f"report:{report_id}", LEASE_SECONDS) as held:
        if held is None:
            return False
        report = Report.objects.select_related("repository__forge", "pull_request", "comment", "run").filter(pk=report_id).first()
        if report is None or report.next_try_at is None or report.next_try_at > timezone.now():
            return False
        forge = report.repository.forge
        if forge.backoff_until and forge.backoff_until > timezone.now():
            # It was just seen to be down: what is asked of it waits, so that it comes back the sooner.
            Report.objects.filter(pk=report.pk).update(next_try_at=forge.backoff_until)
            return False
        try:
            SENDERS[Report.Kind(report.kind)](report, client_for(forge, Purpose.REPORTS))
        except (ForgeError, SecretUnreadable) as error:
            _failed(report, error)
            return False
    return True


def _done(report: Report, **fields: Any) -> None:
    """It stands there as it was wanted when we began; if more is wanted since, that stays due."""
    now = timezone.now()
    rows = Report.objects.filter(pk=report.pk)
    rows.update(posted_digest=report.wanted_digest, attempted_digest="", posted_at=now, last_error="", tries=0, **fields)
    rows.filter(wanted_digest=report.wanted_digest).update(next_try_at=None)


def _failed(report: Report, error: Exception) -> None:
    wait = backoff.wait(report.tries, timedelta(seconds=5))
    text = str(error)
    if isinstance(error, ForgeError):
        text = f"{error}. {error.advice}"
        wait = max(wait, timedelta(seconds=min(error.retry_after or 0, 3600)))
    settled = not isinstance(error, NotFound) or _has_its_name(report)
    # Nobody is waiting for a reaction or a status that may not be: one line in the admin, and no more requests. A comment is
    # what people wait for, and is tried for some days.
    small = report.kind in (Report.Kind.REACTION, Report.Kind.STATUS)
    over = (small and isinstance(error, Forbidden | NotFound | Rejected) and report.tries >= 1 and settled) or report.tries >= 300
    over = over or (small and isinstance(error, Forbidden))
    log.log(logging.DEBUG if small else logging.WARNING, "%s: %s", report, text)
    Report.objects.filter(pk=report.pk).update(
        tries=report.tries + 1,
        last_error=text[:2000],
        given_up=over,
        next_try_at=None if over else timezone.now() + wait,
    )


def _has_its_name(report: Report) -> bool:
    """Whether what was not found was asked for under the repository's present name; if not, it is found at the next try."""
    before = report.repository.full_name
    try:
        refresh_repository(report.repository, client_for(report.repository.forge, Purpose.REPORTS))
    except (ForgeError, SecretUnreadable):
        return False
    return report.repository.full_name == before


def _begin(report: Report) -> None:
    """Write down that a write is about to happen: from now on its end is unknown until `_done`."""
    Report.objects.filter(pk=report.pk).update(attempted_digest=report.wanted_digest)


def _send_reaction(report: Report, client: ForgeClient) -> None:
    assert report.comment is not None
    row = report.repository
    client.react(row.owner, row.name, report.comment.forge_comment_id, report.wanted["content"])
    _done(report)


def _send_status(report: Report, client: ForgeClient) -> None:
    row, wanted = report.repository, report.wanted
    if row.status_refused_at and row.status_refused_at > timezone.now() - ASK_STATUS_AGAIN:
        raise Forbidden("the forge refused a status of this repository a short while ago")
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
    # Also when an earlier try got this far, and no further.
    _remove_doubles(report, client, report.marker, report.comment.created_at)
    _done(report)


def _send_run(report: Report, client: ForgeClient) -> None:
    assert report.run is not None
    if report.attempted_digest:
        _find_lost(report, client)
    wanted = report.wanted
    anew = wanted["phase"] == "verdict" and settings.CC_CI.verdict == "post" and report.posted_marker != report.marker
    if report.posted_id and not anew and not _edit(report, client):
        anew = True  # somebody deleted it; people wait for it all the same
    if report.posted_id is None or anew:
        _post(report, client, report.run.created_at)
    else:
        Report.objects.filter(pk=report.pk).update(posted_marker=report.marker)
    for number in list(report.stale_ids):
        _delete(report, client, number)
        # Each by itself: where many wait and the forge fails now and then, not all begin anew with each try.
        report.stale_ids = [other for other in report.stale_ids if other != number]
        Report.objects.filter(pk=report.pk).update(stale_ids=report.stale_ids)
    if wanted["phase"] == "verdict":
        _remove_doubles(report, client, f"{MARKER}run:", report.run.created_at)
    _done(report)


def _find_lost(report: Report, client: ForgeClient) -> None:
    """A write whose end is not known may have been about an earlier state or run: its comment is to go, or it would stay
    for ever. It was begun after the last write that is known to have been done."""
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
    """Edit the comment that stands there. Returns False when it is gone."""
    number, body = report.posted_id, report.wanted["body"]
    assert number is not None
    return _under_its_name(report, client, lambda owner, name: client.edit_comment(owner, name, number, body))


def _delete(report: Report, client: ForgeClient, comment_id: int) -> None:
    """Delete a comment of ours; an earlier try, or a person, may have been first."""
    _under_its_name(report, client, lambda owner, name: client.delete_comment(owner, name, comment_id))


def _under_its_name(report: Report, client: ForgeClient, change: Callable[[str, str], None]) -> bool:
    """Change a comment. Returns False when it is gone. What is not found under a name that the repository has no more is there
    all the same."""
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
    """Post the wanted comment, unless an earlier try did and died before it could say so."""
    assert report.pull_request is not None
    row = report.repository
    # A new comment is for people to see, and must not land in another repository that has taken this one's old name.
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
    # The one that stood there before is to go; written down in the same step, so that a crash forgets neither. It may be the
    # very one that was found: under a name that the repository has no more it seemed to be gone.
    stale = [number for number in (*report.stale_ids, report.posted_id) if number and number != posted]
    report.posted_id, report.stale_ids = posted, stale
    Report.objects.filter(pk=report.pk).update(posted_id=posted, posted_marker=report.marker, stale_ids=stale)


def _own_comments(report: Report, client: ForgeClient, since: datetime) -> list[RemoteComment]:
    assert report.pull_request is not None
    row = report.repository
    # Our clock and the forge's, which may be far behind.
    since -= timedelta(minutes=5) + max(timezone.now() - (client.server_time or timezone.now()), timedelta(0))
    comments = client.pull_comments(row.owner, row.name, report.pull_request.number, since)
    return [comment for comment in comments if comment.author.id == row.forge.bot_id]


def _carries(comment: RemoteComment, marker: str) -> bool:
    """Whether the hidden id stands where we put it: at the very start. Further down it may be a log line's."""
    return comment.body.startswith(f"<!-- {marker}")


def _remove_doubles(report: Report, client: ForgeClient, marker: str, since: datetime) -> None:
    """Delete our other comments with this marker: a worker that was held up for longer than its lease may have posted one.

    One is always left: where the number that the forge gave for ours is not among them, it is believed no longer. A list without
    any of ours is asked for again a few times, unless somebody has deleted it in this very moment; doubles would stay.
    """
    found = [comment for comment in _own_comments(report, client, since) if _carries(comment, marker)]
    if report.posted_id not in [comment.id for comment in found]:
        ours = [comment for comment in found if _carries(comment, report.marker)]
        if not ours:
            if report.tries < ODD_LISTS:
                raise Garbage("the list of comments is without the one that was just posted")
            return
        _believe(report, [ours[-1].id])
        report.posted_id = ours[-1].id
        Report.objects.filter(pk=report.pk).update(posted_id=report.posted_id)
    doubles = [comment.id for comment in found if comment.id != report.posted_id]
    _believe(report, doubles)
    for number in doubles:
        _delete(report, client, number)


def _believe(report: Report, numbers: list[int]) -> None:
    """Raise Garbage where one of these comments is what stands there for another report: an odd answer that gave it the number
    of this one's would have it edited or deleted."""
    others = Report.objects.filter(repository__forge=report.repository.forge_id, posted_id__in=numbers).exclude(pk=report.pk)
    if numbers and others.exists():
        raise Garbage("the forge gives a comment of ours the number of another")


SENDERS: dict[Report.Kind, Callable[[Report, ForgeClient], None]] = {
    Report.Kind.REACTION: _send_reaction,
    Report.Kind.STATUS: _send_status,
    Report.Kind.REPLY: _send_reply,
    Report.Kind.RUN: _send_run,
}
