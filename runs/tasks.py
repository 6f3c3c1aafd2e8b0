"""Tasks of the queue: each takes ids, does one step, and may be run twice."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from infra.deployers.isolation import trees
from runs import dispatcher, intake, known_good, lifecycle, reporting, scheduled
from runs.executors import local
from runs.models import ACTIVE, FINAL, ScheduledRun, State, TestRun

#: Old runs that are deleted in one task.
AT_ONCE = 500


def handle_comment(comment_id: int) -> None:
    intake.handle(comment_id)


def dispatch() -> str:
    """Start queued runs on free slots."""
    return f"{len(dispatcher.dispatch())} started"


def supervise() -> str:
    """Watch the runs that this machine holds."""
    return dispatcher.supervise()


def send_report(*report_ids: int) -> None:
    for report_id in report_ids:
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
    """Delete runs, with their rows and folders, after `CC_CI_KEEP_DAYS`.

    Keeps the newest run of each pull request, those that are being repeated, and those whose issue is to be closed.
    """
    old = TestRun.objects.filter(state__in=FINAL, finished_at__lt=timezone.now() - timedelta(days=settings.CC_CI.keep_days))
    old = old.exclude(retries__state__in=ACTIVE).exclude(scheduled_rows__in=reporting.open_issues())
    newer = TestRun.objects.filter(repository=OuterRef("repository"), created_at__gt=OuterRef("created_at"))
    of_pull, of_none = newer.filter(pull_request=OuterRef("pull_request")), newer.filter(pull_request=None)
    old = old.filter(Exists(of_pull) | Q(Exists(of_none), pull_request=None))
    runs = list(old.order_by("created_at").only("pk")[:AT_ONCE])
    for run in runs:
        _delete(run)
    long_ago = timezone.now() - timedelta(days=settings.CC_CI.keep_days)
    ScheduledRun.objects.filter(run=None, created_at__lt=long_ago).delete()
    return f"{len(runs)} deleted"


def delete_runs(repository_id: int, at_once: int = 20) -> tuple[int, bool]:
    """For `enrollment.removal`: end what is under way in a repository, and delete some of the runs that have ended.

    Returns how many were deleted, and whether any are left.
    """
    runs = TestRun.objects.filter(repository=repository_id)
    for run in runs.filter(state__in=ACTIVE, stop_wanted=""):
        lifecycle.want_stop(run, State.CANCELLED, "Its repository is being deleted here.")
    ended = list(runs.filter(state__in=FINAL).only("pk").order_by("created_at")[:at_once])
    for run in ended:
        _delete(run)
    return len(ended), runs.exists()


def _delete(run: TestRun) -> None:
    trees.remove(Path(settings.CC_CI.data_dir) / "runs" / str(run.pk))
    run.delete()
