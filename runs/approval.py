"""Strangers' runs that wait for approval: how one comes to wait, who lets it go, and whether they still may when it starts.

A run waits for one commit. It is let go by a trusted person's `!testme approve` on its pull request, or in the admin; what
is pushed meanwhile needs an approval of its own. The decision is `enrollment.trust.approve`.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django_q.tasks import async_task

from controlplane.secrets import SecretUnreadable
from enrollment import trust
from enrollment.budget import Purpose
from enrollment.clients import client_for
from enrollment.forges.base import ForgeClient, ForgeError, Pull, User
from enrollment.models import Comment, PullRequest
from runs import intake, lifecycle, render, reporting
from runs.chatops import Command
from runs.models import ACTIVE, HOLDING, RunEvent, State, TestRun

log = logging.getLogger(__name__)

#: A run that has been let go for longer than this asks again, just before it starts, whether who asked for it still may.
ASK_AGAIN = timedelta(seconds=60)
APPROVED, ASKED_AGAIN = "approved", "asked_again"


def wait(comment: Comment, sha: str, stages: tuple[str, ...], reason: str, facts: trust.Facts) -> Comment.Outcome:
    """A run that awaits approval. It takes no other's place but that of an earlier one that waits."""
    pull = comment.pull_request

    def follow() -> Comment.Outcome | None:
        PullRequest.objects.select_for_update().get(pk=pull.pk)
        for other in TestRun.objects.filter(pull_request=pull, state__in=ACTIVE, stop_wanted=""):
            if other.sha == sha and set(stages) <= set(other.stages):
                lifecycle.note(other, "joined", f"{comment.author_login} asked for the same", comment=comment.forge_comment_id)
                return Comment.Outcome.JOINED
            if other.state != State.AWAITING_APPROVAL:
                return Comment.Outcome.IGNORED
            lifecycle.want_stop(other, State.SUPERSEDED, f"{comment.author_login} asked for another run")
        reporting.want_reaction(comment)
        _create(comment, sha, stages, comment.author_login, reason)
        return None

    return intake.settle(comment, Comment.Outcome.RUN, reason, follow, facts)


def _create(comment: Comment, sha: str, stages: tuple[str, ...], who: str, text: str, of: TestRun | None = None) -> TestRun:
    pull = comment.pull_request
    return intake.create_run(
        pull.repository,
        sha=sha,
        ref=f"refs/pull/{pull.number}/head",
        stages=stages,
        requested_by=who,
        trusted=False,
        pull_request=pull,
        comment=comment,
        retry_of=of,
        text=text,
        state=State.AWAITING_APPROVAL,
    )


def answer(comment: Comment, command: Command, asker: trust.Person, pull: Pull, read_at: datetime) -> Comment.Outcome:
    """`!testme approve`: let the run go that waits on this pull request, or say why not."""
    run = _waiting(comment.pull_request)
    if run is None:
        return intake.reply(comment, render.reply_nothing("approve"), "nothing waits for approval")
    facts = trust.Approval(
        asker,
        waiting_sha=run.sha,
        head_sha=pull.head_sha,
        wanted_sha=command.sha,
        seen_before=_pinned_before(run, comment.created_at),
        head_read_at=read_at.isoformat(),
    )
    decision = trust.approve(facts)
    if decision.allowed:

        def follow() -> Comment.Outcome | None:
            if not let_go(run, comment.author_login, decision.reason, comment=comment):
                reporting.want_reply(comment, render.reply_nothing("approve"))
                return Comment.Outcome.REPLY
            reporting.want_reaction(comment)
            return None

        return intake.settle(comment, Comment.Outcome.ACTED, decision.reason, follow, facts)
    if decision.refusal == "moved":
        return _moved(comment, run, pull, decision.reason, facts)
    texts = {
        "too_early": render.reply_approve_named(run.sha, pull.html_url),
        "unknown_sha": render.reply_approve_other(command.sha, run.sha),
    }
    return intake.reply(comment, texts[decision.refusal], decision.reason, facts)


def _moved(comment: Comment, run: TestRun, pull: Pull, reason: str, facts: trust.Approval) -> Comment.Outcome:
    """Something was pushed since: the approval counts for nothing, and a run of the new commit waits for one of its own."""

    def follow() -> None:
        PullRequest.objects.select_for_update().get(pk=comment.pull_request_id)
        if lifecycle.want_stop(run, State.SUPERSEDED, "something was pushed since; the new commit needs an approval of its own"):
            _create(comment, pull.head_sha, tuple(run.stages), run.requested_by, reason, of=run)
        reporting.want_reply(comment, render.reply_approve_moved(run.sha, pull.head_sha, pull.html_url))

    return intake.settle(comment, Comment.Outcome.REPLY, reason, follow, facts)


def _waiting(pull: PullRequest) -> TestRun | None:
    return TestRun.objects.filter(pull_request=pull, state=State.AWAITING_APPROVAL).order_by("created_at").last()


def _pinned_before(run: TestRun, written_at: datetime) -> bool:
    """Whether the run's commit was the head as it was read before a comment was written, by the forge's clock. Comments carry
    whole seconds: one of the very same second may be the earlier."""
    read_at = (run.comment.facts if run.comment else {}).get("head_read_at")
    return bool(read_at) and written_at >= datetime.fromisoformat(str(read_at)).replace(microsecond=0) + timedelta(seconds=1)


def let_go(run: TestRun, who: str, text: str, *, comment: Comment | None = None) -> bool:
    """Approve a run: it is queued, for the commit that it is pinned to. Returns False when it waits no longer."""
    with transaction.atomic():
        if not lifecycle.move(run, "approve", text):
            return False
        by = {"id": comment.author_id, "comment": comment.forge_comment_id} if comment else {}
        lifecycle.note(run, APPROVED, f"approved by {who}", login=who, **by)
        async_task("runs.tasks.dispatch")
    return True


def let_go_by_hand(run: TestRun, who: str) -> str:
    """Approve in the admin. Returns why not, or nothing when it is done. Raises ForgeError: then the head is not known."""
    if run.pull_request is None or run.state != State.AWAITING_APPROVAL:
        return f"{run} does not wait for approval."
    row = run.repository
    head = client_for(row.forge).pull(row.owner, row.name, run.pull_request.number).head_sha
    if head != run.sha:
        return f"{run}: something was pushed since {run.short_sha}; the newest commit is {head[:10]}, and needs a run of its own."
    return "" if let_go(run, who, f"approved in the admin by {who}") else f"{run} waits no longer."


def approved_commits(pull: PullRequest, client: ForgeClient) -> tuple[str, ...]:
    """The commits of a pull request that were approved, by people who still may (or in the admin)."""
    approvals = RunEvent.objects.filter(run__pull_request=pull, kind=APPROVED).select_related("run")
    known: dict[int, bool] = {}
    commits = []
    for event in approvals:
        number = event.data.get("id")
        if number is not None and number not in known:
            known[number] = trust.person(User(number, event.data["login"]), pull.repository, client).trusted
        if number is None or known[number]:
            commits.append(event.run.sha)
    return tuple(dict.fromkeys(commits))


# --- just before the start


def ask_again() -> set[TestRun]:
    """Ask once more about the runs that would start now and were let go a while ago: who left meanwhile starts nothing.

    Goes through them in the order in which slots are given (`supervision`). Returns those that are not to be started: they
    were cancelled, or could not be asked about.
    """
    free = settings.CC_CI.slots - TestRun.objects.filter(state__in=HOLDING, host=settings.CC_CI.host).count()
    if free <= 0:
        return set()
    held_back: set[TestRun] = set()
    silent: set[int] = set()  # forges that do not answer
    holding = TestRun.objects.filter(state__in=HOLDING, pull_request__isnull=False)
    busy: set[int | None] = {*holding.values_list("pull_request_id", flat=True)}
    waiting = TestRun.objects.filter(state=State.QUEUED).order_by("created_at").select_related("comment", "repository__forge")
    for run in waiting:
        if free <= 0:
            break
        if run.pull_request_id and run.pull_request_id in busy:
            continue
        if run.comment is not None and _is_old(run):
            try:
                if run.repository.forge_id in silent or not _may_still(run):
                    held_back.add(run)
                    continue
            except (ForgeError, SecretUnreadable) as error:
                log.warning("%s waits: whether it may still start could not be asked (%s)", run, error)
                silent.add(run.repository.forge_id)
                held_back.add(run)
                continue
        free -= 1
        busy.add(run.pull_request_id)
    return held_back


def _is_old(run: TestRun) -> bool:
    newest = run.events.filter(kind__in=(State.QUEUED, ASKED_AGAIN)).order_by("at").last()
    return newest is not None and newest.at < timezone.now() - ASK_AGAIN


def _may_still(run: TestRun) -> bool:
    """Ask about one; it is cancelled when it may not. Raises ForgeError."""
    assert run.comment is not None
    approval = run.events.filter(kind=APPROVED).order_by("id").last()
    if approval is not None and approval.data.get("id") is None:
        return True  # in the admin, where who left is taken out by hand
    user = User(run.comment.author_id, run.comment.author_login)
    if approval is not None:
        user = User(approval.data["id"], approval.data["login"])
    client = client_for(run.repository.forge, Purpose.ANSWERS)
    asked = trust.person(user, run.repository, client)
    if asked.trusted or (run.pull_request and approval is None and run.sha in approved_commits(run.pull_request, client)):
        lifecycle.note(run, ASKED_AGAIN, f"{asked.login} {asked.standing()}")
        return True
    reason = f"{asked.login}, who {'approved' if approval else 'asked for'} it, {asked.standing()} by now."
    lifecycle.move(run, "cancel", reason, reason=reason)
    return False
