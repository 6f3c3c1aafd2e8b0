"""Tasks of the queue: each takes ids, does one step, and may be run twice."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from infra.deployers import trees
from runs import intake, reporting, supervision
from runs.executors import local
from runs.models import FINAL, TestRun


def handle_comment(comment_id: int) -> None:
    intake.handle(comment_id)


def dispatch() -> str:
    """Start what waits, on this machine's free slots."""
    return f"{len(supervision.dispatch())} started"


def supervise() -> str:
    """Look after the runs that this machine holds."""
    return supervision.supervise()


def send_report(report_id: int) -> None:
    reporting.send(report_id)


def send_reports() -> str:
    return reporting.send_due()


def sweep_comments() -> str:
    """Handle comments that nobody has."""
    return f"{intake.sweep()} handled"


def sweep_leftovers() -> str:
    """Remove what runs left behind, and end the runs of machines that are gone."""
    forsaken = supervision.forsake_dead_hosts()
    local.sweep()
    return f"{len(forsaken)} runs of dead machines ended" if forsaken else "sweeping"


def drop_old_runs() -> str:
    """Drop runs, their rows and folders, after `CC_CI_KEEP_DAYS`. The newest run of a pull request is kept."""
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
    return f"{dropped} dropped"
