"""Strangers' runs that await approval: when a run has to wait, who can approve it, and whether they still may when it starts.

A run waits for approval of one commit, with `!testme approve` and the full commit id by a trusted person on its pull
request, or in the admin; later pushes need their own approval. The decision is `authorization.approve`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import fields
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone
from django_q.tasks import async_task

from controlplane.secrets import SecretUnreadable
from enrollment.access import authorization
from enrollment.access.policy import policy_of
from enrollment.forge_access.clients import client_for
from enrollment.forge_access.rate_limit import Purpose
from enrollment.forges.base import ForgeClient, ForgeError, Garbage, NotFound, Pull, RateLimited, Unavailable, User
from enrollment.models import Comment, PullRequest
from enrollment.repositories import update_facts
from runs import lifecycle, outcomes, render, reporting, scheduling
from runs.commands import Command
from runs.models import ACTIVE, RunEvent, State, TestRun

log = logging.getLogger(__name__)

#: A run approved longer ago than this is checked again just before it starts.
ASK_AGAIN = timedelta(seconds=60)
APPROVED, ASKED_AGAIN = "approved", "asked_again"


def wait(comment: Comment, sha: str, stages: tuple[str, ...], reason: str, facts: authorization.Facts) -> Comment.Outcome:
    """Create a run that awaits approval. It supersedes only an earlier one that waits."""
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
        reporting.enqueue_reaction(comment)
        outcomes.create_run_for(comment, sha, stages, reason, trusted=False, state=State.AWAITING_APPROVAL)
        return None

    return outcomes.settle(comment, Comment.Outcome.RUN, reason, follow, facts)


def answer(comment: Comment, command: Command, asker: authorization.Person, pull_url: str) -> Comment.Outcome:
    """Handle `!testme approve`: approve the waiting run of this pull request, or reply why not."""
    run = _waiting(comment.pull_request)
    if run is None:
        return outcomes.reply(comment, render.reply_nothing("approve"), "no run awaits approval")
    facts = authorization.Approval(asker, waiting_sha=run.sha, wanted_sha=command.sha)
    decision = authorization.approve(facts)
    if decision.allowed:

        def follow() -> Comment.Outcome | None:
            if not let_go(run, comment.author_login, decision.reason, comment=comment):
                reporting.enqueue_reply(comment, render.reply_nothing("approve"))
                return Comment.Outcome.REPLY
            reporting.enqueue_reaction(comment)
            return None

        return outcomes.settle(comment, Comment.Outcome.ACTED, decision.reason, follow, facts)
    text = render.reply_approve_named(run.sha, pull_url)
    if decision.refusal == "unknown_sha":
        text = render.reply_approve_other(command.sha, run.sha, pull_url)
    return outcomes.reply(comment, text, decision.reason, facts)


def _waiting(pull: PullRequest) -> TestRun | None:
    return TestRun.objects.filter(pull_request=pull, state=State.AWAITING_APPROVAL).order_by("created_at").last()


def let_go(
    run: TestRun, who: str, text: str, *, comment: Comment | None = None, person: authorization.Person | None = None
) -> bool:
    """Approve a run: queue it for the commit it is pinned to. Returns False if it is no longer waiting.

    By a comment, by a person of the forge, or by an account of this server named `who`.
    """
    with transaction.atomic():
        if not lifecycle.move(run, "approve", text):
            return False
        by = {"id": comment.author_id, "comment": comment.forge_comment_id} if comment else {"id": person.id} if person else {}
        lifecycle.note(run, APPROVED, f"approved by {who}", login=who, **by)
        async_task("runs.tasks.dispatch")
    return True


def let_go_by_hand(run: TestRun, who: str, where: str = "in the admin", person: authorization.Person | None = None) -> str:
    """Approve in the admin, through the API, or as a person of the forge on the run's page.

    Returns why not, or "" on success. Raises ForgeError if the head is unknown.
    """
    if run.pull_request is None or run.state != State.AWAITING_APPROVAL:
        return f"{run} is not awaiting approval."
    if refusal := _refused_here(run):
        return f"{run}: {refusal}"
    text = f"approved {where} by {who}"
    if person is not None:
        # The button is for the commit that its page shows, as the comment is for the one that it names.
        decision = authorization.approve(authorization.Approval(person, waiting_sha=run.sha, wanted_sha=run.sha))
        if not decision.allowed:
            return f"{run}: {decision.reason}."
        text = f"{text}: {decision.reason}"
    row, client = run.repository, client_for(run.repository.forge)
    update_facts(row, client)
    pull = client.pull(row.owner, row.name, run.pull_request.number)
    if pull.state != "open":
        return f"{run}: the pull request is {pull.state}."
    head = pull.head_sha
    if head != run.sha:
        return f"{run}: the pull request has changed since {run.short_sha}; its newest commit {head[:10]} needs its own run."
    return "" if let_go(run, who, text, person=person) else f"{run} is no longer awaiting approval."


def may_ask(user: Any) -> bool:
    """Whether an admin user may start, cancel and approve runs. The permission to view runs is not enough."""
    return bool(user.has_perm("runs.add_testrun"))


def may_approve(login: str) -> bool:
    """Whether an admin user may approve runs: active, and with the permission to ask for runs."""
    people = get_user_model()
    found = people.objects.filter(**{people.USERNAME_FIELD: login}).first()
    return found is not None and may_ask(found)


def _approvals(pull: PullRequest) -> QuerySet[RunEvent]:
    """All approvals on a pull request, oldest first."""
    return RunEvent.objects.filter(run__pull_request=pull, kind=APPROVED).select_related("run").order_by("id")


def approved_commits(pull: PullRequest, client: ForgeClient) -> tuple[str, ...]:
    """The commits of a pull request approved by people who still may approve."""
    known: dict[int | str, bool] = {}
    commits = []
    for event in _approvals(pull):
        number, login = event.data.get("id"), event.data["login"]
        name = login if number is None else number
        if name not in known:
            by_hand = number is None
            known[name] = (
                may_approve(login) if by_hand else authorization.person(User(number, login), pull.repository, client).trusted
            )
        if known[name]:
            commits.append(event.run.sha)
    return tuple(dict.fromkeys(commits))


def origin(run: TestRun) -> Comment | None:
    """The comment that asked for a run, or for the run it repeats; None if there was none or it was deleted."""
    while run.comment is None and run.retry_of is not None:
        run = run.retry_of
    return run.comment


def facts_now(run: TestRun, asker: authorization.Person, pull: Pull, client: ForgeClient) -> authorization.Facts | None:
    """The facts about a run's code as they are now, for somebody who wants it repeated. Raises ForgeError.

    None if it was not trusted then: a commit approved for a sandbox stays in one.
    """
    if not run.trusted:
        return None
    code, author = authorization.code_of(pull, run.repository, client)
    return authorization.Facts(asker, author, code, pull.head_sha)


def approval_of(run: TestRun) -> RunEvent | None:
    """The event that approved a stranger's run; None if it needed no approval."""
    return None if run.trusted else run.events.filter(kind=APPROVED).order_by("id").last()


def refuses_again(run: TestRun) -> str:
    """Why a run may not be repeated, and what to do; empty if it may. Raises ForgeError if that is unknown.

    A run of a stranger's code is checked as before a start: repeating it does not approve it.
    """
    if run.trusted:
        return ""
    if run.state == State.AWAITING_APPROVAL:
        return f"{run} is awaiting approval: choose the action Approve."
    if not run.events.filter(kind=State.QUEUED).exists():
        return f"{run} was never approved. Its author can ask again on the pull request; then approve the new run."
    refusal = _refused(run, asks_forge=True)[0]
    return f"{run} cannot be repeated: {refusal}" if refusal else ""


# --- just before the start


def ask_again(skip: Collection[UUID] = ()) -> set[UUID]:
    """Check again which runs may start now, but for those in `skip`: nothing is started for people who have lost the right.

    Local facts are checked every time; the forge is asked about runs that were approved a while ago. Goes through the queue as
    the dispatcher does, as far as there are slots. Others are cancelled, or impossible to check.
    """
    waiting, load = scheduling.read()
    may: set[UUID] = set()
    silent: set[int] = set()  # forges that did not answer
    for one in scheduling.in_turn([one for one in waiting if one.run not in skip], load):
        run = TestRun.objects.select_related("comment", "repository__forge").get(pk=one.run)
        if run.comment is not None or run.asked_by is not None or not run.trusted:
            try:
                if not _may_still(run, silent):
                    continue
            except (ForgeError, SecretUnreadable) as error:
                log.warning("%s has to wait: cannot check whether it may still start (%s)", run, error)
                # An answer that is no help may be about this repository alone: it holds up no other.
                if not isinstance(error, ForgeError) or isinstance(error, RateLimited) or _no_answer(error):
                    silent.add(run.repository.forge_id)
                continue
        may.add(run.pk)
        load.take(one)
    return may


def _no_answer(error: ForgeError) -> bool:
    return isinstance(error, Unavailable) and error.status is None


def _is_old(run: TestRun) -> bool:
    # That it was queued for a second attempt says nothing about who asked for it.
    newest = run.events.filter(Q(kind=State.QUEUED, attempt=0) | Q(kind=ASKED_AGAIN)).order_by("at").last()
    return newest is not None and newest.at < timezone.now() - ASK_AGAIN


def _may_still(run: TestRun, silent: Collection[int]) -> bool:
    """Check one run, and cancel it if it may not start. `silent`: forges that do not answer. Raises ForgeError."""
    old, is_silent = _is_old(run), run.repository.forge_id in silent
    refusal, reason = _refused(run, asks_forge=old and not is_silent)
    if refusal:
        lifecycle.move(run, "cancel", refusal, reason=refusal)
    elif reason:
        lifecycle.note(run, ASKED_AGAIN, reason)
    return not refusal and not (old and is_silent)


def _refused(run: TestRun, *, asks_forge: bool) -> tuple[str, str]:
    """(refusal, grounds): why a run may not start, or empty; why it may, if the forge was asked. Raises ForgeError."""
    approval = approval_of(run)
    refusal = _refused_here(run, approval)
    if refusal or not asks_forge:
        return refusal, ""
    try:
        may, reason = _ask_forge(run, approval)
    except NotFound as error:
        may, reason = False, f"its source can no longer be read: {error}."
    return ("", reason) if may else (reason, "")


def _refused_here(run: TestRun, approval: RunEvent | None = None) -> str:
    """Why a run of a stranger's code may not start, by what is known locally; empty if nothing is against it."""
    row, comment = run.repository, origin(run)
    if run.trusted:
        return ""
    if comment is None:
        return "it is no longer known who asked for it."
    if not (row.active and row.forge.enabled):
        return f"{row.full_name} is no longer enrolled."
    policy = policy_of(row)
    if comment.author_id in policy.block:
        return f"{comment.author_login}, who asked for it, has been blocked."
    if not _stands_on_approval(run, comment):
        return ""
    # A run that superseded a waiting one has another comment: of whoever tried to approve that one.
    if comment.pull_request.author_id in policy.block:
        return f"{comment.pull_request.author_login}, who opened the pull request, has been blocked."
    if not policy.approval:
        return f"{row.full_name} no longer accepts runs by strangers."
    if run.state == State.AWAITING_APPROVAL:
        return ""
    approvals = [approval] if approval else list(_approvals(comment.pull_request).filter(run__sha=run.sha))
    if approvals and not any(event.data.get("id") is not None or may_approve(event.data["login"]) for event in approvals):
        return f"{approvals[-1].data['login']}, who approved it in the admin, may no longer approve runs."
    return ""


def _stands_on_approval(run: TestRun, comment: Comment) -> bool:
    """Whether a run exists only because a stranger's code was approved: it waited itself, or was asked for by somebody who may
    not ask, on a commit approved before.
    """
    if run.events.filter(kind__in=(State.AWAITING_APPROVAL, APPROVED)).exists():
        return True
    known = comment.facts.get("asker")
    if known is None:  # `!testme retry`, which only who is trusted gets
        return False
    return not authorization.Person(
        **{fact.name: known[fact.name] for fact in fields(authorization.Person) if fact.name in known}
    ).trusted


def _ask_forge(run: TestRun, approval: RunEvent | None) -> tuple[bool, str]:
    """Whether a run may start according to the forge, and why. Raises ForgeError; NotFound if the repository or pull request
    is not visible.
    """
    comment = origin(run)
    if comment is None:
        return False, "it is no longer known who asked for it."
    row, client = run.repository, client_for(run.repository.forge, Purpose.ANSWERS)
    update_facts(row, client)
    if approval is not None and approval.data.get("id") is None:
        reason = f"{approval.data['login']} approved it in the admin"
    else:
        user = User(comment.author_id, comment.author_login)
        if run.asked_by is not None:
            user = User(run.asked_by, run.requested_by)
        if approval is not None:
            user = User(approval.data["id"], approval.data["login"])
        asked = authorization.person(user, row, client)
        reason = f"{asked.login} {asked.standing()}"
        again = run.pull_request is not None and approval is None and not asked.unheard and policy_of(row).approval
        if not asked.trusted and not (again and run.sha in approved_commits(comment.pull_request, client)):
            return False, f"{asked.login}, who {'approved' if approval else 'asked for'} it, {asked.standing()} now."
        if approval is None and asked.trusted:
            for person in _behind(run, comment, asked, client):
                if not person.trusted:
                    return False, f"{person.login}, who wrote the code, {person.standing()} now."
            return True, reason
    trouble = _moved_on(run, client)
    return not trouble, trouble or reason


def _behind(run: TestRun, comment: Comment, asked: authorization.Person, client: ForgeClient) -> Iterator[authorization.Person]:
    """The people a run's trust depends on, with their current standing: the code's author and the fork's owner."""
    code = comment.facts.get("code", {})
    if not run.trusted or code.get("kind") == "branch":
        return
    known = {fact["id"]: fact["login"] for fact in (comment.facts.get("author"), code.get("owner")) if fact}
    for number, login in known.items():
        if number != asked.id:
            yield authorization.person(User(number, login), run.repository, client)


def _moved_on(run: TestRun, client: ForgeClient) -> str:
    """Why an approved commit of a stranger may no longer be run; empty if it may. Raises ForgeError."""
    assert run.pull_request is not None
    row = run.repository
    pull = client.pull(row.owner, row.name, run.pull_request.number)
    if pull.base.id != row.forge_repo_id:
        raise Garbage(f"the name {row.full_name} now belongs to another repository")
    if pull.state != "open":
        return f"the pull request is now {pull.state}."
    if run.sha != pull.head_sha and run.sha not in client.pull_commits(row.owner, row.name, pull.number):
        return f"{run.short_sha} is no longer a commit of the pull request."
    return ""
