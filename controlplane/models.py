"""Models of the control plane: leases, recurring tasks, heartbeats."""

from __future__ import annotations

from django.db import models


class Lease(models.Model):
    """Something held for longer than a transaction. See `controlplane.leases`."""

    name = models.CharField(max_length=200, primary_key=True)
    owner = models.CharField(max_length=200, blank=True)
    expires_at = models.DateTimeField()
    fence = models.PositiveBigIntegerField(default=0, help_text="Grows with each claim, so that a late owner is detected.")

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class RecurringTask(models.Model):
    """A recurring task from `controlplane.schedules`: when it is due, when it last ran, and how that failed."""

    name = models.CharField(max_length=100, primary_key=True)
    every_seconds = models.FloatField()
    enabled = models.BooleanField(default=True)
    per_host = models.BooleanField(default=False)
    due_at = models.DateTimeField(db_index=True)
    last_queued_at = models.DateTimeField(null=True, blank=True)
    last_started_at = models.DateTimeField(null=True, blank=True)
    last_finished_at = models.DateTimeField(null=True, blank=True)
    last_seconds = models.FloatField(null=True, blank=True)
    last_result = models.CharField(max_length=500, blank=True)
    last_error = models.TextField(blank=True)
    last_error_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Host(models.Model):
    """A host with workers: when its ticker and its queue last made progress."""

    name = models.CharField(max_length=100, primary_key=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ticked_at = models.DateTimeField(null=True, blank=True)
    worked_at = models.DateTimeField(null=True, blank=True, help_text="When a task of its queue last ran.")
    restarts = models.PositiveIntegerField(default=0, help_text="How often its queue stalled and was restarted.")

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Installation(models.Model):
    """One row: this installation's random name, which identifies its own deployments."""

    id = models.CharField(max_length=32, primary_key=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.id
