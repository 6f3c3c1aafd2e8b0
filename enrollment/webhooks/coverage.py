"""Which repositories a verified webhook covers, and which hooks missed a comment."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from enrollment.models import Comment, Delivery, Forge, Repository, WebhookConfig
from enrollment.webhooks.lifecycle import State, move
from enrollment.webhooks.plan import is_desired

#: How long a delivery may take, retries of the queue included, before it counts as missed.
GRACE = timedelta(seconds=60)
#: How far back comments found by polling are compared with deliveries.
BACK = timedelta(minutes=30)
#: Tolerated difference between the forge's clock and ours.
CLOCKS_DIFFER = timedelta(minutes=2)


def covering(forge: Forge) -> tuple[dict[int, WebhookConfig], dict[int, WebhookConfig]]:
    """The verified hooks of a forge: by repository, and by owner's id."""
    hooks = list(WebhookConfig.objects.filter(forge=forge, state=State.VERIFIED).select_related("repository"))
    own = {hook.repository_id: hook for hook in hooks if hook.repository_id is not None}
    return own, {hook.owner_id: hook for hook in hooks if hook.repository_id is None and hook.owner_id is not None}


def covering_hook(row: Repository, hooks: tuple[dict[int, WebhookConfig], dict[int, WebhookConfig]]) -> WebhookConfig | None:
    """The verified hook that covers a repository's comments: its own, or its organisation's unless hooks are off for it."""
    own, organisations = hooks
    if hook := own.get(row.pk):
        return hook
    if row.owner_id is not None and is_desired(settings.CC_CI.webhook_autoregister, row.forge.webhooks, row.webhooks):
        return organisations.get(row.owner_id)
    return None


def find_unhealthy() -> list[str]:
    """Move hooks that missed a comment to *unhealthy*. Returns a line for each.

    A comment was missed if it was written while the hook was verified, polling found it, and GRACE later no correctly signed
    delivery had reported it.
    """
    now = timezone.now()
    # Not all reviews are delivered, and those that are lack their ids.
    found = (
        Comment.objects.exclude(via__in=(Comment.Via.DELIVERY, Comment.Via.REVIEW))
        .filter(seen_at__gt=now - BACK, seen_at__lt=now - GRACE)
        .select_related("pull_request__repository__forge", "forge")
        .order_by("created_at")
    )
    lines: list[str] = []
    hooks: dict[int, tuple[dict[int, WebhookConfig], dict[int, WebhookConfig]]] = {}
    for comment in found:
        if comment.forge_id not in hooks:
            hooks[comment.forge_id] = covering(comment.forge)
        hook = covering_hook(comment.pull_request.repository, hooks[comment.forge_id])
        if hook is None or comment.updated_at < hook.state_at + CLOCKS_DIFFER:
            continue
        # Only of its own place: through another hook, whose secret people may know, anything could be reported.
        reported = Delivery.objects.filter(repository=comment.pull_request.repository, forge_comment_id=comment.forge_comment_id)
        if reported.exists():
            continue
        reason = f"polling found {comment} on {comment.pull_request}, which no delivery had reported"
        # Checked at once: perhaps it can be repaired.
        if move(hook, "miss", reason, next_check_at=None):
            lines.append(f"{hook.place}: {reason}")
            del hooks[comment.forge_id]
    return lines
