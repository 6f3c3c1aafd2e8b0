"""Webhooks: those that cc-ci wants at a forge, and what they delivered."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.signals import post_delete, pre_delete
from django.dispatch import receiver
from django.utils import timezone

from controlplane.secrets import EncryptedTextField, reveal
from enrollment.models.core import Comment, Forge, Repository


def hooks_address(forge_id: int) -> str:
    """The URL of a forge's deliveries, as far as it is the same for all its hooks."""
    return f"{settings.CC_CI.webhook_url or settings.CC_CI.base_url}/hooks/{forge_id}/"


class WebhookConfig(models.Model):
    """A hook that cc-ci wants: of a repository, or of an organisation for all its repositories.

    Each has a key, which is in its URL and identifies it, and a secret of its own. Both are stored before the forge receives
    them, so that a hook found there is recognised whatever happened in between. While a hook's secret is replaced, the old
    hook is another row, `rotating`, until it is deleted.
    """

    class State(models.TextChoices):
        ABSENT = "absent", "absent"
        REGISTERED = "registered", "registered"
        VERIFIED = "verified", "verified"
        UNHEALTHY = "unhealthy", "unhealthy"
        DRIFTED = "drifted", "drifted"
        DISABLED = "disabled", "disabled"
        ROTATING = "rotating", "rotating"
        REFUSED = "refused", "refused"

    forge = models.ForeignKey(Forge, on_delete=models.CASCADE, related_name="hooks")
    repository = models.ForeignKey(
        Repository, null=True, blank=True, on_delete=models.CASCADE, related_name="hooks", help_text="Empty: the organisation's."
    )
    owner = models.CharField(max_length=255, help_text="The organisation, or the repository's owner.")
    owner_id = models.BigIntegerField(null=True, blank=True)
    by_hand = models.BooleanField(default=False, help_text="A maintainer adds it at the forge; cc-ci only created the secret.")
    key = models.CharField(max_length=32, unique=True, help_text="Part of the hook's URL; identifies the hook.")
    secret = EncryptedTextField(blank=True, default="")
    remote_id = models.BigIntegerField(null=True, blank=True, help_text="The hook's id at the forge.")

    state = models.CharField(max_length=12, choices=State.choices, default=State.ABSENT)
    state_at = models.DateTimeField(default=timezone.now)
    reason = models.TextField(blank=True)
    ends_at = models.DateTimeField(null=True, blank=True, help_text="While rotating: until when its secret is valid.")
    checked_at = models.DateTimeField(null=True, blank=True, help_text="When it was last checked at the forge.")
    next_check_at = models.DateTimeField(null=True, blank=True, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["owner", "repository__name", "-pk"]
        verbose_name = "webhook"
        constraints = [
            models.UniqueConstraint(
                fields=["repository"],
                condition=Q(repository__isnull=False) & ~Q(state="rotating"),
                name="one_hook_per_repository",
            ),
            models.UniqueConstraint(
                fields=["forge", "owner_id"],
                condition=Q(repository__isnull=True) & ~Q(state="rotating"),
                name="one_hook_per_organisation",
            ),
        ]

    def __str__(self) -> str:
        return f"hook of {self.place}"

    @property
    def place(self) -> str:
        return self.repository.full_name if self.repository else self.owner

    @property
    def url(self) -> str:
        """The hook's URL at the forge."""
        return f"{hooks_address(self.forge_id)}?hook={self.key}"

    def reveal_secret(self) -> str:
        return reveal(self.secret)


@receiver(pre_delete, sender=WebhookConfig)
def know_the_place(instance: WebhookConfig, **more: Any) -> None:
    """Load the repository while it exists: its row may be deleted first."""
    _ = instance.repository


@receiver(post_delete, sender=WebhookConfig)
def leave_behind(instance: WebhookConfig, origin: Any = None, **more: Any) -> None:
    """Keep a row when a repository's row, and with it its hook's, is deleted: the hook at the forge must still be removed. The
    row has no repository, the full name as its owner, and a secret that is no longer valid.
    """
    if getattr(origin, "model", type(origin)) is not Repository or instance.repository is None or instance.by_hand:
        return
    if instance.state == WebhookConfig.State.REFUSED and instance.remote_id is None:
        return  # the forge never had it
    WebhookConfig.objects.create(
        forge_id=instance.forge_id,
        owner=instance.repository.full_name,
        key=instance.key,
        remote_id=instance.remote_id,
        state=WebhookConfig.State.ROTATING,
        reason="its repository was removed here; the next pass deletes it",
        ends_at=timezone.now(),
    )


class Delivery(models.Model):
    """What a forge sent, correctly signed. Unique by (forge, delivery id); kept for CC_CI_DELIVERY_DAYS."""

    class Outcome(models.TextChoices):
        ACCEPTED = "accepted", "to be processed"
        STORED = "stored", "a comment"
        KNOWN = "known", "a known comment"
        WOKE = "woke", "the pull request was polled"
        IGNORED = "ignored", "nothing"
        UNWANTED = "unwanted", "not needed"
        FOREIGN = "foreign", "outside the hook's scope"
        REJECTED = "rejected", "unreadable"
        FAILED = "failed", "failed"

    # Few indexes: a row is written while the forge waits.
    forge = models.ForeignKey(Forge, on_delete=models.CASCADE, related_name="deliveries", db_index=False)
    delivery_id = models.CharField(max_length=100)
    hook = models.ForeignKey(
        WebhookConfig, null=True, blank=True, on_delete=models.SET_NULL, related_name="deliveries", db_index=False
    )
    event = models.CharField(max_length=50, blank=True)
    action = models.CharField(max_length=30, blank=True)
    repository = models.ForeignKey(
        Repository, null=True, blank=True, on_delete=models.SET_NULL, related_name="deliveries", db_index=False
    )
    number = models.PositiveIntegerField(null=True, blank=True, help_text="Of the pull request.")
    forge_comment_id = models.BigIntegerField(null=True, blank=True, db_index=True)
    body = models.TextField(blank=True, help_text="The body as sent, if it was accepted.")
    received_at = models.DateTimeField(default=timezone.now, db_index=True)

    status = models.PositiveSmallIntegerField(help_text="HTTP status of the response.")
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    reason = models.TextField(blank=True)
    comment = models.ForeignKey(Comment, null=True, blank=True, on_delete=models.SET_NULL, related_name="deliveries")
    handled_at = models.DateTimeField(null=True, blank=True)
    tries = models.PositiveIntegerField(default=0)
    next_try_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-received_at", "-pk"]
        verbose_name_plural = "deliveries"
        constraints = [models.UniqueConstraint(fields=["forge", "delivery_id"], name="one_row_per_delivery")]
        indexes = [
            # Nearly always empty: what is still to be processed.
            models.Index(fields=["received_at"], condition=Q(outcome="accepted"), name="deliveries_to_look_at"),
        ]

    def __str__(self) -> str:
        return f"delivery {self.delivery_id}"
