"""Access to a forge: our token's permissions, and the requests that we may send and have sent."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from enrollment.models.core import Forge, Repository


class Right(models.Model):
    """One permission of the token as last observed: at a repository, or, without one, at the forge or an organisation there."""

    class Held(models.TextChoices):
        YES = "yes", "yes"
        NO = "no", "no"
        UNKNOWN = "unknown", "not seen yet"

    forge = models.ForeignKey(Forge, on_delete=models.CASCADE, related_name="rights")
    repository = models.ForeignKey(Repository, null=True, blank=True, on_delete=models.CASCADE, related_name="rights")
    owner = models.CharField(max_length=255, blank=True, help_text="The organisation, if the permission is about one.")
    name = models.CharField(max_length=20, help_text="The name of a permission, such as comment.")
    held = models.CharField(max_length=10, choices=Held.choices, default=Held.UNKNOWN)
    evidence = models.CharField(max_length=500, blank=True, help_text="What was asked, and the forge's answer.")
    at = models.DateTimeField(help_text="When it was observed.")
    due_at = models.DateTimeField(null=True, blank=True, help_text="When its place is checked again; for what decides that.")

    class Meta:
        ordering = ["forge", "owner", "repository", "name"]
        verbose_name = "permission of a token"
        verbose_name_plural = "permissions of tokens"
        constraints = [
            models.UniqueConstraint(
                fields=["repository", "name"], condition=Q(repository__isnull=False), name="one_row_per_right_of_repository"
            ),
            models.UniqueConstraint(
                fields=["forge", "owner", "name"], condition=Q(repository__isnull=True), name="one_row_per_right_of_forge"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} at {self.place}: {self.get_held_display()}"

    @property
    def place(self) -> str:
        return self.repository.full_name if self.repository else self.owner or self.forge.name


class Traffic(models.Model):
    """The state of requests to a forge, shared by all processes: the last minute's budget, the circuit, and pauses it
    requested.
    """

    forge = models.OneToOneField(Forge, on_delete=models.CASCADE, related_name="traffic")
    #: {slice: {purpose: {repository or "": requests}}} of the last minute; slices of a few seconds, counted from 1970.
    used = models.JSONField(default=dict, blank=True)
    refused_at = models.DateTimeField(null=True, blank=True, help_text="When the budget last delayed a request.")

    failures = models.PositiveIntegerField(default=0, help_text="Failed requests in a row.")
    opened = models.PositiveIntegerField(default=0, help_text="How many times in a row the circuit has opened. 0: it is closed.")
    open_until = models.DateTimeField(null=True, blank=True, help_text="No requests until then; then one request tries.")
    trial_until = models.DateTimeField(null=True, blank=True, help_text="One request is trying; the others wait until then.")
    last_failure = models.CharField(max_length=500, blank=True)
    paused_until = models.DateTimeField(null=True, blank=True, help_text="The forge asked us to wait until then (Retry-After).")

    class Meta:
        verbose_name_plural = "traffic"

    def __str__(self) -> str:
        return f"traffic of {self.forge}"


class RequestCount(models.Model):
    """Requests of one hour and kind, with errors and latency. Summed in memory, written periodically."""

    forge = models.ForeignKey(Forge, on_delete=models.CASCADE, related_name="request_counts")
    hour = models.DateTimeField(db_index=True)
    kind = models.CharField(max_length=20)
    requests = models.PositiveIntegerField(default=0)
    errors = models.PositiveIntegerField(default=0, help_text="No response, or one that says that the forge is failing.")
    seconds = models.FloatField(default=0, help_text="Total in seconds.")
    slowest = models.FloatField(default=0, help_text="In seconds.")

    class Meta:
        ordering = ["-hour", "forge", "kind"]
        verbose_name = "requests of an hour"
        verbose_name_plural = "requests by hour"
        constraints = [models.UniqueConstraint(fields=["forge", "hour", "kind"], name="one_row_per_hour_and_kind")]

    def __str__(self) -> str:
        return f"{self.requests} x {self.kind}"
