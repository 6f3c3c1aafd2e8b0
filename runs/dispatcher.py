"""Moves runs along: claims a slot for the oldest queued run, starts it, watches it, ingests its results.

Every function here may be called twice, by several workers at once, and may die at any line: all progress is in the
database or the run's folder, and every step can be repeated safely.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Case, F, When
from django.utils import timezone

from controlplane.models import Host
from controlplane.secrets import SecretUnreadable
from enrollment.forge_access.clients import client_for
from enrollment.forge_access.rate_limit import Purpose
from enrollment.forges.base import ForgeError
from enrollment.models import PullRequest
from runs import approval, ingest, lifecycle
from runs.executors.base import Executor, ExecutorError, Observation
from runs.executors.select import choose, executor_for
from runs.harness.protocol import FolderState
from runs.models import HOLDING, State, TestRun

log = logging.getLogger(__name__)

#: A run whose harness was lost (killed, or the machine went down) is retried once, and then ends as our error.
ATTEMPTS = 2
#: How long a failing start is retried.
START_PATIENCE = timedelta(minutes=5)
#: A machine that has not ticked for this long is considered dead, and its runs lost.
HOST_DEAD = timedelta(minutes=15)
#: Why runs could not be started, as logged last.
_said: dict[UUID, str] = {}


# --- slots


def dispatch() -> list[TestRun]:
    """Give this machine's free slots to the oldest queued runs, scheduled ones last, and start them."""
    claimed = _claim([*approval.ask_again(), *_let_go_of_closed()])
    for run in claimed:
        _start(run)
    return claimed


def _let_go_of_closed() -> list[TestRun]:
    """Cancel waiting runs that were requested on a pull request that is closed now.

    Returns runs that must not start because this could not be checked. A run that has started continues: its result also holds
    for a merged commit.
    """
    waiting = TestRun.objects.filter(state__in=(State.QUEUED, State.AWAITING_APPROVAL), comment__isnull=False)
    unknown = []
    for run in waiting.filter(pull_request__state="closed").select_related("pull_request__repository__forge"):
        pull = run.pull_request
        assert pull is not None
        row = pull.repository
        try:
            found = client_for(row.forge, Purpose.ANSWERS).pull(row.owner, row.name, pull.number)
        except (ForgeError, SecretUnreadable) as error:
            log.info("%s: cannot check whether its pull request is closed: %s", run, error)
            unknown.append(run)
            continue
        if found.base.id != row.forge_repo_id:
            unknown.append(run)
        elif found.state == "closed":
            how = "merged" if found.merged else "closed"
            lifecycle.want_stop(run, State.CANCELLED, f"The pull request was {how} before the run started.")
        else:
            PullRequest.objects.filter(pk=pull.pk).update(state=found.state)
    return unknown


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
        queued = TestRun.objects.filter(state=State.QUEUED).order_by("scheduled", "created_at")  # people first
        for run in queued.select_related("repository__forge"):
            if free <= 0:
                break
            if run in held_back:
                continue  # cannot check whether the requester still may
            if run.pull_request_id and TestRun.objects.filter(pull_request=run.pull_request_id, state__in=HOLDING).exists():
                continue  # the pull request's older run is being stopped
            now = timezone.now()
            remote = choose(run.repository)
            name = remote.name if remote else ""
            text = f"on {host}, by the executor {name}" if remote else f"on {host}"
            fields = {"host": host, "attempt": 1, "started_at": now, "executor": remote, "executor_name": name}
            if lifecycle.move(run, "claim", text, fence=None, **fields):
                claimed.append(run)
                free -= 1
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
        ingest.take_over(run, seen)
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
        executor_for(run).start(run)
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
        lifecycle.move(run, "begin", "the harness has started", fence=run.attempt)


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
    elif run.attempt < ATTEMPTS:
        text = f"the harness was lost ({seen.lost}); retrying once"
        # Events of an earlier attempt stay in the trail; the numbers start over.
        lifecycle.move(run, "lose", text, fence=run.attempt, attempt=F("attempt") + 1, event_seq=0, log_offset=0)
    else:
        _end(
            run,
            "error",
            f"The harness was lost {ATTEMPTS} times ({seen.lost}). This is not the recipe's fault.",
        )


def _finished(run: TestRun, executor: Executor, seen: Observation) -> None:
    assert seen.results is not None
    ingest.conclude(run, seen.results, seen.files)
    dispatch()


def _stopped(run: TestRun) -> None:
    _end(run, "supersede" if run.stop_wanted == State.SUPERSEDED else "cancel", run.stop_reason)


def _end(run: TestRun, event: str, reason: str) -> None:
    _said.pop(run.pk, None)
    lifecycle.move(run, event, reason, fence=run.attempt, reason=reason)


# --- machines that do not come back


def forsake_dead_hosts() -> list[TestRun]:
    """End the runs of machines that have not been heard from for a long time, to free their slots and report their end."""
    dead = Host.objects.filter(ticked_at__lt=timezone.now() - HOST_DEAD).exclude(name=settings.CC_CI.host)
    forsaken = []
    for run in TestRun.objects.filter(state__in=HOLDING, host__in=dead.values("name")):
        reason = (
            f"The machine {run.host} has not been heard from for {HOST_DEAD.seconds // 60} minutes. This is not the "
            "recipe's fault."
        )
        if lifecycle.move(run, "error", reason, fence=run.attempt, reason=reason):
            forsaken.append(run)
    return forsaken
