"""Recurring tasks."""

from __future__ import annotations

from django_q.tasks import async_task

from infra import alerts, carrying, looking, nightly, ownership, releases, running
from infra.deployers.base import DeployError
from infra.models import InfraApp
from infra.running import NotReachable


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


def nightly_step() -> str:
    """Begin the next upgrade of the night, if it is time for one."""
    return nightly.step() if running.are_here() else "they are another machine's"


def supervise() -> str:
    """See that every upgrade has its worker, and that what runs is what cc-ci left there."""
    if not running.are_here():
        return "they are another machine's"
    resumed = carrying.resume()
    words = [f"{resumed} taken up again"] if resumed else []
    for app in InfraApp.objects.filter(declared=True, server="default"):
        try:
            if ownership.look_after(app) == "contested":
                words.append(f"{app.name} is contested")
        except NotReachable as error:
            words.append(f"{app.name}: {error}")
        except DeployError as error:
            words.append(f"{app.name}: {error}")
            if error.kind == "tool_failed":  # Docker itself: the others would wait for it just as long
                break
    alerts.retry()
    return ", ".join(words) or "all as it was"
