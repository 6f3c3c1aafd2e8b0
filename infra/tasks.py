"""Recurring tasks."""

from __future__ import annotations

from django_q.tasks import async_task

from infra import looking, releases
from infra.models import InfraApp


def discover() -> str:
    """Look for releases of every app; several are looked at by a task each, so that a slow server holds up no other app."""
    apps = list(InfraApp.objects.filter(declared=True))
    for app in apps:
        async_task("infra.tasks.discover_app", app.pk, save=False, task_name=f"releases of {app.name}"[:100])
    return f"{len(apps)} apps queued" if apps else "no app"


def discover_app(app_id: int) -> str:
    """Look for releases of one app, and let the gate say what holds them. Raises NotDiscovered; its words are kept, too."""
    app = InfraApp.objects.filter(pk=app_id, declared=True).first()
    if app is None:
        return "gone"
    new = releases.discover(app)
    looking.record(app, looking.look(app))
    return f"{len(new)} new"
