"""Tasks: look at the forges, find repositories by topic, see to webhooks and take what they deliver."""

from __future__ import annotations

from django.utils import timezone
from django_q.tasks import async_task

from controlplane.secrets import SecretUnreadable
from enrollment import budget, deliveries, pace, polling, rights
from enrollment.clients import client_for
from enrollment.forges.base import ForgeError
from enrollment.hook_reconcile import reconcile
from enrollment.models import Forge


def poll() -> str:
    """Look at every forge once. Several are looked at by a task each, so that a slow one holds up no other."""
    forges = list(Forge.objects.filter(enabled=True))
    if len(forges) == 1:
        return polling.look(forges[0]).words()
    for forge in forges:
        async_task("enrollment.tasks.poll_forge", forge.pk, save=False, task_name=f"poll {forge.name}"[:100])
    return f"{len(forges)} forges queued" if forges else "no forge"


def poll_forge(forge_id: int) -> str:
    forge = Forge.objects.filter(pk=forge_id, enabled=True).first()
    return polling.look(forge).words() if forge else "gone"


def find_by_topic() -> str:
    """Enrol the repositories that carry the topic."""
    lines: list[str] = []
    for forge in Forge.objects.filter(enabled=True):
        lines += polling.look_for_topics(forge)
    return "; ".join(lines) or "nothing new"


def take_deliveries() -> str:
    """Make comments of what webhooks delivered. Queued by the receiver; as a recurring task it finds what that left."""
    return f"{deliveries.take_waiting()} taken"


#: Seconds of one pass over the hooks; what is left waits for the next.
RECONCILE_SECONDS = 20


def see_to_hooks() -> str:
    """Find hooks that missed a comment; register and repair those that are due."""
    lines = pace.find_unhealthy()
    for forge in Forge.objects.filter(enabled=True):
        if forge.backoff_until and forge.backoff_until > timezone.now():
            continue
        result = reconcile(forge, apply=True, due_only=True, seconds=RECONCILE_SECONDS)
        lines += [f"{forge.name}: {problem}" for problem in result.problems]
        if result.actions or result.skipped:
            lines.append(result.words())
    return "; ".join(lines) or "all well"


def see_to_rights() -> str:
    """See what each forge can do and what the token may do there, as far as that is due."""
    lines: list[str] = []
    for forge in Forge.objects.filter(enabled=True):
        if forge.backoff_until and forge.backoff_until > timezone.now():
            continue
        try:
            client = client_for(forge, budget.Purpose.UPKEEP)
            lines += rights.look(forge, client)
        except (ForgeError, SecretUnreadable) as error:
            lines.append(f"{forge.name}: {error}")
    return "; ".join(lines) or "no forge"


def drop_old_request_counts() -> str:
    """Drop the table of requests behind `budget.KEEP_DAYS`."""
    return f"{budget.drop_old()} dropped"


def drop_old_deliveries() -> str:
    """Drop deliveries that are older than CC_CI_DELIVERY_DAYS."""
    return f"{deliveries.drop_old()} dropped"
