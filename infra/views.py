"""The page of the server's own apps, for staff: what runs, what is newer, and what keeps it from coming."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.views.decorators import staff_member_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from infra.models import InfraApp, InfraRelease
from infra.status import describe


def card(request: HttpRequest) -> dict[str, Any]:
    """The start page's words on the apps: for staff, and where there are some."""
    if not getattr(request.user, "is_staff", False):
        return {"apps": []}
    apps = list(InfraApp.objects.filter(declared=True))
    held = InfraRelease.objects.filter(app__declared=True, state=InfraRelease.State.HELD, gone=False)
    waiting = set(held.values_list("app_id", flat=True))
    return {"apps": [{"app": app, "waits": app.pk in waiting} for app in apps]}


@staff_member_required
@require_safe
def app_list(request: HttpRequest) -> HttpResponse:
    """All apps, each with the gate's reasons as they are at this moment. The machine itself is not looked at for it."""
    apps = [{"row": app, **describe(app)} for app in InfraApp.objects.order_by("-declared", "position", "name")]
    return render(request, "infra/app_list.html", {"apps": apps})
