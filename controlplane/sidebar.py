"""The admin's sidebar, in the order an operator needs it: runs, enrolments, internals, people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.urls import reverse_lazy

GROUPS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "Runs": (
        ("Runs", "play_circle", "runs.testrun"),
        ("Scheduled runs", "event_repeat", "runs.scheduledrun"),
        ("Stages", "list_alt", "runs.stageresult"),
        ("Tests", "checklist", "runs.caseresult"),
        ("Files", "draft", "runs.artefact"),
        ("Trail", "history", "runs.runevent"),
        ("Replies to the forges", "forum", "runs.report"),
        ("Executors", "dns", "runs.remoteexecutor"),
        ("Executors of repositories", "rule", "runs.executorchoice"),
        ("Deferred tests", "pending_actions", "runs.deferreditem"),
    ),
    "Watched": (
        ("Forges", "dns", "enrollment.forge"),
        ("Repositories", "inventory_2", "enrollment.repository"),
        ("Pull requests", "merge", "enrollment.pullrequest"),
        ("Comments", "chat", "enrollment.comment"),
        ("Webhooks", "webhook", "enrollment.webhookconfig"),
        ("Deliveries", "move_to_inbox", "enrollment.delivery"),
        ("Rights", "key", "enrollment.right"),
        ("Requests by hour", "speed", "enrollment.requestcount"),
    ),
    "Own apps": (
        ("Apps", "apps", "infra.infraapp"),
        ("Releases", "new_releases", "infra.infrarelease"),
        ("Upgrades", "upgrade", "infra.upgrade"),
        ("Upgrade log", "history", "infra.upgradeevent"),
        ("Snapshots", "save", "infra.snapshot"),
        ("infra.yml", "description", "infra.infrafile"),
        ("App secrets", "key", "infra.appsecret"),
        ("Alerts sent", "notifications", "infra.alertsent"),
    ),
    "Machinery": (
        ("Machines", "memory", "controlplane.host"),
        ("Recurring tasks", "schedule", "controlplane.recurringtask"),
        ("Leases", "lock", "controlplane.lease"),
        ("Queued tasks", "pending", "django_q.ormq"),
        ("Failed tasks", "error", "django_q.failure"),
        ("Finished tasks", "task_alt", "django_q.success"),
    ),
    "People": (
        ("Users", "person", "auth.user"),
        ("Groups", "group", "auth.group"),
        ("Failed logins", "lock_person", "axes.accessattempt"),
        ("API tokens", "vpn_key", "controlplane.apitoken"),
    ),
}

#: Pages listed first in their group, each with the model whose view permission they need.
PAGES: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "Own apps": (
        ("Status", "monitor_heart", "infra", "infra.infraapp"),
        ("Maintenance run", "bedtime", "infra-night", "infra.infraapp"),
        ("infra.yml and differences", "difference", "infra-file", "infra.infrafile"),
    ),
}


def _may_see(app: str, name: str) -> Callable[[HttpRequest], bool]:
    def permitted(request: HttpRequest) -> bool:
        return any(request.user.has_perm(f"{app}.{right}_{name}") for right in ("view", "change"))

    return permitted


def _never(request: HttpRequest) -> bool:
    """Whether the entry is the current page: these pages are outside the admin, but /admin/infra/ contains one's address."""
    return False


def navigation() -> list[dict[str, Any]]:
    """The groups as the admin theme expects them. Hides links that the user may not open."""
    groups = []
    for title, entries in GROUPS.items():
        items: list[dict[str, Any]] = [
            {
                "title": label,
                "icon": icon,
                "link": reverse_lazy(page),
                "active": _never,
                "permission": _may_see(*model.split(".")),
            }
            for label, icon, page, model in PAGES.get(title, ())
        ]
        for label, icon, model in entries:
            app, name = model.split(".")
            items.append(
                {
                    "title": label,
                    "icon": icon,
                    "link": reverse_lazy(f"admin:{app}_{name}_changelist"),
                    "permission": _may_see(app, name),
                }
            )
        groups.append({"title": title, "separator": True, "items": items})
    return groups
