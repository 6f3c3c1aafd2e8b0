"""Moves runs along: claims free slots for queued runs, starts these, watches them, ingests their results.

Every function here may be called twice, by several workers at once, and may die at any line: all progress is in the
database or the run's folder, and every step can be repeated safely.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Case, F, When
from django.utils import timezone
from django_q.tasks import async_task

from controlplane.models import Host
from controlplane.secrets import SecretUnreadable
from enrollment.forge_access.clients import client_for
from enrollment.forge_access.rate_limit import Purpose
from enrollment.forges.base import ForgeError
from enrollment.forges.http import storable
from enrollment.repositories import note_pull
from runs import approval, ingest, lifecycle, reporting, retry, scheduling
from runs.executors.base import Executor, ExecutorError, Observation
from runs.executors.select import executor_for
from runs.harness.protocol import FolderState, Results, Verdict
from runs.models import ACTIVE, FINAL, HOLDING, RemoteExecutor, State, TestRun

log = logging.getLogger(__name__)

#: A run that ended by our fault (harness or machine lost, results that say so) is queued once more, and then ends as our error.
ATTEMPTS = 2
#: How long a failing start is retried.
START_PATIENCE = timedelta(minutes=5)
#: A machine that has not ticked for this long is considered dead, and its runs lost.
HOST_DEAD = timedelta(minutes=15)
#: Why runs could not be started, as logged last.
_said: dict[UUID, str] = {}


# --- slots


def dispatch() -> list[TestRun]:
    """Give free slots to queued runs in turn, and start them."""
    claimed = _claim(approval.ask_again(_let_go_of_closed()))
    for run in claimed:
        _start(run)
    reporting.update_places()
    return claimed


def _let_go_of_closed() -> set[UUID]:
    """Cancel runs that were requested on a pull request that is closed now: waiting ones, and with CC_CI_CLOSE=running all.

    Returns runs that must not start because this could not be checked.
    """
    states = ACTIVE if settings.CC_CI.close == "running" else (State.QUEUED, State.AWAITING_APPROVAL)
    asked = TestRun.objects.filter(state__in=states, stop_wanted="", comment__isnull=False, pull_request__state="closed")
    unknown = set()
    for run in asked.select_related("pull_request__repository__forge"):
        pull = run.pull_request
        assert pull is not None
        row = pull.repository
        try:
            found = client_for(row.forge, Purpose.ANSWERS).pull(row.owner, row.name, pull.number)
        except (ForgeError, SecretUnreadable) as error:
            log.info("%s: cannot check whether its pull request is closed: %s", run, error)
            unknown.add(run.pk)
            continue
        if found.base.id != row.forge_repo_id:
            unknown.add(run.pk)
        elif found.state == "closed":
            how, when = "merged" if found.merged else "closed", "ended" if run.state in HOLDING else "started"
            lifecycle.want_stop(run, State.CANCELLED, f"The pull request was {how} before the run {when}.")
        else:
            note_pull(pull, found)
    return unknown


def _claim(may: Collection[UUID] | None = None) -> list[TestRun]:
    """Claim free slots for queued runs, or only for these."""
    host = settings.CC_CI.host
    if may is not None and not may:
        return []
    claimed = []
    Host.objects.get_or_create(name=host)  # committed first, so that other new machines see it
    with transaction.atomic():
        # One at a time counts the slots, for executors and repositories are shared by all machines; SQLite's immediate
        # transactions do the same.
        list(Host.objects.select_for_update().order_by("name"))
        waiting, load = scheduling.read()
        for one in scheduling.in_turn(waiting, load):
            if may is not None and one.run not in may:
                continue
            run = TestRun.objects.select_related("repository__forge").get(pk=one.run)
            remote = RemoteExecutor.objects.get(pk=one.executor) if one.executor else None
            name = remote.name if remote else ""
            text = f"on {host}, by the executor {name}" if remote else f"on {host}"
            fields = {
                "host": host,
                "attempt": run.attempt or 1,
                "started_at": timezone.now(),
                "executor": remote,
                "executor_name": name,
            }
            if lifecycle.move(run, "claim", text, fence=run.attempt, **fields):
                load.take(one)
                claimed.append(run)
    return claimed


# --- watching


def supervise() -> str:
    """Watch every run that this machine holds, first those here. An error with one does not hold up the others."""
    faults = []
    held = list(
        TestRun.objects.filter(state__in=HOLDING, host=settings.CC_CI.host)
        .select_related("repository__forge", "executor")
        .order_by(Case(When(executor_name="", then=0), default=1), "created_at")
    )
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
    """Ingest what is new in a run, and do its next step."""
    try:
        executor = executor_for(run)
    except ExecutorError as error:
        _end(run, "error", str(error))
        return
    step: dict[FolderState, Callable[[TestRun, Executor, Observation], None]] = {
        FolderState.NOT_STARTED: _not_started,
        FolderState.RUNNING: _running,
        FolderState.LOST: _lost,
        FolderState.FINISHED: _finished,
    }
    try:
        try:
            seen = executor.observe(run)
        except ExecutorError as error:
            try:
                executor.stop(run)
            finally:
                _end(run, "error", str(error))
            return
        attempt = run.attempt
        ingest.take_over(run, seen)
        if run.attempt == attempt:  # another worker may have queued it once more, and what was seen is no news of that attempt
            step[seen.state](run, executor, seen)
    except BaseException:  # whatever cannot be read there, or takes all of the task's time: it does not go on for ever
        _limit(run, executor)
        raise


def _not_started(run: TestRun, executor: Executor, seen: Observation) -> None:
    if run.stop_wanted:
        _stopped(run)
    else:
        _start(run)


def _start(run: TestRun) -> None:
    try:
        executor = executor_for(run)
        executor.start(run)
    except ExecutorError as error:
        text = re.sub(r"\d+", "", str(error))  # the seconds to wait change all the time
        if _said.get(run.pk) != text:
            log.warning("%s: %s", run, error)
        _said[run.pk] = text
        if run.started_at is None or run.started_at < timezone.now() - START_PATIENCE:
            _end(run, "error", str(error))
        return
    _said.pop(run.pk, None)
    if run.state == State.STARTING:
        begun = lifecycle.move(run, "begin", "the harness has started", fence=run.attempt)
        if not begun and run.state in FINAL:  # it was stopped meanwhile, by a worker that saw no harness yet
            executor.stop(run)


def _running(run: TestRun, executor: Executor, seen: Observation) -> None:
    if run.state == State.STARTING:
        lifecycle.move(run, "begin", "the harness has started", fence=run.attempt)
    if run.stop_wanted:
        executor.stop(run)
    _limit(run, executor)


def _limit(run: TestRun, executor: Executor) -> None:
    """End a run whose time is over."""
    if _attempt_started(run) + executor.longest(run) < timezone.now():
        lifecycle.note(run, "killed", "the harness did not end within its time limit")
        try:
            executor.kill(run)
            executor.sweep()
        finally:
            _end(run, "time_out", f"The run took longer than {settings.CC_CI.run_seconds} s and did not stop when asked.")


def _attempt_started(run: TestRun) -> datetime:
    claimed = run.events.filter(kind=State.STARTING, attempt=run.attempt).order_by("at").last()
    return claimed.at if claimed else run.created_at


def _lost(run: TestRun, executor: Executor, seen: Observation) -> None:
    executor.sweep()
    if run.stop_wanted:
        _stopped(run)
        return
    fault = f"the harness was lost ({seen.lost})"
    if not _try_again(run, fault):
        _end(run, "error", f"The harness was lost {ATTEMPTS} times ({seen.lost}). This is not the recipe's fault.")


def _try_again(run: TestRun, fault: str, **fields: Any) -> bool:
    """Queue a run once more after a fault of ours, on whatever machine has a slot. False if it has had all its attempts."""
    if run.attempt >= ATTEMPTS:
        return False
    _said.pop(run.pk, None)
    # Events of an earlier attempt stay in the trail; the numbers start over.
    over = {"attempt": F("attempt") + 1, "event_seq": 0, "log_offset": 0, "build_url": ""}
    with transaction.atomic():
        if lifecycle.move(run, "try_again", storable(f"{fault}; retrying once"), fence=run.attempt, **over, **fields):
            if run.stop_wanted:  # asked for in this moment
                lifecycle.want_stop(run, State(run.stop_wanted), run.stop_reason)
            async_task("runs.tasks.dispatch")
    return True


def _finished(run: TestRun, executor: Executor, seen: Observation) -> None:
    results = seen.results
    assert results is not None
    if run.stop_wanted or not _retried(run, results, executor):
        ingest.conclude(run, results, seen.files)
    if TestRun.objects.filter(state=State.QUEUED).exists():
        dispatch()


def _retried(run: TestRun, results: Results, executor: Executor) -> bool:
    """Whether a run that ended is queued once more: it says that the fault is ours, or what it took over no longer counts."""
    if results.verdict is Verdict.PASSED and run.taken_over and (why := retry.objection(run, results)):
        fault = f"{', '.join(run.taken_over)} can no longer be taken over, because {why}; all stages run"
        return _try_again(run, fault, stages=list(retry.asked(run)), taken_over=[])
    red = any(stage.status == "failed" for stage in results.stages)
    # What was left behind would be in the way of the next attempt, too, and a stage that failed is the recipe's fault.
    if results.verdict is not Verdict.ERRORED or red or not results.teardown.clean:
        return False
    executor.sweep()
    return _try_again(run, f"it could not be completed ({results.reason[:1000]})")


def _stopped(run: TestRun) -> None:
    _end(run, "supersede" if run.stop_wanted == State.SUPERSEDED else "cancel", run.stop_reason)


def _end(run: TestRun, event: str, reason: str) -> None:
    _said.pop(run.pk, None)
    lifecycle.move(run, event, reason, fence=run.attempt, reason=reason)


# --- machines that do not come back


def forsake_dead_hosts() -> list[TestRun]:
    """Take their runs away from machines that have not been heard from for a long time: each is queued once more, or ends."""
    dead = Host.objects.filter(ticked_at__lt=timezone.now() - HOST_DEAD).exclude(name=settings.CC_CI.host)
    forsaken = []
    for run in TestRun.objects.filter(state__in=HOLDING, host__in=dead.values("name")):
        silence = f"the machine {run.host} has not been heard from for {HOST_DEAD.seconds // 60} minutes"
        if run.stop_wanted:
            _stopped(run)
        elif not _try_again(run, silence):
            _end(run, "error", f"{silence[0].upper()}{silence[1:]}. This is not the recipe's fault.")
        forsaken.append(run)
    return forsaken
