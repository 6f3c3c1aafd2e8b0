"""Comment -> exactly one TestRun, one reply, or one action.

What the forge must be asked is asked first; then one transaction settles the comment by a conditional update and creates
what follows from it. Of several workers with the same comment one settles it, and the others find that it is settled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django_q.tasks import async_task

from controlplane import backoff
from controlplane.secrets import SecretUnreadable
from enrollment import trust
from enrollment.budget import Purpose
from enrollment.clients import client_for
from enrollment.enrolling import copy_facts, refresh_repository, update_facts
from enrollment.forges.base import ForgeClient, ForgeError, NotFound, Pull, User
from enrollment.models import Comment, PullRequest, Repository
from enrollment.policies import policy_of
from runs import approval, chatops, lifecycle, render, reporting
from runs.chatops import Command, Problem
from runs.harness.protocol import DEFAULT_STAGES, STAGES
from runs.models import ACTIVE, State, TestRun

log = logging.getLogger(__name__)

#: After so many failed tries (the first few within a minute, then every quarter of an hour) a comment is let go: some 3 days.
MAX_TRIES = 300


def handle(comment_id: int) -> Comment.Outcome | None:
    """Settle one comment. Returns its outcome, or None when it has to be tried again later."""
    comment = Comment.objects.select_related("pull_request__repository__forge").get(pk=comment_id)
    if comment.outcome:
        return Comment.Outcome(comment.outcome)
    command = chatops.parse(comment.body)
    if command is None:
        return ignore(comment, "it holds no command")
    try:
        return _answer(comment, command, client_for(comment.forge, Purpose.ANSWERS))
    except (ForgeError, SecretUnreadable) as error:
        return _later(comment, error)


def _later(comment: Comment, error: Exception) -> Comment.Outcome | None:
    if comment.tries + 1 >= MAX_TRIES:
        return ignore(comment, f"the forge could not be asked about it: {error}")
    wait = backoff.wait(comment.tries, timedelta(seconds=5))
    Comment.objects.filter(pk=comment.pk, outcome="").update(
        tries=comment.tries + 1, next_try_at=timezone.now() + wait, last_error=str(error)[:2000]
    )
    log.warning("%s: %s; trying again in %d s", comment, error, wait.total_seconds())
    return None


def _answer(comment: Comment, command: Command | Problem, client: ForgeClient) -> Comment.Outcome | None:
    repository = comment.pull_request.repository
    # Whoever asks, and for whatever: membership is asked by name, and the name that is known may be somebody else's by now.
    update_facts(repository, client)
    owner = (repository.owner, repository.owner_id)
    asker = trust.person(User(comment.author_id, comment.author_login), repository, client)
    if not asker.trusted and not _may_wait(asker, comment, command):
        # Who the author is and what was pushed is not asked: it would change nothing.
        facts = trust.Facts(asker, asker, trust.NOT_ASKED, head_sha="")
        decision = trust.decide(facts)
        if decision.refusal == "nothing":
            return ignore(comment, decision.reason, facts)
        return _outsider(comment, decision.reason, facts)
    if comment.edited:
        return reply(comment, render.reply_edited(), "it was edited before it was first seen")
    if isinstance(command, Problem):
        return reply(comment, render.reply_problem(command), f"not understood: {command.text}")
    if command.verb == "help":
        return reply(comment, render.reply_help(), "help")
    if command.verb == "status":
        return _status(comment)
    if command.verb == "cancel":
        return _cancel(comment)
    pull = _read_pull(comment, client)
    if owner != (repository.owner, repository.owner_id):
        raise NotFound(f"{repository.full_name} has had another owner until this moment; who may ask is asked again")
    if pull.state != "open":
        return _reply_to(asker, comment, render.reply_closed(), f"the pull request is {pull.state}")
    if command.verb == "retry":
        return _retry(comment, asker, pull, client)
    if command.verb == "approve":
        return approval.answer(comment, command, asker, pull.html_url)
    approved = approval.approved_commits(comment.pull_request, client)
    facts = trust.gather(asker, comment, repository, pull, command.sha, client, approved)
    decision = trust.decide(facts)
    # A stranger leaves no stage out: the verdict, and the commit's status, would be green for what was not tried.
    stages = command.stages if asker.trusted else _all_and(command.stages)
    if decision.allowed:
        trusted = facts.trusts(decision.sha)
        return _run(comment, decision.sha, stages, decision.reason, trusted=trusted, asker=asker, facts=facts)
    if decision.refusal == "needs_approval":
        return approval.wait(comment, decision.sha, stages, decision.reason, facts)
    if decision.refusal == "outsider":
        return _outsider(comment, decision.reason, facts)
    texts = {
        "needs_sha": render.reply_needs_sha(decision.sha, pull.html_url),
        "unknown_sha": render.reply_unknown_sha(command.sha, pull.head_sha),
        "ambiguous_sha": render.reply_ambiguous_sha(command.sha, pull.head_sha),
    }
    return _reply_to(asker, comment, texts[decision.refusal], decision.reason, facts)


def _may_wait(asker: trust.Person, comment: Comment, command: Command | Problem) -> bool:
    """Whether it is worth asking further about somebody who may not ask: their run may wait for approval."""
    runs = isinstance(command, Command) and command.verb == "run" and not comment.edited
    return runs and not asker.unheard and policy_of(comment.pull_request.repository).approval


def _read_pull(comment: Comment, client: ForgeClient) -> Pull:
    """The pull request as it is now, also where its repository was just renamed."""
    repository = comment.pull_request.repository
    try:
        pull = client.pull(repository.owner, repository.name, comment.pull_request.number)
    except NotFound:
        if refresh_repository(repository, client):
            pull = client.pull(repository.owner, repository.name, comment.pull_request.number)
        else:
            raise
    if pull.base.id != repository.forge_repo_id:
        # Renamed, and another repository has its name by now: nothing that was asked by that name was about ours.
        refresh_repository(repository, client)
        raise NotFound(f"the repository that is called {pull.base.full_name} now is another one")
    _note_pull(comment.pull_request, pull)
    return pull


def _note_pull(row: PullRequest, pull: Pull) -> None:
    """What was just read of the pull request, and whether its repository is still public."""
    row.title, row.state, row.head_sha = pull.title[:500], pull.state[:20], pull.head_sha
    row.author_id, row.author_login = pull.author.id, pull.author.login[:255]
    row.html_url, row.base_ref = pull.html_url[:500], pull.base_ref[:255]
    row.save(update_fields=["title", "state", "head_sha", "author_id", "author_login", "html_url", "base_ref"])
    if pull.base.id == row.repository.forge_repo_id and copy_facts(row.repository, pull.base):
        row.repository.save()


# --- outcomes


def settle(
    comment: Comment,
    outcome: Comment.Outcome,
    reason: str,
    follow: Callable[[], Comment.Outcome | None] = lambda: None,
    facts: trust.Facts | trust.Approval | None = None,
) -> Comment.Outcome:
    """Give the comment its outcome and do what follows from it, in one transaction, if nobody has. `follow` may name
    another outcome, once it has seen what there is."""
    with transaction.atomic():
        mine = Comment.objects.filter(pk=comment.pk, outcome="")
        values = {"outcome": outcome, "reason": reason[:4000], "facts": facts.as_json() if facts else {}, "last_error": ""}
        if mine.update(**values, handled_at=timezone.now()):
            other = follow()
            if other:
                Comment.objects.filter(pk=comment.pk).update(outcome=other)
    comment.refresh_from_db()
    return Comment.Outcome(comment.outcome)


def ignore(comment: Comment, reason: str, facts: trust.Facts | None = None) -> Comment.Outcome:
    return settle(comment, Comment.Outcome.IGNORED, reason, facts=facts)


def reply(comment: Comment, text: str, reason: str, facts: trust.Facts | trust.Approval | None = None) -> Comment.Outcome:
    return settle(comment, Comment.Outcome.REPLY, reason, lambda: reporting.want_reply(comment, text), facts)


def _reply_to(asker: trust.Person, comment: Comment, text: str, reason: str, facts: trust.Facts | None = None) -> Comment.Outcome:
    """A reply to somebody who may ask; others get theirs once."""
    if asker.trusted:
        return reply(comment, text, reason, facts)
    return _outsider(comment, reason, facts or trust.Facts(asker, asker, trust.NOT_ASKED, head_sha=""))


def _outsider(comment: Comment, reason: str, facts: trust.Facts) -> Comment.Outcome:
    """One short reply a person and pull request, so that nobody makes us fill a page."""
    told = Comment.objects.filter(
        pull_request=comment.pull_request, author_id=comment.author_id, outcome=Comment.Outcome.REPLY
    ).exclude(pk=comment.pk)
    if settings.CC_CI.outsiders == "silent":
        return ignore(comment, f"{reason}; outsiders get no reply here", facts)
    if told.exists():
        return ignore(comment, f"{reason}; was told so on this pull request before", facts)
    text = render.reply_unseen if facts.asker.unseen else render.reply_outsider
    return reply(comment, text(comment.pull_request.repository.full_name), reason, facts)


def _status(comment: Comment) -> Comment.Outcome:
    run = newest_run(comment.pull_request)
    text = render.reply_status(run, reporting.ahead_of(run)) if run else render.reply_nothing("status")
    return reply(comment, text, "status")


def _cancel(comment: Comment) -> Comment.Outcome:
    def follow() -> Comment.Outcome | None:
        stopped = [
            run
            for run in TestRun.objects.filter(pull_request=comment.pull_request, state__in=ACTIVE)
            if lifecycle.want_stop(run, State.CANCELLED, f"cancelled by {comment.author_login}")
        ]
        if not stopped:
            reporting.want_reply(comment, render.reply_nothing("cancel"))
            return Comment.Outcome.REPLY
        reporting.want_reaction(comment)
        async_task("runs.tasks.supervise")
        return None

    return settle(comment, Comment.Outcome.ACTED, "cancel", follow)


def _retry(comment: Comment, asker: trust.Person, pull: Pull, client: ForgeClient) -> Comment.Outcome:
    # One that nobody approved was never let go, and is not to be by this.
    let_go = TestRun.objects.filter(pull_request=comment.pull_request, events__kind=State.QUEUED).distinct()
    last = let_go.order_by("created_at").last()
    if last is None:
        return reply(comment, render.reply_nothing("retry"), "nothing to repeat")
    facts = None
    if last.trusted:
        # Who was trusted then may not be now. A commit that was let go in a sandbox stays in one.
        code, author = trust.code_of(pull, comment.pull_request.repository, client)
        facts = trust.Facts(asker, author, code, pull.head_sha)
    trusted = facts is not None and facts.trusts(last.sha)
    return _run(comment, last.sha, _all_and(last.stages), f"repeats {last}", trusted=trusted, facts=facts, retry_of=last)


def _all_and(stages: Collection[str]) -> tuple[str, ...]:
    """The default stages, and these."""
    return tuple(stage for stage in STAGES if stage in (*DEFAULT_STAGES, *stages))


def newest_run(pull: PullRequest) -> TestRun | None:
    return TestRun.objects.filter(pull_request=pull).order_by("created_at").last()


def _run(
    comment: Comment,
    sha: str,
    stages: tuple[str, ...],
    reason: str,
    *,
    trusted: bool,
    asker: trust.Person | None = None,
    facts: trust.Facts | None = None,
    retry_of: TestRun | None = None,
) -> Comment.Outcome:
    """`asker`: somebody whose commit was approved before takes no other run's place."""
    pull = comment.pull_request

    def follow() -> Comment.Outcome | None:
        # Comments on one pull request settle one after the other.
        PullRequest.objects.select_for_update().get(pk=pull.pk)
        reporting.want_reaction(comment)
        for other in TestRun.objects.filter(pull_request=pull, state__in=ACTIVE, stop_wanted=""):
            waits = other.state == State.AWAITING_APPROVAL
            # Who may ask, and finds that the code is trusted no longer, does not join a run from when it was.
            doubted = other.trusted and not trusted and (asker is None or asker.trusted)
            if other.sha == sha and set(stages) <= set(other.stages) and not waits and not doubted:
                lifecycle.note(other, "joined", f"{comment.author_login} asked for the same", comment=comment.forge_comment_id)
                return Comment.Outcome.JOINED
            if asker is not None and not asker.trusted and not waits:
                return Comment.Outcome.IGNORED
            lifecycle.want_stop(other, State.SUPERSEDED, f"{comment.author_login} asked for another run")
        create_run_for(comment, sha, stages, reason, trusted=trusted, retry_of=retry_of)
        return None

    return settle(comment, Comment.Outcome.RUN, reason, follow, facts)


def create_run_for(comment: Comment, sha: str, stages: tuple[str, ...], reason: str, *, trusted: bool, **more: Any) -> TestRun:
    """The run that a comment asked for, at a commit of its pull request. `more` is `create_run`'s."""
    pull = comment.pull_request
    return create_run(
        pull.repository,
        sha=sha,
        ref=f"refs/pull/{pull.number}/head",
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
    text: str = "",
    state: State = State.QUEUED,
) -> TestRun:
    """A queued run (or one that awaits approval), its first line in the trail, and the wish for a comment and a status, in
    one transaction."""
    with transaction.atomic():
        run = TestRun.objects.create(
            repository=repository,
            pull_request=pull_request,
            comment=comment,
            retry_of=retry_of,
            sha=sha,
            ref=ref,
            base_ref=pull_request.base_ref if pull_request else "",
            stages=list(stages),
            requested_by=requested_by[:255],
            trusted=trusted,
            state=state,
        )
        lifecycle.note(run, state, text)
        lifecycle.run_moved.send(sender=TestRun, run=run)
        # In the same transaction: the queue is a table too.
        if state == State.QUEUED:
            async_task("runs.tasks.dispatch")
    return run


def sweep(limit: int = 200) -> int:
    """Handle what nobody has: a lost signal, a worker that died, a forge that did not answer. Returns how many."""
    now = timezone.now()
    waiting = Comment.objects.filter(outcome="").exclude(next_try_at__gt=now).exclude(seen_at__gt=now - timedelta(seconds=2))
    numbers = list(waiting.order_by("created_at").values_list("pk", flat=True)[:limit])
    for number in numbers:
        try:
            handle(number)
        except Exception as error:
            # One odd comment is not to stop the others for ever.
            log.exception("comment %s", number)
            _later(Comment.objects.get(pk=number), error)
    return len(numbers)
