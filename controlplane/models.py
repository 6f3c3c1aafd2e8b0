"""Models of the control plane: leases, recurring tasks, heartbeats, tokens for the API."""

from __future__ import annotations

from axes.models import AccessAttempt
from django.conf import settings
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
        verbose_name = "machine"

    def __str__(self) -> str:
        return self.name


class Installation(models.Model):
    """One row: this installation's random name, which identifies its own deployments."""

    id = models.CharField(max_length=32, primary_key=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.id


class ApiToken(models.Model):
    """A token for the API, which acts as its user within its scopes. `controlplane.tokens` makes and checks them."""

    class Scope(models.TextChoices):
        READ = "read", "read runs, recipes and deferred tests that are public"
        PRIVATE = "private", "the same of private repositories"
        RUN = "run", "start and cancel runs"
        APPROVE = "approve", "approve strangers' runs"
        INFRA = "infra", "read the state of the server's own apps"

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=100, help_text="What it is for.")
    key = models.CharField(max_length=12, unique=True, help_text="The part of the token by which it is found; not secret.")
    digest = models.CharField(max_length=64, help_text="SHA-256 of the secret part, which is stored nowhere.")
    scopes = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    minute_at = models.DateTimeField(null=True, blank=True, help_text="When the minute began in which requests are counted.")
    requests = models.PositiveIntegerField(default=0, help_text="Requests in that minute.")

    class Meta:
        ordering = ["-id"]
        verbose_name = "API token"

    def __str__(self) -> str:
        return f"{self.name} ({self.key})"


class FailedLogin(AccessAttempt):  # type: ignore[misc]
    """What django-axes counts, under the name that it has in the admin and the docs."""

    class Meta:
        proxy = True
        ordering = ["-attempt_time"]
        verbose_name = "failed login"

    def __str__(self) -> str:
        return f"{self.username} from {self.ip_address}"
