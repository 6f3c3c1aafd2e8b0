"""Runs on their way: claim a slot for the oldest that waits, start it, watch it, take over its results.

Every function here may be called twice, by several workers at a time, and die at any line: what is done is in the database
or in the run's folder, and each step is safe to repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from controlplane.models import Host
from runs import approval, lifecycle, results
from runs.executors import local
from runs.executors.base import Executor, ExecutorError, Observation
from runs.harness.protocol import FolderState
from runs.models import HOLDING, State, TestRun

log = logging.getLogger(__name__)

#: A run whose harness was lost (killed, or the machine went down) is tried once more, and then is our error.
ATTEMPTS = 2
#: Beyond its own time limit the harness gets this long to tear down before it is killed.
GRACE = timedelta(seconds=90)
#: A start that fails is tried for this long.
START_PATIENCE = timedelta(minutes=5)
#: A machine that has not ticked for this long is believed dead, and its runs lost.
HOST_DEAD = timedelta(minutes=15)


def executor_for(run: TestRun) -> Executor:
    """Where a run is done. For now there is one place: this machine."""
    return local.LocalExecutor()


# --- slots


def dispatch() -> list[TestRun]:
    """Give this machine's free slots to the oldest runs that wait, and start them."""
    claimed = _claim(approval.ask_again())
    for run in claimed:
        _start(run)
    return claimed


def _claim(held_back: Collection[TestRun] = ()) -> list[TestRun]:
    host = settings.CC_CI.host
    if not TestRun.objects.filter(state=State.QUEUED).exists():
        return []
    claimed = []
    with transaction.atomic():
        # One at a time per machine counts its slots; SQLite's immediate transactions do the same.
        Host.objects.get_or_create(name=host)
        Host.objects.select_for_update().get(name=host)
        free = settings.CC_CI.slots - TestRun.objects.filter(state__in=HOLDING, host=host).count()
        for run in TestRun.objects.filter(state=State.QUEUED).order_by("created_at"):
            if free <= 0:
                break
            if run in held_back:
                continue  # whether who asked for it still may is not known
            if run.pull_request_id and TestRun.objects.filter(pull_request=run.pull_request_id, state__in=HOLDING).exists():
                continue  # the older one of this pull request is being stopped
            now = timezone.now()
            if lifecycle.move(run, "claim", f"on {host}", host=host, attempt=1, started_at=now):
                claimed.append(run)
                free -= 1
    return claimed


# --- watching


def supervise() -> str:
    """Look after every run that this machine holds. One that fails holds up no other."""
    faults = []
    held = list(TestRun.objects.filter(state__in=HOLDING, host=settings.CC_CI.host).select_related("repository__forge"))
    for run in held:
        try:
            watch(run)
        except Exception as error:
            log.exception("%s: watching failed", run)
            faults.append(error)
    if faults:
        raise faults[0]
    return f"{len(held)} held"


def watch(run: TestRun) -> None:
    """One look at a run: take over what is new, and do the next step."""
    executor = executor_for(run)
    try:
        seen = executor.observe(run)
    except ExecutorError as error:
        _end(run, "error", str(error))
        return
    results.take_over(run, seen)
    step: dict[FolderState, Callable[[TestRun, Executor, Observation], None]] = {
        FolderState.NOT_STARTED: _not_started,
        FolderState.RUNNING: _running,
        FolderState.LOST: _lost,
        FolderState.FINISHED: _finished,
    }
    step[seen.state](run, executor, seen)


def _not_started(run: TestRun, executor: Executor, seen: Observation) -> None:
    if run.stop_wanted:
        _stopped(run)
    else:
        _start(run)


def _start(run: TestRun) -> None:
    try:
        executor_for(run).start(run)
    except ExecutorError as error:
        log.warning("%s: %s", run, error)
        if run.started_at is None or run.started_at < timezone.now() - START_PATIENCE:
            _end(run, "error", str(error))
        return
    if run.state == State.STARTING:
        lifecycle.move(run, "begin", "the harness has begun", fence=run.attempt)


def _running(run: TestRun, executor: Executor, seen: Observation) -> None:
    if run.state == State.STARTING:
        lifecycle.move(run, "begin", "the harness has begun", fence=run.attempt)
    if run.stop_wanted:
        executor.stop(run)
    limit = timedelta(seconds=settings.CC_CI.run_seconds) + GRACE
    if _attempt_started(run) + limit < timezone.now():
        lifecycle.note(run, "killed", "the harness did not end within its time limit")
        executor.kill(run)
        local.sweep()
        _end(run, "time_out", f"The run took longer than {settings.CC_CI.run_seconds} s and did not stop by itself.")


def _attempt_started(run: TestRun) -> datetime:
    claimed = run.events.filter(kind=State.STARTING, attempt=run.attempt).order_by("at").last()
    return claimed.at if claimed else run.created_at


def _lost(run: TestRun, executor: Executor, seen: Observation) -> None:
    local.sweep()
    if run.stop_wanted:
        _stopped(run)
    elif run.attempt < ATTEMPTS:
        text = "the harness was lost (killed, or the machine went down); trying once more"
        # What an earlier attempt told is kept in the trail; its numbers begin anew.
        lifecycle.move(run, "lose", text, fence=run.attempt, attempt=F("attempt") + 1, event_seq=0, log_offset=0)
    else:
        _end(
            run,
            "error",
            f"The harness was lost {ATTEMPTS} times (killed, or the machine went down). This is not the recipe's fault.",
        )


def _finished(run: TestRun, executor: Executor, seen: Observation) -> None:
    assert seen.results is not None
    results.conclude(run, seen.results, seen.files)
    dispatch()


def _stopped(run: TestRun) -> None:
    _end(run, "supersede" if run.stop_wanted == State.SUPERSEDED else "cancel", run.stop_reason)


def _end(run: TestRun, event: str, reason: str) -> None:
    lifecycle.move(run, event, reason, fence=run.attempt, reason=reason)


# --- machines that do not come back


def forsake_dead_hosts() -> list[TestRun]:
    """End the runs of machines that have not been heard of for long: their slots and their answers wait for nobody."""
    dead = Host.objects.filter(ticked_at__lt=timezone.now() - HOST_DEAD).exclude(name=settings.CC_CI.host)
    forsaken = []
    for run in TestRun.objects.filter(state__in=HOLDING, host__in=dead.values("name")):
        reason = (
            f"The machine {run.host} has not been heard of for {HOST_DEAD.seconds // 60} minutes. This is not the recipe's fault."
        )
        if lifecycle.move(run, "error", reason, fence=run.attempt, reason=reason):
            forsaken.append(run)
    return forsaken
