"""Turns a comment into exactly one TestRun, one reply or one action.

Asks the forge first; then one transaction settles the comment with a conditional update and creates what follows. If several
workers have the same comment, one settles it and the others see that it is settled.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import timedelta

from django.conf import settings
from django.utils import timezone
from django_q.tasks import async_task

from controlplane import backoff
from controlplane.secrets import SecretUnreadable
from enrollment.access import authorization
from enrollment.access.policy import policy_of
from enrollment.forge_access.clients import client_for
from enrollment.forge_access.rate_limit import Purpose
from enrollment.forges.base import ForgeClient, ForgeError, NotFound, Pull, User
from enrollment.models import Comment, PullRequest
from enrollment.repositories import copy_facts, note_pull, refresh_repository, update_facts
from runs import approval, commands, lifecycle, render, reporting, retry, scheduling
from runs.commands import Command, Problem
from runs.harness.stage_table import DEFAULT_STAGES, in_order
from runs.models import ACTIVE, HOLDING, State, TestRun
from runs.outcomes import create_run_for, ignore, reply, settle

log = logging.getLogger(__name__)

#: Failed tries before a comment is given up (a few within a minute, then every 15 minutes): about 3 days.
MAX_TRIES = 300


def handle(comment_id: int) -> Comment.Outcome | None:
    """Settle one comment. Returns its outcome, or None if it has to be tried again later."""
    comment = Comment.objects.select_related("pull_request__repository__forge").get(pk=comment_id)
    if comment.outcome:
        return Comment.Outcome(comment.outcome)
    command = commands.parse(comment.body)
    if command is None:
        return ignore(comment, "it contains no command")
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
    log.warning("%s: %s; retrying in %d s", comment, error, wait.total_seconds())
    return None


def _answer(comment: Comment, command: Command | Problem, client: ForgeClient) -> Comment.Outcome | None:
    repository = comment.pull_request.repository
    # For every asker: membership is checked by name, and the stored name may belong to somebody else now.
    update_facts(repository, client)
    owner = (repository.owner, repository.owner_id)
    asker = authorization.person(User(comment.author_id, comment.author_login), repository, client)
    if not asker.trusted and not _may_wait(asker, comment, command):
        # Author and pushes are not checked: they would change nothing.
        facts = authorization.Facts(asker, asker, authorization.NOT_ASKED, head_sha="")
        decision = authorization.decide(facts)
        if decision.refusal == "nothing":
            return ignore(comment, decision.reason, facts)
        return _outsider(comment, decision.reason, facts)
    if comment.edited:
        return reply(comment, render.reply_edited(), "it was edited before cc-ci first read it")
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
        raise NotFound(f"{repository.full_name} has just changed owner; checking permissions again")
    if pull.state != "open":
        return _reply_to(asker, comment, render.reply_closed(), f"the pull request is {pull.state}")
    if command.verb in ("retry", commands.RETRY_ALL):
        return _retry(comment, command.verb == commands.RETRY_ALL, asker, pull, client)
    if command.verb == "approve":
        return approval.answer(comment, command, asker, pull.html_url)
    approved = approval.approved_commits(comment.pull_request, client)
    facts = authorization.gather(asker, comment, repository, pull, command.sha, client, approved)
    decision = authorization.decide(facts)
    # A stranger leaves no stage out, and picks no version: the verdict, and the commit's status, would be green for what was not
    # tried.
    stages = command.stages if asker.trusted else _all_and(command.stages)
    upgrade_from = command.upgrade_from if asker.trusted else ""
    quick = command.quick and asker.trusted
    if decision.allowed:
        trusted = facts.trusts(decision.sha)
        if quick and not trusted:
            return reply(comment, render.reply_quick_untrusted(), "a quick run is for trusted code only", facts)
        return _run(
            comment,
            decision.sha,
            stages,
            decision.reason,
            trusted=trusted,
            asker=asker,
            facts=facts,
            upgrade_from=upgrade_from,
            quick=quick,
        )
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


def _may_wait(asker: authorization.Person, comment: Comment, command: Command | Problem) -> bool:
    """Whether to ask the forge further about somebody who may not ask for runs: their run may await approval."""
    runs = isinstance(command, Command) and command.verb == "run" and not comment.edited
    return runs and not asker.unheard and policy_of(comment.pull_request.repository).approval


def _read_pull(comment: Comment, client: ForgeClient) -> Pull:
    """Fetch the pull request, even if its repository was just renamed."""
    repository = comment.pull_request.repository
    try:
        pull = client.pull(repository.owner, repository.name, comment.pull_request.number)
    except NotFound:
        if refresh_repository(repository, client):
            pull = client.pull(repository.owner, repository.name, comment.pull_request.number)
        else:
            raise
    if pull.base.id != repository.forge_repo_id:
        # Renamed, and another repository has its name now: no answer under that name was about ours.
        refresh_repository(repository, client)
        raise NotFound(f"the name {pull.base.full_name} now belongs to another repository")
    _note_pull(comment.pull_request, pull)
    return pull


def _note_pull(row: PullRequest, pull: Pull) -> None:
    """Store what was just read about the pull request, and whether its repository is still public."""
    note_pull(row, pull)
    if pull.base.id == row.repository.forge_repo_id and copy_facts(row.repository, pull.base):
        row.repository.save()


# --- outcomes


def _reply_to(
    asker: authorization.Person, comment: Comment, text: str, reason: str, facts: authorization.Facts | None = None
) -> Comment.Outcome:
    """Reply to somebody who may ask; outsiders get one reply per pull request."""
    if asker.trusted:
        return reply(comment, text, reason, facts)
    return _outsider(comment, reason, facts or authorization.Facts(asker, asker, authorization.NOT_ASKED, head_sha=""))


def _outsider(comment: Comment, reason: str, facts: authorization.Facts) -> Comment.Outcome:
    """Send a short reply, once per person and pull request, so that nobody can make cc-ci flood a page."""
    already_told = Comment.objects.filter(
        pull_request=comment.pull_request, author_id=comment.author_id, outcome=Comment.Outcome.REPLY
    ).exclude(pk=comment.pk)
    if settings.CC_CI.outsiders == "silent":
        return ignore(comment, f"{reason}; outsiders get no reply here", facts)
    if already_told.exists():
        return ignore(comment, f"{reason}; already replied on this pull request", facts)
    text = render.reply_unseen if facts.asker.unseen else render.reply_outsider
    return reply(comment, text(comment.pull_request.repository.full_name), reason, facts)


def _status(comment: Comment) -> Comment.Outcome:
    run = newest_run(comment.pull_request)
    if run is None:
        return reply(comment, render.reply_nothing("status"), "status")
    usual = scheduling.usual_seconds(run) if run.active else None
    return reply(comment, render.reply_status(run, scheduling.place_of(run), usual), "status")


def _cancel(comment: Comment) -> Comment.Outcome:
    def follow() -> Comment.Outcome | None:
        stopped = [
            run
            for run in TestRun.objects.filter(pull_request=comment.pull_request, state__in=ACTIVE)
            if lifecycle.want_stop(run, State.CANCELLED, f"cancelled by {comment.author_login}")
        ]
        if not stopped:
            reporting.enqueue_reply(comment, render.reply_nothing("cancel"))
            return Comment.Outcome.REPLY
        reporting.enqueue_reaction(comment)
        async_task("runs.tasks.supervise")
        return None

    return settle(comment, Comment.Outcome.ACTED, "cancel", follow)


def _retry(comment: Comment, everything: bool, asker: authorization.Person, pull: Pull, client: ForgeClient) -> Comment.Outcome:
    # A run that was never approved must not be approved by this.
    let_go = TestRun.objects.filter(pull_request=comment.pull_request, quick=False, events__kind=State.QUEUED).distinct()
    last = let_go.order_by("created_at").last()
    if last is None:
        return reply(comment, render.reply_nothing("retry"), "nothing to repeat")
    if last.state == State.PASSED and not everything:
        return reply(comment, render.reply_passed(last), f"{last} passed: nothing to repeat")
    facts = approval.facts_now(last, asker, pull, client)
    trusted = facts is not None and facts.trusts(last.sha)
    taken_over: tuple[str, ...] = ()
    joins = None
    if everything:
        stages = _all_and(retry.asked(last))
    elif last.active and not last.stop_wanted:
        # If it ends before it can be joined, or may not be, nothing of it is evidence.
        joins, stages = last, retry.asked(last)
    else:
        stages, taken_over = retry.plan(last, trusted=trusted)
    return _run(
        comment,
        last.sha,
        stages,
        f"repeats {last}",
        trusted=trusted,
        facts=facts,
        retry_of=last,
        upgrade_from=last.upgrade_from,
        taken_over=taken_over,
        joins=joins,
    )


def _all_and(stages: Collection[str]) -> tuple[str, ...]:
    """The default stages plus these."""
    return in_order((*DEFAULT_STAGES, *stages))


def newest_run(pull: PullRequest) -> TestRun | None:
    return TestRun.objects.filter(pull_request=pull).order_by("created_at").last()


def _run(
    comment: Comment,
    sha: str,
    stages: tuple[str, ...],
    reason: str,
    *,
    trusted: bool,
    asker: authorization.Person | None = None,
    facts: authorization.Facts | None = None,
    retry_of: TestRun | None = None,
    upgrade_from: str = "",
    quick: bool = False,
    taken_over: tuple[str, ...] = (),
    joins: TestRun | None = None,
) -> Comment.Outcome:
    """Create the run. `asker`: somebody whose commit was approved earlier; their run supersedes no other.

    `joins`: a run that this one repeats while it is under way: joined, whatever it takes over.
    """
    pull = comment.pull_request

    def follow() -> Comment.Outcome | None:
        # Comments on one pull request settle one after the other.
        PullRequest.objects.select_for_update().get(pk=pull.pk)
        reporting.enqueue_reaction(comment)
        for other in TestRun.objects.filter(pull_request=pull, state__in=ACTIVE, stop_wanted=""):
            waits = other.state == State.AWAITING_APPROVAL
            # If the code is no longer trusted, the asker does not join a run from when it was.
            doubted = other.trusted and not trusted and (asker is None or asker.trusted)
            same = other.sha == sha and set(stages) <= set(other.stages) and other.upgrade_from == upgrade_from
            # A run that counts answers a quick one too, and not the other way round.
            same = (same and (quick or not other.quick)) or other == joins
            if same and not waits and not doubted:
                lifecycle.note(other, "joined", f"{comment.author_login} asked for the same", comment=comment.forge_comment_id)
                return Comment.Outcome.JOINED
            if asker is not None and not asker.trusted and not waits:
                return Comment.Outcome.IGNORED
            if settings.CC_CI.supersede == "queued" and other.state in HOLDING and not doubted:
                continue  # the new run waits for its end
            lifecycle.want_stop(other, State.SUPERSEDED, f"{comment.author_login} asked for another run")
        more = {"retry_of": retry_of, "upgrade_from": upgrade_from, "taken_over": taken_over, "quick": quick}
        create_run_for(comment, sha, stages, reason, trusted=trusted, **more)
        return None

    return settle(comment, Comment.Outcome.RUN, reason, follow, facts)


def sweep(limit: int = 200) -> int:
    """Handle comments not handled yet (lost signal, dead worker, unanswered request). Returns how many."""
    now = timezone.now()
    waiting = Comment.objects.filter(outcome="").exclude(next_try_at__gt=now).exclude(seen_at__gt=now - timedelta(seconds=2))
    numbers = list(waiting.order_by("created_at").values_list("pk", flat=True)[:limit])
    for number in numbers:
        try:
            handle(number)
        except Exception as error:
            # One bad comment must not block the others forever.
            log.exception("comment %s", number)
            _later(Comment.objects.get(pk=number), error)
    return len(numbers)
