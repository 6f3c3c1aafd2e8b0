"""The only file that changes a run's state.

MOVES is the table: from which states an event may lead where. A move is one conditional UPDATE; when it changes no row,
somebody else was first, and the caller stops. The trail gets its row in the same transaction.
"""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.dispatch import Signal
from django.utils import timezone

from runs.models import ACTIVE, FINAL, RunEvent, State, TestRun

#: event -> (states it may come from, state it leads to)
MOVES: dict[str, tuple[tuple[State, ...], State]] = {
    "approve": ((State.AWAITING_APPROVAL,), State.QUEUED),
    "claim": ((State.QUEUED,), State.STARTING),
    "begin": ((State.STARTING,), State.RUNNING),
    "lose": ((State.STARTING, State.RUNNING), State.STARTING),
    "pass": ((State.STARTING, State.RUNNING), State.PASSED),
    "fail": ((State.STARTING, State.RUNNING), State.FAILED),
    "error": ((State.QUEUED, State.STARTING, State.RUNNING), State.ERRORED),
    "time_out": ((State.STARTING, State.RUNNING), State.TIMED_OUT),
    "cancel": (ACTIVE, State.CANCELLED),
    "supersede": (ACTIVE, State.SUPERSEDED),
}

#: Sent in the transaction of each move, so that what should stand on the forge is written down with it. Arguments: `run`.
run_moved = Signal()


def move(run: TestRun, event: str, text: str = "", *, fence: int | None = None, **fields: Any) -> bool:
    """Do a move; returns whether it was ours to do. `fields` are set with it. `fence` is the attempt
    that the caller knows: a late owner of an earlier one moves nothing. The run is refreshed."""
    sources, target = MOVES[event]
    if target in FINAL:
        fields.setdefault("finished_at", timezone.now())
    with transaction.atomic():
        rows = TestRun.objects.filter(pk=run.pk, state__in=sources)
        if fence is not None:
            rows = rows.filter(attempt=fence)
        moved = rows.update(state=target, **fields)
        run.refresh_from_db()
        if not moved:
            return False
        note(run, target, text)
        run_moved.send(sender=TestRun, run=run)
    return True


def note(run: TestRun, kind: str, text: str = "", **data: Any) -> None:
    """Add a line of our own to the trail."""
    RunEvent.objects.create(run=run, at=timezone.now(), kind=kind, text=text, data=data, attempt=run.attempt)


def want_stop(run: TestRun, how: State, reason: str) -> bool:
    """Ask for a run's end. One that holds no machine ends at once; another is stopped by its machine, and torn down."""
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
