"""The admin's start page: what needs a person now, what goes on, and trends. The apps register the parts.

No part asks the network, and all together send at most 15 queries, however much there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from controlplane import doctor
from controlplane.models import ApiToken, Host, RecurringTask
from controlplane.registry import Concern, call, registry
from controlplane.staff import may_see

#: Of concerns of one kind this many are shown one by one.
SHOWN = 5
#: Tokens that expire within this time are shown.
SOON = timedelta(days=14)


def context(request: HttpRequest, of_theme: dict[str, Any]) -> dict[str, Any]:
    """The theme's context of the page, with what the apps contribute."""
    concerns: list[Concern] = [one for card in registry.cards_of("concerns") for one in call(card.context, request)]
    return {
        **of_theme,
        "concerns": sorted(concerns, key=lambda one: one.level != "error"),
        "figures": [one for card in registry.cards_of("now") for one in call(card.context, request)],
        "trends": [{"template": card.template, **call(card.context, request)} for card in registry.cards_of("trends")],
    }


def listed(model: str, query: str = "") -> str:
    """The address of a model's list in the admin, with a filter."""
    return reverse(f"admin:{model.replace('.', '_')}_changelist") + (f"?{query}" if query else "")


def concerns(request: HttpRequest) -> Iterator[Concern]:
    """Those of the control plane: what doctor finds without asking anybody, workers, recurring tasks, and API tokens."""
    if may_see(request.user, "controlplane.host"):
        yield from _hosts()
        for finding in (*doctor.check_disk(), *doctor.check_settings()):
            if finding.level != "ok":
                yield Concern(finding.level, f"{finding.name}: {finding.text}", "", "", finding.fix)
    if may_see(request.user, "controlplane.recurringtask"):
        yield from _tasks()
    yield from _tokens(request)


def _hosts() -> Iterator[Concern]:
    hosts = list(Host.objects.all())
    silent = [row for row in hosts if row.ticked_at is None or row.ticked_at < timezone.now() - timedelta(seconds=60)]
    if len(silent) == len(hosts):
        text = "Comments are not processed and nothing is tested."
        yield Concern("error", "No worker is running", text, "", "cc-ci work --web")
    else:
        for row in silent[:SHOWN]:
            seen = f"Last seen {row.ticked_at:%Y-%m-%d %H:%M} UTC." if row.ticked_at else "It has never worked."
            yield Concern(
                "warning", f"The machine {row.name} does not work", seen, listed("controlplane.host"), "See the machines"
            )


def _tasks() -> Iterator[Concern]:
    rows = list(RecurringTask.objects.filter(~Q(last_error="") | Q(enabled=False)).order_by("enabled", "name")[: SHOWN + 1])
    for row in rows[:SHOWN]:
        url = reverse("admin:controlplane_recurringtask_change", args=[row.pk])
        if row.enabled:
            yield Concern("error", f"The task {row.name} failed", row.last_error.strip()[-300:], url, "See its last run")
        else:
            yield Concern("warning", f"The task {row.name} is disabled", "", url, "Enable it")
    if len(rows) > SHOWN:
        yield Concern("error", "More tasks failed or are disabled", "", listed("controlplane.recurringtask"), "See all of them")


def _tokens(request: HttpRequest) -> Iterator[Concern]:
    if not may_see(request.user, "controlplane.apitoken"):
        return
    now = timezone.now()
    rows = ApiToken.objects.filter(revoked_at=None, expires_at__gt=now, expires_at__lt=now + SOON).select_related("user")
    if not request.user.is_superuser:
        rows = rows.filter(user=request.user.pk)
    for row in rows.order_by("expires_at")[:SHOWN]:
        text = f"The API token {row.name} of {row.user} expires on {row.expires_at:%Y-%m-%d}"
        yield Concern("warning", text, "What uses it is then refused.", listed("controlplane.apitoken"), "Make a new one")
