"""Tasks of the queue: each takes ids, does one step, and may be run twice."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from infra.deployers.isolation import trees
from runs import dispatcher, intake, known_good, reporting, scheduled
from runs.executors import local
from runs.models import FINAL, ScheduledRun, TestRun


def handle_comment(comment_id: int) -> None:
    intake.handle(comment_id)


def dispatch() -> str:
    """Start queued runs on free slots."""
    return f"{len(dispatcher.dispatch())} started"


def supervise() -> str:
    """Watch the runs that this machine holds."""
    return dispatcher.supervise()


def send_report(report_id: int) -> None:
    reporting.send(report_id)


def send_reports() -> str:
    return reporting.send_due()


def scheduled_step() -> str:
    """Start scheduled runs that are due, and report changes of their verdicts."""
    return scheduled.step()


def weekly_digest() -> str:
    return scheduled.weekly_digest()


def sweep_comments() -> str:
    """Handle comments that were not handled yet."""
    return f"{intake.sweep()} handled"


def sweep_leftovers() -> str:
    """Remove what runs left behind and known-good data that nobody needs, and take their runs away from dead machines."""
    forsaken = dispatcher.forsake_dead_hosts()
    local.sweep()
    known_good.forget()
    return f"took {len(forsaken)} runs away from dead machines" if forsaken else "sweeping"


def drop_old_runs() -> str:
    """Delete runs, with their rows and folders, after `CC_CI_KEEP_DAYS`. Keeps the newest run of each pull request."""
    old = TestRun.objects.filter(state__in=FINAL, finished_at__lt=timezone.now() - timedelta(days=settings.CC_CI.keep_days))
    dropped = 0
    for run in old.order_by("created_at")[:500]:
        newer = TestRun.objects.filter(
            repository=run.repository_id, pull_request=run.pull_request_id, created_at__gt=run.created_at
        )
        if newer.exists():
            trees.remove(Path(settings.CC_CI.data_dir) / "runs" / str(run.id))
            run.delete()
            dropped += 1
    long_ago = timezone.now() - timedelta(days=settings.CC_CI.keep_days)
    ScheduledRun.objects.filter(run=None, created_at__lt=long_ago).delete()
    return f"{dropped} deleted"
