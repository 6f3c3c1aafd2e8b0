"""Recurring tasks of the frame."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.utils import timezone
from django_q.models import Failure

from controlplane.models import Lease


def heartbeat() -> str:
    """Nothing: that a task runs at all is noted by `schedules.note_work`, and is what the supervisor watches."""
    return ""


def tidy() -> str:
    """Drop what django-q keeps for ever (failures), and leases that expired long ago."""
    old = timezone.now() - timedelta(days=settings.CC_CI.keep_days)
    failures, _ = Failure.objects.filter(stopped__lt=old).delete()
    leases, _ = Lease.objects.filter(expires_at__lt=timezone.now() - timedelta(days=1)).delete()
    return f"dropped {failures} failures, {leases} leases"
