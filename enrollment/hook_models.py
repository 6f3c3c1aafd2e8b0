"""Webhooks: the ones that cc-ci wants at a forge, and what was delivered through them."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.signals import post_delete, pre_delete
from django.dispatch import receiver
from django.utils import timezone

from controlplane.secrets import EncryptedTextField, reveal
from enrollment.models import Comment, Forge, Repository


def hooks_address(forge_id: int) -> str:
    """Where a forge sends its deliveries, as far as it is the same for all its hooks."""
    return f"{settings.CC_CI.webhook_url or settings.CC_CI.base_url}/hooks/{forge_id}/"


class WebhookConfig(models.Model):
    """A hook that cc-ci wants: of a repository, or of an organisation for all its repositories.

    Each has a key, which stands in its URL and tells it from every other hook, and a secret of its own. Both are written
    down before the forge hears of them, so that a hook that is found there is known whatever happened in between. A hook
    whose secret is replaced is another row, `rotating`, until it is gone.
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
    by_hand = models.BooleanField(default=False, help_text="A maintainer adds it at the forge; cc-ci only made the secret.")
    key = models.CharField(max_length=32, unique=True, help_text="Stands in the hook's URL and tells it from all others.")
    secret = EncryptedTextField(blank=True, default="")
    remote_id = models.BigIntegerField(null=True, blank=True, help_text="The forge's id of the hook.")

    state = models.CharField(max_length=12, choices=State.choices, default=State.ABSENT)
    state_at = models.DateTimeField(default=timezone.now)
    reason = models.TextField(blank=True)
    ends_at = models.DateTimeField(null=True, blank=True, help_text="Rotating: until when its secret counts.")
    checked_at = models.DateTimeField(null=True, blank=True, help_text="When the forge was last asked about it.")
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
        """What the hook at the forge has as its URL."""
        return f"{hooks_address(self.forge_id)}?hook={self.key}"

    def reveal_secret(self) -> str:
        return reveal(self.secret)


@receiver(pre_delete, sender=WebhookConfig)
def know_the_place(instance: WebhookConfig, **more: Any) -> None:
    """Read the repository while it is there: its row may be the first to go."""
    _ = instance.repository


@receiver(post_delete, sender=WebhookConfig)
def leave_behind(instance: WebhookConfig, origin: Any = None, **more: Any) -> None:
    """A repository's row was deleted, and its hook's with it. What stands at the forge is still to be removed: a row stays for
    that, of no repository, with its full name as the owner. Its secret counts no more."""
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
        reason="its repository was removed here; it goes at the next pass",
        ends_at=timezone.now(),
    )


class Delivery(models.Model):
    """What a forge sent, rightly signed. Unique by (forge, delivery id); kept for CC_CI_DELIVERY_DAYS."""

    class Outcome(models.TextChoices):
        ACCEPTED = "accepted", "to be looked at"
        STORED = "stored", "a comment"
        KNOWN = "known", "a comment known already"
        WOKE = "woke", "the pull request is looked at"
        IGNORED = "ignored", "nothing"
        UNWANTED = "unwanted", "not wanted"
        FOREIGN = "foreign", "not ours"
        REJECTED = "rejected", "not understood"
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
    body = models.TextField(blank=True, help_text="As it was sent, where it was accepted.")
    received_at = models.DateTimeField(default=timezone.now, db_index=True)

    status = models.PositiveSmallIntegerField(help_text="What it was answered with.")
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
            # Nearly always empty: what is still to be looked at.
            models.Index(fields=["received_at"], condition=Q(outcome="accepted"), name="deliveries_to_look_at"),
        ]

    def __str__(self) -> str:
        return f"delivery {self.delivery_id}"
