"""Recurring tasks of the control plane."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import connection
from django.utils import timezone
from django_q.models import Failure

from controlplane.models import Host, Lease, RecurringTask


def heartbeat() -> str:
    """Does nothing: `schedules.note_work` records that a task ran, which the supervisor watches."""
    return ""


def tidy() -> str:
    """Delete what django-q keeps forever (failures), long-expired leases, stale hosts, and sessions that have ended.

    SQLite then counts its rows, as PostgreSQL does by itself.
    """
    old = timezone.now() - timedelta(days=settings.CC_CI.keep_days)
    failures, _ = Failure.objects.filter(stopped__lt=old).delete()
    leases, _ = Lease.objects.filter(expires_at__lt=timezone.now() - timedelta(days=1)).delete()
    machines = list(Host.objects.filter(ticked_at__lt=timezone.now() - timedelta(days=7)))
    for machine in machines:
        # Its own tasks go with it; starting cc-ci there creates both again.
        RecurringTask.objects.filter(per_host=True, name__endswith=f"@{machine.name}").delete()
        machine.delete()
    # Those of a forge's login contain an encrypted token, which is of no use any more.
    sessions, _ = Session.objects.filter(expire_date__lt=timezone.now()).delete()
    if connection.vendor == "sqlite":
        # Without statistics it takes the wrong index: for the table of recipes it would read all runs.
        with connection.cursor() as cursor:
            # Rows of each index: half a second at most. With a thousand it underestimates what is the same in many rows.
            cursor.execute("PRAGMA analysis_limit = 100000")
            cursor.execute("ANALYZE")
    return f"deleted {failures} failures, {leases} leases, {len(machines)} hosts, {sessions} sessions"
