"""What the server's own apps contribute to the admin's start page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.db.models import Count, Max, Q
from django.http import HttpRequest
from django.urls import reverse

from controlplane.operator_page import listed
from controlplane.registry import Concern, Figure
from controlplane.staff import may_see
from infra.models import AlertSent, InfraApp
from infra.states import UNDER_WAY


def concerns(request: HttpRequest) -> Iterator[Concern]:
    if may_see(request.user, "infra.infraapp"):
        yield from _apps()
    if may_see(request.user, "infra.alertsent"):
        yield from _alerts()


def _apps() -> Iterator[Concern]:
    declared = InfraApp.objects.filter(declared=True).with_last_upgrade()
    apps: Iterable[Any] = declared.annotate(
        held=Count("releases", Q(releases__state="held", releases__gone=False), distinct=True),
        saved_at=Max("taken__taken_at", filter=Q(taken__proved=True)),
    )
    for app in apps:
        url, name = app.get_absolute_url(), app.name
        if app.state == InfraApp.State.DRIFTED:
            text = f"{name} was changed without cc-ci"
            yield Concern("error", text, "Nothing is done there before you decide.", url, "Adopt, restore or hand over")
        if app.lost:
            page = reverse("infra-upgrade", args=[app.last_id])
            yield Concern("error", f"{name}: the rollback failed", "The app may not work.", page, "See what to do")
        if app.held and app.ours:
            noun = "release is" if app.held == 1 else "releases are"
            yield Concern("warning", f"{name}: {app.held} {noun} held", "They wait for your approval.", url, "Read and approve")
        if app.discovery_error:
            yield Concern("warning", f"{name}: its releases cannot be read", app.discovery_error[:300], url, "See the app")
        if app.ours and app.saved_at is None and app.snapshots.get("of", "none") != "none":
            yield Concern("warning", f"{name} has no verified snapshot", "Its data is on this server only.", url, "Take one")


def _alerts() -> Iterator[Concern]:
    failed = list(AlertSent.objects.filter(delivered=False).exclude(problem="").order_by("-id")[:1])
    if failed:
        url = listed("infra.alertsent", "delivered__exact=0")
        yield Concern("warning", "Alerts could not be delivered", failed[0].problem[:300], url, "See which")


def figures(request: HttpRequest) -> Iterator[Figure]:
    if not may_see(request.user, "infra.infraapp"):
        return
    found = InfraApp.objects.aggregate(
        busy=Count("upgrades", Q(upgrades__state__in=UNDER_WAY), distinct=True),
        saved_at=Max("taken__taken_at", filter=Q(taken__proved=True)),
    )
    if found["busy"]:
        yield Figure(found["busy"], "upgrades under way", listed("infra.upgrade"))
    if at := found["saved_at"]:
        yield Figure(f"{at:%Y-%m-%d %H:%M} UTC", "last backup of an own app", listed("infra.snapshot"))
