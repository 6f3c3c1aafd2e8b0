"""What is known of a forge's good will: the rights of our token, and the requests that we may make and made."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from enrollment.models import Forge, Repository


class Right(models.Model):
    """One right of the token, as it was last seen: of a repository, or with none of the forge or an organisation there."""

    class Held(models.TextChoices):
        YES = "yes", "yes"
        NO = "no", "no"
        UNKNOWN = "unknown", "not seen yet"

    forge = models.ForeignKey(Forge, on_delete=models.CASCADE, related_name="rights")
    repository = models.ForeignKey(Repository, null=True, blank=True, on_delete=models.CASCADE, related_name="rights")
    owner = models.CharField(max_length=255, blank=True, help_text="The organisation, for a right that is about one.")
    name = models.CharField(max_length=20, help_text="One of enrollment.rights.RIGHTS.")
    held = models.CharField(max_length=10, choices=Held.choices, default=Held.UNKNOWN)
    evidence = models.CharField(max_length=500, blank=True, help_text="What was asked, and what the forge said.")
    at = models.DateTimeField(help_text="When it was seen.")

    class Meta:
        ordering = ["forge", "owner", "repository", "name"]
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
    """How a forge is treated by all processes together: the budget of the last minute, the circuit, and what it asked for."""

    forge = models.OneToOneField(Forge, on_delete=models.CASCADE, related_name="traffic")
    #: {slice: {purpose: {repository or "": requests}}} of the last minute; slices of a few seconds, counted from 1970.
    used = models.JSONField(default=dict, blank=True)
    refused_at = models.DateTimeField(null=True, blank=True, help_text="When the budget last held something back.")

    failures = models.PositiveIntegerField(default=0, help_text="Failed requests in a row.")
    opened = models.PositiveIntegerField(default=0, help_text="How often in a row the circuit has opened. 0: it is closed.")
    open_until = models.DateTimeField(null=True, blank=True, help_text="Nothing is asked until then; then one request tries.")
    trial_until = models.DateTimeField(null=True, blank=True, help_text="Somebody tries; the others wait until then.")
    last_failure = models.CharField(max_length=500, blank=True)
    paused_until = models.DateTimeField(null=True, blank=True, help_text="The forge asked us to wait until then (Retry-After).")

    class Meta:
        verbose_name_plural = "traffic"

    def __str__(self) -> str:
        return f"traffic of {self.forge}"


class RequestCount(models.Model):
    """Requests of one hour and kind, with errors and latency. Added up in memory, written now and then."""

    forge = models.ForeignKey(Forge, on_delete=models.CASCADE, related_name="request_counts")
    hour = models.DateTimeField(db_index=True)
    kind = models.CharField(max_length=20)
    requests = models.PositiveIntegerField(default=0)
    errors = models.PositiveIntegerField(default=0, help_text="No answer, or one that says that the forge is in trouble.")
    seconds = models.FloatField(default=0, help_text="All together.")
    slowest = models.FloatField(default=0, help_text="In seconds.")

    class Meta:
        ordering = ["-hour", "forge", "kind"]
        verbose_name = "requests of an hour"
        verbose_name_plural = "requests by hour"
        constraints = [models.UniqueConstraint(fields=["forge", "hour", "kind"], name="one_row_per_hour_and_kind")]

    def __str__(self) -> str:
        return f"{self.requests} x {self.kind}"
