"""What a comment leads to: nothing, a reply or a run. Each settles the comment in one transaction, with a conditional update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import transaction
from django.utils import timezone
from django_q.tasks import async_task

from enrollment.access import authorization
from enrollment.forge_access.clients import kind_of
from enrollment.models import Comment, PullRequest, Repository
from runs import lifecycle, reporting
from runs.models import State, TestRun


def settle(
    comment: Comment,
    outcome: Comment.Outcome,
    reason: str,
    follow: Callable[[], Comment.Outcome | None] = lambda: None,
    facts: authorization.Facts | authorization.Approval | None = None,
) -> Comment.Outcome:
    """Set the comment's outcome and apply its effects in one transaction, unless it is settled already.

    `follow` may replace the outcome.
    """
    with transaction.atomic():
        mine = Comment.objects.filter(pk=comment.pk, outcome="")
        values = {"outcome": outcome, "reason": reason[:4000], "facts": facts.as_json() if facts else {}, "last_error": ""}
        if mine.update(**values, handled_at=timezone.now()):
            other = follow()
            if other:
                Comment.objects.filter(pk=comment.pk).update(outcome=other)
    comment.refresh_from_db()
    return Comment.Outcome(comment.outcome)


def ignore(comment: Comment, reason: str, facts: authorization.Facts | None = None) -> Comment.Outcome:
    return settle(comment, Comment.Outcome.IGNORED, reason, facts=facts)


def reply(
    comment: Comment, text: str, reason: str, facts: authorization.Facts | authorization.Approval | None = None
) -> Comment.Outcome:
    return settle(comment, Comment.Outcome.REPLY, reason, lambda: reporting.enqueue_reply(comment, text), facts)


def create_run_for(comment: Comment, sha: str, stages: tuple[str, ...], reason: str, *, trusted: bool, **more: Any) -> TestRun:
    """Create the run that a comment asked for, at a commit of its pull request. Passes `more` to `create_run`."""
    pull = comment.pull_request
    return create_run(
        pull.repository,
        sha=sha,
        ref=kind_of(pull.repository.forge).pull_ref.format(number=pull.number),
        stages=stages,
        requested_by=comment.author_login,
        trusted=trusted,
        pull_request=pull,
        comment=comment,
        text=reason,
        **more,
    )


def create_run(
    repository: Repository,
    *,
    sha: str,
    ref: str,
    stages: tuple[str, ...],
    requested_by: str,
    trusted: bool,
    pull_request: PullRequest | None = None,
    comment: Comment | None = None,
    retry_of: TestRun | None = None,
    asked_by: int | None = None,
    text: str = "",
    state: State = State.QUEUED,
    upgrade_from: str = "",
    scheduled: bool = False,
    quick: bool = False,
    taken_over: tuple[str, ...] = (),
) -> TestRun:
    """Create a run that is queued or awaits approval, with its first event and its reports, in one transaction."""
    with transaction.atomic():
        run = TestRun.objects.create(
            repository=repository,
            pull_request=pull_request,
            comment=comment,
            retry_of=retry_of,
            asked_by=asked_by,
            sha=sha,
            ref=ref,
            base_ref=pull_request.base_ref if pull_request else "",
            stages=list(stages),
            taken_over=list(taken_over),
            upgrade_from=upgrade_from,
            requested_by=requested_by[:255],
            trusted=trusted,
            scheduled=scheduled,
            quick=quick,
            state=state,
        )
        lifecycle.note(run, state, text)
        lifecycle.run_moved.send(sender=TestRun, run=run)
        # In the same transaction: the queue is a table too.
        if state == State.QUEUED:
            async_task("runs.tasks.dispatch")
    return run
