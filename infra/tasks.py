"""Recurring tasks."""

from __future__ import annotations

from django_q.tasks import async_task

from infra import alerts
from infra.deployers.errors import DeployError
from infra.models import InfraApp
from infra.releases import discovery, evaluate
from infra.runtime import drift, inspect
from infra.runtime.inspect import NotReachable
from infra.upgrades import launcher, scheduler


def discover() -> str:
    """Look for releases of every app. Several apps get a task each, so that a slow server delays no other app."""
    apps = list(InfraApp.objects.filter(declared=True))
    for app in apps:
        async_task("infra.tasks.discover_app", app.pk, save=False, task_name=f"releases of {app.name}"[:100])
    return f"{len(apps)} apps queued" if apps else "no app"


def discover_app(app_id: int) -> str:
    """Look for releases of one app, and run the gate. Raises NotDiscovered; its message is stored, too."""
    app = InfraApp.objects.filter(pk=app_id, declared=True).first()
    if app is None:
        return "gone"
    new = discovery.discover(app)
    evaluate.record(app, evaluate.plan_of(app))
    return f"{len(new)} new"


def retry_alerts() -> str:
    """Send alerts again that did not reach every address."""
    return f"{alerts.retry()} sent"


def nightly_step() -> str:
    """Start the next upgrade of the maintenance run, if one is due."""
    return scheduler.step() if inspect.are_here() else "the apps belong to another host"


def supervise() -> str:
    """Resume orphaned upgrades, and check the apps for drift."""
    if not inspect.are_here():
        return "the apps belong to another host"
    resumed = launcher.resume()
    words = [f"{resumed} resumed"] if resumed else []
    for app in InfraApp.objects.filter(declared=True, server="default"):
        try:
            if drift.check(app) == "contested":
                words.append(f"{app.name} has drifted")
        except NotReachable as error:
            words.append(f"{app.name}: {error}")
        except DeployError as error:
            words.append(f"{app.name}: {error}")
            if error.kind == "tool_failed":  # Docker itself: the other apps would wait just as long
                break
    return ", ".join(words) or "no changes"
