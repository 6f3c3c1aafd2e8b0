"""The only file that changes a run's state: MOVES is the table, `controlplane.transitions` the mechanism."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models import Q
from django.dispatch import Signal
from django.utils import timezone

from controlplane.transitions import Transitions
from runs.models import ACTIVE, FINAL, RunEvent, State, TestRun

#: event -> (states it may come from, state it leads to)
MOVES: dict[str, tuple[tuple[State, ...], State]] = {
    "approve": ((State.AWAITING_APPROVAL,), State.QUEUED),
    "claim": ((State.QUEUED,), State.STARTING),
    "begin": ((State.STARTING,), State.RUNNING),
    "try_again": ((State.STARTING, State.RUNNING), State.QUEUED),
    "pass": ((State.STARTING, State.RUNNING), State.PASSED),
    "fail": ((State.STARTING, State.RUNNING), State.FAILED),
    "error": ((State.QUEUED, State.STARTING, State.RUNNING), State.ERRORED),
    "time_out": ((State.STARTING, State.RUNNING), State.TIMED_OUT),
    "cancel": (ACTIVE, State.CANCELLED),
    "supersede": (ACTIVE, State.SUPERSEDED),
}

_RUNS = Transitions(TestRun, MOVES)

#: Sent in the transaction of each move, so that its reports are stored with it. Arguments: `run`.
run_moved = Signal()


def move(run: TestRun, event: str, text: str = "", *, fence: int | None = None, **fields: Any) -> bool:
    """Make a move, and set `fields` with it. Returns whether this call made it. Refreshes the run.

    `fence`: the attempt that the caller knows; the owner of an earlier attempt cannot move the run.
    """
    if MOVES[event][1] in FINAL:
        fields.setdefault("finished_at", timezone.now())

    def then(run: TestRun) -> None:
        note(run, run.state, text)
        run_moved.send(sender=TestRun, run=run)

    return _RUNS.move(run, event, fields, where=Q() if fence is None else Q(attempt=fence), then=then)


def note(run: TestRun, kind: str, text: str = "", **data: Any) -> None:
    """Add an event of ours to the trail."""
    RunEvent.objects.create(run=run, at=timezone.now(), kind=kind, text=text, data=data, attempt=run.attempt)


def want_stop(run: TestRun, how: State, reason: str) -> bool:
    """Ask for a run's end. A run without a machine ends at once; otherwise its machine stops it and tears it down."""
    event = {State.CANCELLED: "cancel", State.SUPERSEDED: "supersede"}[how]
    with transaction.atomic():
        waiting = TestRun.objects.select_for_update().filter(pk=run.pk).first()
        if waiting is None or waiting.state not in ACTIVE:
            return False
        if waiting.state in (State.QUEUED, State.AWAITING_APPROVAL):
            return move(run, event, reason, reason=reason)
        asked = TestRun.objects.filter(pk=run.pk, state__in=ACTIVE, stop_wanted="").update(
            stop_wanted=how, stop_reason=reason[:500]
        )
        if asked:
            run.refresh_from_db()
            note(run, "stop_wanted", reason)
            run_moved.send(sender=TestRun, run=run)
        return bool(asked)
