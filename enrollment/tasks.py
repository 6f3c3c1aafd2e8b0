"""Tasks: poll the forges, find repositories by topic, reconcile webhooks and process their deliveries."""

from __future__ import annotations

from django.utils import timezone
from django_q.tasks import async_task

from controlplane.secrets import SecretUnreadable
from enrollment import removal
from enrollment.forge_access import permissions, rate_limit
from enrollment.forge_access.clients import client_for
from enrollment.forges.base import ForgeError
from enrollment.models import Forge
from enrollment.polling import poller
from enrollment.webhooks import coverage, process
from enrollment.webhooks.reconcile import reconcile


def poll() -> str:
    """Poll every forge once. Several are polled by a task each, so that a slow one does not delay the others."""
    forges = list(Forge.objects.filter(enabled=True))
    if len(forges) == 1:
        return poller.poll(forges[0]).text()
    for forge in forges:
        async_task("enrollment.tasks.poll_forge", forge.pk, save=False, task_name=f"poll {forge.name}"[:100])
    return f"{len(forges)} forges queued" if forges else "no forge"


def poll_forge(forge_id: int) -> str:
    forge = Forge.objects.filter(pk=forge_id, enabled=True).first()
    return poller.poll(forge).text() if forge else "gone"


def find_by_topic() -> str:
    """Enrol the repositories that carry the topic."""
    lines: list[str] = []
    for forge in Forge.objects.filter(enabled=True):
        lines += poller.enroll_topics(forge)
    return "; ".join(lines) or "nothing new"


def take_deliveries() -> str:
    """Process webhook deliveries. Queued by the receiver; as a recurring task it finds what that missed."""
    return f"{process.take_waiting()} processed"


#: Seconds of one pass over the hooks; what is left waits for the next.
RECONCILE_SECONDS = 20


def see_to_hooks() -> str:
    """Find hooks that missed a comment; register and repair those that are due."""
    lines = coverage.find_unhealthy()
    for forge in Forge.objects.filter(enabled=True):
        if forge.backoff_until and forge.backoff_until > timezone.now():
            continue
        result = reconcile(forge, apply=True, due_only=True, seconds=RECONCILE_SECONDS)
        lines += [f"{forge.name}: {problem}" for problem in result.problems]
        if result.actions or result.skipped:
            lines.append(result.text())
    return "; ".join(lines) or "nothing to do"


def see_to_rights() -> str:
    """Check the forges' capabilities and the tokens' permissions there, as far as that is due."""
    lines: list[str] = []
    for forge in Forge.objects.filter(enabled=True):
        if forge.backoff_until and forge.backoff_until > timezone.now():
            continue
        try:
            client = client_for(forge, rate_limit.Purpose.UPKEEP)
            lines += permissions.refresh_all(forge, client)
        except (ForgeError, SecretUnreadable) as error:
            lines.append(f"{forge.name}: {error}")
    return "; ".join(lines) or "no forge"


def drop_old_request_counts() -> str:
    """Drop request statistics older than `rate_limit.KEEP_DAYS`."""
    return f"{rate_limit.drop_old()} dropped"


def drop_old_deliveries() -> str:
    """Drop deliveries that are older than CC_CI_DELIVERY_DAYS."""
    return f"{process.drop_old()} dropped"


def delete_removed() -> str:
    """Go on deleting forges and repositories."""
    return removal.step()
