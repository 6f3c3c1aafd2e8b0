"""What a person does to a run by hand: one table for the buttons of its page, the admin's actions and the API.

An action is given the run, who asks, and where; it returns the run that the person sees next, or raises NotDone with a sentence.
A `person` asks by the rules for a comment of theirs (`enrollment.access`); without one, an account of this server does by its
permission.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controlplane.secrets import SecretUnreadable
from enrollment.access.authorization import Person
from enrollment.forges.base import ForgeError, explain
from runs import approval, lifecycle, manual
from runs.manual import NotDone
from runs.models import ACTIVE, FINAL, State, TestRun


def _again(run: TestRun, who: str, where: str, person: Person | None, *, extra: bool = False) -> TestRun:
    return manual.run_again(run, who, extra=extra, where=where, person=person)


def _again_with_extra(run: TestRun, who: str, where: str, person: Person | None) -> TestRun:
    return _again(run, who, where, person, extra=True)


def _cancel(run: TestRun, who: str, where: str, person: Person | None) -> TestRun:
    if not lifecycle.want_stop(run, State.CANCELLED, f"cancelled {where} by {who}"):
        run.refresh_from_db()
        raise NotDone(f"{run} is {State(run.state).label} already, or being stopped.")
    run.refresh_from_db()
    return run


def _approve(run: TestRun, who: str, where: str, person: Person | None) -> TestRun:
    if trouble := approval.let_go_by_hand(run, who, where, person):
        raise NotDone(trouble)
    return run


@dataclass(frozen=True)
class Action:
    """`label`: of its button. `states`: those of a run to which it can be done. `danger`: it ends something."""

    name: str
    label: str
    states: tuple[State, ...]
    act: Callable[[TestRun, str, str, Person | None], TestRun]
    done: str  #: what to tell, to be formatted with `run`
    danger: bool = False

    def do(self, run: TestRun, who: str, where: str, person: Person | None = None) -> TestRun:
        """Do it. Raises NotDone."""
        if person is not None and not person.trusted:
            raise NotDone(f"{person.login} {person.standing()}.")
        try:
            return self.act(run, who, where, person)
        except (ForgeError, SecretUnreadable) as error:
            raise NotDone(f"{run}: {explain(error)}", passing=True) from error


ACTIONS = {
    action.name: action
    for action in (
        Action(
            "approve", "Approve this commit", (State.AWAITING_APPROVAL,), _approve, "{run} is queued, for {run.short_sha} only."
        ),
        Action("again", "Run again", FINAL, _again, "{run} is queued."),
        Action("again-with-extra-tests", "Run again with extra tests", FINAL, _again_with_extra, "{run} is queued."),
        Action("cancel", "Cancel", ACTIVE, _cancel, "{run} is being stopped.", danger=True),
    )
}
