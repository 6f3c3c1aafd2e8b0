"""Strangers' runs that wait for approval: how one comes to wait, who lets it go, and whether they still may when it starts.

A run waits for one commit. It is let go by a trusted person's `!testme approve` with that commit's whole id on its pull
request, or in the admin; what is pushed meanwhile needs an approval of its own. The decision is `enrollment.trust.approve`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import fields
from datetime import timedelta

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone
from django_q.tasks import async_task

from controlplane.secrets import SecretUnreadable
from enrollment import trust
from enrollment.budget import Purpose
from enrollment.clients import client_for
from enrollment.enrolling import update_facts
from enrollment.forges.base import ForgeClient, ForgeError, Garbage, NotFound, User
from enrollment.models import Comment, PullRequest
from enrollment.policies import policy_of
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
        intake.create_run_for(comment, sha, stages, reason, trusted=False, state=State.AWAITING_APPROVAL)
        return None

    return intake.settle(comment, Comment.Outcome.RUN, reason, follow, facts)


def answer(comment: Comment, command: Command, asker: trust.Person, pull_url: str) -> Comment.Outcome:
    """`!testme approve`: let the run go that waits on this pull request, or say why not."""
    run = _waiting(comment.pull_request)
    if run is None:
        return intake.reply(comment, render.reply_nothing("approve"), "nothing waits for approval")
    facts = trust.Approval(asker, waiting_sha=run.sha, wanted_sha=command.sha)
    decision = trust.approve(facts)
    if decision.allowed:

        def follow() -> Comment.Outcome | None:
            if not let_go(run, comment.author_login, decision.reason, comment=comment):
                reporting.want_reply(comment, render.reply_nothing("approve"))
                return Comment.Outcome.REPLY
            reporting.want_reaction(comment)
            return None

        return intake.settle(comment, Comment.Outcome.ACTED, decision.reason, follow, facts)
    text = render.reply_approve_named(run.sha, pull_url)
    if decision.refusal == "unknown_sha":
        text = render.reply_approve_other(command.sha, run.sha, pull_url)
    return intake.reply(comment, text, decision.reason, facts)


def _waiting(pull: PullRequest) -> TestRun | None:
    return TestRun.objects.filter(pull_request=pull, state=State.AWAITING_APPROVAL).order_by("created_at").last()


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
    if refusal := _refused_here(run):
        return f"{run}: {refusal}"
    row, client = run.repository, client_for(run.repository.forge)
    update_facts(row, client)
    head = client.pull(row.owner, row.name, run.pull_request.number).head_sha
    if head != run.sha:
        return f"{run}: something was pushed since {run.short_sha}; the newest commit is {head[:10]}, and needs a run of its own."
    return "" if let_go(run, who, f"approved in the admin by {who}") else f"{run} waits no longer."


def may_approve(login: str) -> bool:
    """Whether a person of this server's admin may let runs go: with the right to ask for runs, and not switched off."""
    people = get_user_model()
    found = people.objects.filter(**{people.USERNAME_FIELD: login}).first()
    return found is not None and found.has_perm("runs.add_testrun")


def _approvals(pull: PullRequest) -> QuerySet[RunEvent]:
    """All approvals on a pull request, the oldest first."""
    return RunEvent.objects.filter(run__pull_request=pull, kind=APPROVED).select_related("run").order_by("id")


def approved_commits(pull: PullRequest, client: ForgeClient) -> tuple[str, ...]:
    """The commits of a pull request that were approved, by people who still may."""
    known: dict[int | str, bool] = {}
    commits = []
    for event in _approvals(pull):
        number, login = event.data.get("id"), event.data["login"]
        name = login if number is None else number
        if name not in known:
            by_hand = number is None
            known[name] = may_approve(login) if by_hand else trust.person(User(number, login), pull.repository, client).trusted
        if known[name]:
            commits.append(event.run.sha)
    return tuple(dict.fromkeys(commits))


def origin(run: TestRun) -> Comment | None:
    """The comment that asked for a run, or for the one that it repeats; None where nobody's did, or it is not there any more."""
    while run.comment is None and run.retry_of is not None:
        run = run.retry_of
    return run.comment


def approval_of(run: TestRun) -> RunEvent | None:
    """By what a stranger's run was let go; None where it needed no approval of its own."""
    return None if run.trusted else run.events.filter(kind=APPROVED).order_by("id").last()


def refuses_again(run: TestRun) -> str:
    """Why a run may not be repeated, and what to do; empty when it may. Raises ForgeError: then it is not known.

    A run of a stranger's code is asked about like one that is to start: repeating it is no approval.
    """
    if run.trusted:
        return ""
    if run.state == State.AWAITING_APPROVAL:
        return f"{run} waits for approval: choose Approve among the actions to let it go."
    if not run.events.filter(kind=State.QUEUED).exists():
        return f"{run} was never approved. Its author may ask again on the pull request; approve the run that waits then."
    refusal = _refused(run, asks_forge=True)[0]
    return f"{run} is not repeated: {refusal}" if refusal else ""


# --- just before the start


def ask_again() -> set[TestRun]:
    """Ask once more about the runs that would start now: who left meanwhile starts nothing.

    What is known here is looked at each time, the forge is asked about those that were let go a while ago. Goes through them in
    the order in which slots are given (`supervision`). Returns those that are not to be started: they were cancelled, or could
    not be asked about.
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
        if run.comment is not None or not run.trusted:
            try:
                may = _may_still(run, silent)
            except (ForgeError, SecretUnreadable) as error:
                log.warning("%s waits: whether it may still start could not be asked (%s)", run, error)
                silent.add(run.repository.forge_id)
                may = False
            if not may:
                held_back.add(run)
                continue
        free -= 1
        busy.add(run.pull_request_id)
    return held_back


def _is_old(run: TestRun) -> bool:
    newest = run.events.filter(kind__in=(State.QUEUED, ASKED_AGAIN)).order_by("at").last()
    return newest is not None and newest.at < timezone.now() - ASK_AGAIN


def _may_still(run: TestRun, silent: Collection[int]) -> bool:
    """Ask about one; it is cancelled when it may not. `silent`: forges that are not asked now. Raises ForgeError."""
    old, is_silent = _is_old(run), run.repository.forge_id in silent
    refusal, words = _refused(run, asks_forge=old and not is_silent)
    if refusal:
        lifecycle.move(run, "cancel", refusal, reason=refusal)
    elif words:
        lifecycle.note(run, ASKED_AGAIN, words)
    return not refusal and not (old and is_silent)


def _refused(run: TestRun, *, asks_forge: bool) -> tuple[str, str]:
    """What speaks against a run, empty when nothing does; and on what it stands, if the forge was asked. Raises ForgeError."""
    approval = approval_of(run)
    refusal = _refused_here(run, approval)
    if refusal or not asks_forge:
        return refusal, ""
    try:
        may, words = _ask_forge(run, approval)
    except NotFound as error:
        may, words = False, f"It cannot be read any more where it is from: {error}."
    return ("", words) if may else (words, "")


def _refused_here(run: TestRun, approval: RunEvent | None = None) -> str:
    """What is known here against a run of a stranger's code; empty when nothing is."""
    row, comment = run.repository, origin(run)
    if run.trusted:
        return ""
    if comment is None:
        return "It is not known any more who asked for it."
    if not (row.active and row.forge.enabled):
        return f"{row.full_name} is not watched any more."
    policy = policy_of(row)
    if comment.author_id in policy.block:
        return f"{comment.author_login}, who asked for it, is blocked by now."
    if not _stands_on_approval(run, comment):
        return ""
    # A run that took the place of one that waited has another comment, of who tried to approve that one.
    if comment.pull_request.author_id in policy.block:
        return f"{comment.pull_request.author_login}, whose pull request it is, is blocked by now."
    if not policy.approval:
        return f"runs of strangers are not approved at {row.full_name} any more."
    if run.state == State.AWAITING_APPROVAL:
        return ""
    approvals = [approval] if approval else list(_approvals(comment.pull_request).filter(run__sha=run.sha))
    if approvals and not any(event.data.get("id") is not None or may_approve(event.data["login"]) for event in approvals):
        return f"{approvals[-1].data['login']}, who approved it in the admin, may not any more."
    return ""


def _stands_on_approval(run: TestRun, comment: Comment) -> bool:
    """Whether a run is there only because strangers' runs are approved: it waited itself, or who asked for it might not, and
    got it because the commit had been approved before."""
    if run.events.filter(kind__in=(State.AWAITING_APPROVAL, APPROVED)).exists():
        return True
    known = comment.facts.get("asker")
    if known is None:  # `!testme retry`, which only who is trusted gets
        return False
    return not trust.Person(**{fact.name: known[fact.name] for fact in fields(trust.Person) if fact.name in known}).trusted


def _ask_forge(run: TestRun, approval: RunEvent | None) -> tuple[bool, str]:
    """Whether a run may start by what the forge says now, and on what that stands. Raises ForgeError; NotFound where the
    repository or the pull request is not to be seen."""
    comment = origin(run)
    assert comment is not None
    row, client = run.repository, client_for(run.repository.forge, Purpose.ANSWERS)
    update_facts(row, client)
    if approval is not None and approval.data.get("id") is None:
        words = f"{approval.data['login']} approved it in the admin"
    else:
        user = User(comment.author_id, comment.author_login)
        if approval is not None:
            user = User(approval.data["id"], approval.data["login"])
        asked = trust.person(user, row, client)
        words = f"{asked.login} {asked.standing()}"
        again = run.pull_request is not None and approval is None and not asked.unheard and policy_of(row).approval
        if not asked.trusted and not (again and run.sha in approved_commits(comment.pull_request, client)):
            return False, f"{asked.login}, who {'approved' if approval else 'asked for'} it, {asked.standing()} by now."
        if approval is None and asked.trusted:
            for person in _behind(run, comment, asked, client):
                if not person.trusted:
                    return False, f"{person.login}, whose code it is, {person.standing()} by now."
            return True, words
    trouble = _moved_on(run, client)
    return not trouble, trouble or words


def _behind(run: TestRun, comment: Comment, asked: trust.Person, client: ForgeClient) -> Iterator[trust.Person]:
    """Those whose standing made a run a trusted one, as they stand now: the author of its code, and the owner of their fork."""
    code = comment.facts.get("code", {})
    if not run.trusted or code.get("kind") == "branch":
        return
    known = {fact["id"]: fact["login"] for fact in (comment.facts.get("author"), code.get("owner")) if fact}
    for number, login in known.items():
        if number != asked.id:
            yield trust.person(User(number, login), run.repository, client)


def _moved_on(run: TestRun, client: ForgeClient) -> str:
    """Why a stranger's commit that was approved is none to run any more; empty while it is one. Raises ForgeError."""
    assert run.pull_request is not None
    row = run.repository
    pull = client.pull(row.owner, row.name, run.pull_request.number)
    if pull.base.id != row.forge_repo_id:
        raise Garbage(f"what is called {row.full_name} is another repository since a moment ago")
    if pull.state != "open":
        return f"the pull request is {pull.state} by now."
    if run.sha != pull.head_sha and run.sha not in client.pull_commits(row.owner, row.name, pull.number):
        return f"{run.short_sha} is no commit of the pull request any more."
    return ""
