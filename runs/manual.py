"""Runs that a person starts in the admin or through the API, without a comment."""

from __future__ import annotations

from django.db import transaction

from enrollment.access.authorization import Person
from enrollment.forge_access.clients import client_for
from enrollment.forges.base import Garbage
from enrollment.models import Repository
from enrollment.repositories import update_facts
from runs import approval, lifecycle, outcomes, retry
from runs.harness.stage_table import DEFAULT_STAGES, in_order
from runs.models import ACTIVE, TestRun

#: Where a person asked, as it is recorded.
ADMIN = "in the admin"


class Moved(Exception):
    """The branch is at another commit than the person expects; the message names both."""


class NotDone(Exception):
    """The message says why, and what to do. `passing`: the forge could not be asked, so it may work later."""

    def __init__(self, text: str, *, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


def stages_of(extra: bool, base: tuple[str, ...] = DEFAULT_STAGES) -> tuple[str, ...]:
    return in_order((*base, "extra") if extra else base)


def run_repository(row: Repository, who: str, *, extra: bool = False, expected: str = "", where: str = ADMIN) -> TestRun:
    """Create a run of the default branch's newest commit. Raises ForgeError; Moved if it is not the `expected` one."""
    client = client_for(row.forge)
    update_facts(row, client)  # by its id: names change hands, and so may the default branch
    sha = client.branch_head(row.owner, row.name, row.default_branch)
    if expected and sha != expected:
        raise Moved(f"{row.default_branch} of {row.full_name} is at {sha}, not at {expected}.")
    ref = f"refs/heads/{row.default_branch}"
    text = f"requested {where} by {who}"
    return outcomes.create_run(row, sha=sha, ref=ref, stages=stages_of(extra), requested_by=who, trusted=True, text=text)


def run_again(run: TestRun, who: str, *, extra: bool = False, where: str = ADMIN, person: Person | None = None) -> TestRun:
    """Create a run of the same commit with all stages, and with extra tests if asked for or if the earlier run had them; if this
    person asked for the same already and it has not ended, that run is returned.

    A stranger's run keeps its approval, which is checked again before the start. Raises NotDone for a run that was never
    approved or may no longer start, and if its repository is no longer watched; ForgeError if that could not be checked.

    If a `person` of the forge asks, the pull request must be open, and the code is trusted only if it still is.
    """
    if not Repository.objects.watched().filter(pk=run.repository_id).exists():
        raise NotDone(f"{run} cannot be repeated: {run.repository.full_name} is no longer watched.")
    if refusal := approval.refuses_again(run):
        raise NotDone(refusal)
    trusted = run.trusted if person is None else _still_trusted(run, person)
    let_go = approval.approval_of(run)
    stages, asked_by = stages_of(extra or "extra" in retry.asked(run)), person.id if person else None
    with transaction.atomic():
        TestRun.objects.select_for_update().get(pk=run.pk)  # of two clicks, one comes after the other
        theirs = TestRun.objects.filter(retry_of=run, requested_by=who[:255], asked_by=asked_by, state__in=ACTIVE, stop_wanted="")
        if there := theirs.filter(stages=list(stages), trusted=trusted).first():
            return there
        new = outcomes.create_run(
            run.repository,
            sha=run.sha,
            ref=run.ref,
            stages=stages,
            upgrade_from=run.upgrade_from,
            requested_by=who,
            trusted=trusted,
            pull_request=run.pull_request,
            retry_of=run,
            asked_by=asked_by,
            text=f"repeats {run}, requested {where} by {who}",
        )
        if let_go:
            lifecycle.note(new, approval.APPROVED, let_go.text, **let_go.data)
    return new


def _still_trusted(run: TestRun, person: Person) -> bool:
    """Whether a run is trusted if this person repeats it, as with a comment. Raises NotDone and ForgeError."""
    if run.pull_request is None or approval.origin(run) is None:
        raise NotDone(f"{run} cannot be repeated by its maintainers: it was not requested on a pull request.")
    row, client = run.repository, client_for(run.repository.forge)
    pull = client.pull(row.owner, row.name, run.pull_request.number)
    if pull.base.id != row.forge_repo_id:
        raise Garbage(f"the name {row.full_name} now belongs to another repository")
    if pull.state != "open":
        raise NotDone(f"{run} cannot be repeated: the pull request is {pull.state}.")
    facts = approval.facts_now(run, person, pull, client)
    return facts is not None and facts.trusts(run.sha)
