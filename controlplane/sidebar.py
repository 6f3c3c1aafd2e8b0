"""The admin's sidebar, in the order an operator needs it: runs, enrolments, internals, people."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.apps import apps
from django.http import HttpRequest
from django.urls import reverse_lazy
from django.utils.functional import lazy
from django.utils.text import capfirst

from controlplane.staff import may_see

#: Each with its icon. Its name is the model's, as everywhere in the admin.
GROUPS: dict[str, tuple[tuple[str, str], ...]] = {
    "Runs": (
        ("play_circle", "runs.testrun"),
        ("event_repeat", "runs.scheduledrun"),
        ("list_alt", "runs.stageresult"),
        ("checklist", "runs.caseresult"),
        ("draft", "runs.artefact"),
        ("history", "runs.runevent"),
        ("forum", "runs.report"),
        ("dns", "runs.remoteexecutor"),
        ("rule", "runs.executorchoice"),
        ("pending_actions", "runs.deferreditem"),
    ),
    "Watched": (
        ("dns", "enrollment.forge"),
        ("inventory_2", "enrollment.repository"),
        ("merge", "enrollment.pullrequest"),
        ("chat", "enrollment.comment"),
        ("webhook", "enrollment.webhookconfig"),
        ("move_to_inbox", "enrollment.delivery"),
        ("key", "enrollment.right"),
        ("speed", "enrollment.requestcount"),
    ),
    "Own apps": (
        ("apps", "infra.infraapp"),
        ("new_releases", "infra.infrarelease"),
        ("upgrade", "infra.upgrade"),
        ("history", "infra.upgradeevent"),
        ("save", "infra.snapshot"),
        ("description", "infra.infrafile"),
        ("key", "infra.appsecret"),
        ("notifications", "infra.alertsent"),
    ),
    "Machinery": (
        ("memory", "controlplane.host"),
        ("schedule", "controlplane.recurringtask"),
        ("lock", "controlplane.lease"),
        ("pending", "django_q.ormq"),
        ("error", "django_q.failure"),
        ("task_alt", "django_q.success"),
    ),
    "People": (
        ("person", "auth.user"),
        ("group", "auth.group"),
        ("lock_person", "controlplane.failedlogin"),
        ("vpn_key", "controlplane.apitoken"),
    ),
}

#: Pages listed first in their group, each with the model whose view permission they need.
PAGES: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "Runs": (("Deployments here", "deployed_code", "deployments", "runs.testrun"),),
    "Own apps": (
        ("Status", "monitor_heart", "infra", "infra.infraapp"),
        ("Maintenance run", "bedtime", "infra-night", "infra.infraapp"),
        ("infra.yml and differences", "difference", "infra-file", "infra.infrafile"),
    ),
}


def _may_see(model: str, request: HttpRequest) -> bool:
    return may_see(request.user, model)


def _never(request: HttpRequest) -> bool:
    """Whether the entry is the current page: these pages are outside the admin, but /admin/infra/ contains one's address."""
    return False


def _name_of(model: str) -> str:
    """The model's name, read when it is shown: settings are read before there are models."""
    return capfirst(str(apps.get_model(model)._meta.verbose_name_plural))


_lazy_name_of = lazy(_name_of, str)


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
                "permission": partial(_may_see, model),
            }
            for label, icon, page, model in PAGES.get(title, ())
        ]
        for icon, model in entries:
            app, name = model.split(".")
            items.append(
                {
                    "title": _lazy_name_of(model),
                    "icon": icon,
                    "link": reverse_lazy(f"admin:{app}_{name}_changelist"),
                    "permission": partial(_may_see, model),
                }
            )
        groups.append({"title": title, "separator": True, "items": items})
    return groups
