"""The frame's own recurring tasks."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import connection
from django.utils import timezone
from django_q.models import Task

from controlplane.models import Host, Lease, RecurringTask
from controlplane.tasks import heartbeat, tidy

pytestmark = pytest.mark.both_databases


@pytest.mark.django_db
def test_tidy_drops_what_is_old_and_keeps_what_is_not() -> None:
    now = timezone.now()
    RecurringTask.objects.all().delete()
    for name, ticked, expired, stopped in (
        ("old", now - timedelta(days=8), now - timedelta(days=2), now - timedelta(days=settings.CC_CI.keep_days + 1)),
        ("new", now - timedelta(days=6), now - timedelta(hours=2), now - timedelta(days=1)),
    ):
        Host.objects.create(name=name, ticked_at=ticked)
        RecurringTask.objects.create(name=f"x@{name}", every_seconds=5, per_host=True, due_at=now)
        Lease.objects.create(name=name, expires_at=expired)
        Session.objects.create(session_key=name, session_data="", expire_date=ticked + timedelta(days=7))
        Task.objects.create(id=name, name=name, func="x", started=stopped, stopped=stopped, success=False)
    assert tidy() == "deleted 1 failures, 1 leases, 1 hosts, 1 sessions"
    if connection.vendor == "sqlite":  # else it guesses which index is a good one
        with connection.cursor() as cursor:
            cursor.execute("SELECT idx FROM sqlite_stat1 WHERE tbl = %s", [Host._meta.db_table])
            assert cursor.fetchall()
    assert [row.name for row in Host.objects.all()] == ["new"]
    assert [row.name for row in RecurringTask.objects.all()] == ["x@new"]
    assert [row.name for row in Lease.objects.all()] == ["new"]
    assert [row.name for row in Task.objects.all()] == ["new"]


def test_the_heartbeat_needs_no_database() -> None:
    assert heartbeat() == ""
