"""Recurring tasks: their table, how they are queued, and the result of their last run.

The table comes from `controlplane.registry`; `sync()` writes it to RecurringTask rows (after migrate, when `cc-ci work` starts,
and by `cc-ci schedules --sync`). A ticker in `cc-ci work` calls `tick()` every half second: it claims a due row by one
conditional UPDATE and puts it into its own host's queue. django-q2's scheduler is not used because it checks only every 30 s;
polling every 2 s and watching runs every second needs more (docs/decisions.md).
"""

from __future__ import annotations

import logging
import time
import traceback
from datetime import datetime, timedelta
from importlib import import_module

from django.conf import settings
from django.db import DatabaseError, transaction
from django.utils import timezone
from django_q.exceptions import TimeoutException
from django_q.tasks import async_task

from controlplane.models import Host, RecurringTask
from controlplane.registry import Recurring, registry

log = logging.getLogger(__name__)
_noted = float("-inf")
#: Largest clock difference between hosts that share a database, and between their tickers' idea of now.
CLOCKS_DIFFER = timedelta(seconds=60)


def row_name(task: Recurring) -> str:
    return f"{task.name}@{settings.CC_CI.host}" if task.per_host else task.name


def sync() -> list[str]:
    """Make the rows match the table, keeping the results of the last runs. Returns the rows' names."""
    now = timezone.now()
    for task in registry.recurring.values():
        row, made = RecurringTask.objects.get_or_create(
            name=row_name(task),
            defaults={"every_seconds": task.every_seconds, "per_host": task.per_host, "due_at": now},
        )
        if not made and (row.every_seconds, row.per_host) != (task.every_seconds, task.per_host):
            RecurringTask.objects.filter(pk=row.pk).update(every_seconds=task.every_seconds, per_host=task.per_host, due_at=now)
    # Rows of other hosts are theirs.
    for row in RecurringTask.objects.all():
        if row.name.partition("@")[0] not in registry.recurring:
            row.delete()
    return list(RecurringTask.objects.values_list("name", flat=True))


def tick() -> int:
    """Queue what is due on this host. Returns how many tasks were queued."""
    now = timezone.now()
    mine = [row_name(task) for task in registry.recurring.values()]
    queued = 0
    for row in RecurringTask.objects.filter(name__in=mine, enabled=True):
        # From now, not from when it was due: after downtime a task runs once, not a thousand times.
        next_due = now + timedelta(seconds=row.every_seconds)
        if now < row.due_at <= next_due + CLOCKS_DIFFER:  # if later, the clock was set back
            continue
        if _under_way(row, now):
            continue  # do not pile up the same task in a slow or stopped queue
        with transaction.atomic():  # atomic: a ticker killed in between must not skip a run
            if RecurringTask.objects.filter(pk=row.pk, due_at=row.due_at).update(due_at=next_due, last_queued_at=now):
                enqueue_recurring(row.name)
                queued += 1
    if not Host.objects.filter(name=settings.CC_CI.host).update(ticked_at=now):
        Host.objects.update_or_create(name=settings.CC_CI.host, defaults={"ticked_at": now})
    return queued


def _under_way(row: RecurringTask, now: datetime) -> bool:
    """Whether it is queued or running, as far as known: after `retry` seconds it may have been lost."""
    if row.last_queued_at is None or row.last_queued_at > now + CLOCKS_DIFFER:
        return False
    if now - row.last_queued_at > timedelta(seconds=settings.CC_CI.queue_retry):
        return False
    return row.last_finished_at is None or row.last_finished_at < row.last_queued_at


def enqueue_recurring(name: str) -> None:
    async_task("controlplane.schedules.run_recurring", name, save=False, task_name=name)


def note_work(**kwargs: object) -> None:
    """Record that this host's queue works. Called by a worker before each task; writes at most once a second."""
    global _noted
    if time.monotonic() - _noted < 1:
        return
    try:
        Host.objects.filter(name=settings.CC_CI.host).update(worked_at=timezone.now())
        _noted = time.monotonic()
    except DatabaseError:
        log.warning("Cannot write the heartbeat.")  # an exception here would make django-q stop the worker


def run_recurring(name: str) -> str:
    """Run a recurring task now and record its result. Returns the task's text; raises what the task raises."""
    task = registry.recurring[name.partition("@")[0]]
    rows = RecurringTask.objects.filter(name=name)
    started = timezone.now()
    begun = time.monotonic()
    rows.update(last_started_at=started)
    try:
        module, _, function = task.task.rpartition(".")
        words = str(getattr(import_module(module), function)() or "")
    except (Exception, TimeoutException) as error:  # django-q's is a SystemExit
        text = "".join(traceback.format_exception_only(error)).strip()
        rows.update(last_error=text[:4000], last_error_at=timezone.now(), last_finished_at=timezone.now())
        log.exception("%s failed", name)
        raise
    rows.update(
        last_finished_at=timezone.now(),
        last_seconds=round(time.monotonic() - begun, 3),
        last_result=words[:500],
        last_error="",
    )
    return words
