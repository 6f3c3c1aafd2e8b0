"""The frame's own pages: start, health. What stands on the start page is hung up by the apps."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.paginator import Page, Paginator
from django.db import DatabaseError, connection
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from controlplane.models import Host
from controlplane.registry import registry

#: A machine whose ticker has been silent for longer is shown as not working.
SILENT = timedelta(seconds=60)


def paginate(request: HttpRequest, rows: QuerySet[Any], size: int) -> Page[Any]:
    """The page that the request names; the nearest one there is when it names none."""
    return Paginator(rows, size).get_page(request.GET.get("page"))


@require_safe
def start(request: HttpRequest) -> HttpResponse:
    cards = [
        {"template": card.template, **card.context(request)}
        for card in sorted(registry.cards.values(), key=lambda card: card.order)
    ]
    return render(request, "controlplane/start.html", {"cards": cards, "working": working(), "base_url": settings.CC_CI.base_url})


def working() -> bool:
    """Whether some machine's ticker is alive."""
    return Host.objects.filter(ticked_at__gt=timezone.now() - SILENT).exists()


@require_safe
def health(request: HttpRequest) -> HttpResponse:
    """For load balancers and monitors: 200 while the database answers; `working` tells of the workers."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        alive = working()
    except DatabaseError:
        return JsonResponse({"database": False}, status=503)
    return JsonResponse({"database": True, "working": alive, "version": settings.VERSION})
