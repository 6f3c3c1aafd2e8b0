"""What the admin's sidebar holds, in the order in which an operator asks: runs, who is watched, the machinery, people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.urls import reverse_lazy

GROUPS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "Runs": (
        ("Runs", "play_circle", "runs.testrun"),
        ("Stages", "list_alt", "runs.stageresult"),
        ("Tests", "checklist", "runs.caseresult"),
        ("Files", "draft", "runs.artefact"),
        ("Trail", "history", "runs.runevent"),
        ("Answers to the forges", "forum", "runs.report"),
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
        ("Upgrades' trail", "history", "infra.upgradeevent"),
        ("Snapshots", "save", "infra.snapshot"),
        ("infra.yml", "description", "infra.infrafile"),
        ("Secrets of apps", "key", "infra.appsecret"),
        ("Alerts sent", "notifications", "infra.alertsent"),
    ),
    "Machinery": (
        ("Machines", "memory", "controlplane.host"),
        ("Recurring tasks", "schedule", "controlplane.recurringtask"),
        ("Leases", "lock", "controlplane.lease"),
        ("Queued tasks", "pending", "django_q.ormq"),
        ("Failed tasks", "error", "django_q.failure"),
        ("Done tasks", "task_alt", "django_q.success"),
    ),
    "People": (
        ("Users", "person", "auth.user"),
        ("Groups", "group", "auth.group"),
        ("Wrong logins", "lock_person", "axes.accessattempt"),
    ),
}

#: Pages beside the tables, which stand first in their group, with the model that one has to be allowed to see.
PAGES: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "Own apps": (
        ("How they stand", "monitor_heart", "infra", "infra.infraapp"),
        ("The night", "bedtime", "infra-night", "infra.infraapp"),
        ("infra.yml and what differs", "difference", "infra-file", "infra.infrafile"),
    ),
}


def _may_see(app: str, name: str) -> Callable[[HttpRequest], bool]:
    def permitted(request: HttpRequest) -> bool:
        return any(request.user.has_perm(f"{app}.{right}_{name}") for right in ("view", "change"))

    return permitted


def _never(request: HttpRequest) -> bool:
    """Whether the entry is where one is: these pages are outside the admin, though /admin/infra/ holds the address of one."""
    return False


def navigation() -> list[dict[str, Any]]:
    """The groups as the admin theme wants them. A link that leads nowhere for somebody is not shown to them."""
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
