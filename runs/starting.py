"""Runs that a person asks for without a comment: from the admin."""

from __future__ import annotations

from django.db import transaction

from enrollment.clients import client_for
from enrollment.models import Repository
from runs import approval, intake, lifecycle
from runs.harness.protocol import DEFAULT_STAGES, STAGES
from runs.models import TestRun


class NotRepeated(Exception):
    """A run that is not to be repeated; the text says why, and what to do."""


def stages_of(extra: bool, base: tuple[str, ...] = DEFAULT_STAGES) -> tuple[str, ...]:
    return tuple(stage for stage in STAGES if stage in base or (extra and stage == "extra"))


def run_repository(row: Repository, who: str, *, extra: bool = False) -> TestRun:
    """A run of the newest commit of the default branch. Raises ForgeError."""
    sha = client_for(row.forge).branch_head(row.owner, row.name, row.default_branch)
    ref = f"refs/heads/{row.default_branch}"
    text = f"asked for in the admin by {who}"
    return intake.create_run(row, sha=sha, ref=ref, stages=stages_of(extra), requested_by=who, trusted=True, text=text)


def run_again(run: TestRun, who: str, *, extra: bool = False) -> TestRun:
    """A new run of the same commit, all stages; extra tests where wished, or where the earlier run had them.

    A stranger's run that was let go keeps its approval, and is asked about by it before it starts. Raises NotRepeated for one
    that was not, or might not start any more; ForgeError where that could not be asked.
    """
    if refusal := approval.refuses_again(run):
        raise NotRepeated(refusal)
    let_go = approval.approval_of(run)
    with transaction.atomic():
        new = intake.create_run(
            run.repository,
            sha=run.sha,
            ref=run.ref,
            stages=stages_of(extra or "extra" in run.stages),
            requested_by=who,
            trusted=run.trusted,
            pull_request=run.pull_request,
            retry_of=run,
            text=f"{run} again, asked for in the admin by {who}",
        )
        if let_go:
            lifecycle.note(new, approval.APPROVED, let_go.text, **let_go.data)
    return new
