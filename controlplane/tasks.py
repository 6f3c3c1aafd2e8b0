"""Recurring tasks of the frame."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.utils import timezone
from django_q.models import Failure

from controlplane.models import Host, Lease, RecurringTask


def heartbeat() -> str:
    """Nothing: that a task runs at all is noted by `schedules.note_work`, and is what the supervisor watches."""
    return ""


def tidy() -> str:
    """Drop what django-q keeps for ever (failures), leases that expired long ago, and machines that are gone."""
    old = timezone.now() - timedelta(days=settings.CC_CI.keep_days)
    failures, _ = Failure.objects.filter(stopped__lt=old).delete()
    leases, _ = Lease.objects.filter(expires_at__lt=timezone.now() - timedelta(days=1)).delete()
    machines = list(Host.objects.filter(ticked_at__lt=timezone.now() - timedelta(days=7)))
    for machine in machines:
        # Its own tasks go with it; a start there makes both anew.
        RecurringTask.objects.filter(per_host=True, name__endswith=f"@{machine.name}").delete()
        machine.delete()
    return f"dropped {failures} failures, {leases} leases, {len(machines)} machines"
