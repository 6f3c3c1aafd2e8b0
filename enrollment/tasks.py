"""Recurring tasks: look at the forges, find repositories by topic."""

from __future__ import annotations

from django_q.tasks import async_task

from enrollment import polling
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
