"""The control plane's own pages: start, health. The start page's sections are registered by the apps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import LoginView
from django.core.exceptions import ValidationError
from django.core.paginator import Page, Paginator
from django.db import DatabaseError, connection
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from controlplane import docs
from controlplane.models import ApiToken, Host
from controlplane.registry import call, registry

#: Seconds of silence after which a host's ticker counts as not working.
SILENT = timedelta(seconds=60)


def paginate(request: HttpRequest, rows: QuerySet[Any], size: int) -> Page[Any]:
    """The page in the request's query, or the closest valid one."""
    return Paginator(rows, size).get_page(request.GET.get("page"))


@dataclass(frozen=True)
class Slice:
    """Rows, newest first, from some point on. `older`: the point where the next slice begins; empty at the end."""

    rows: list[Any]
    older: str = ""
    first: bool = True


def rows_after(rows: QuerySet[Any], at: str, time: Any, key: Any) -> QuerySet[Any]:
    """Of rows ordered by `at` and then the key, newest first: those after this place.

    In one range of the index: what is as old, but was listed already, is left out of it.
    """
    return rows.filter(**{f"{at}__lte": time}).exclude(**{at: time, "pk__gte": key})


def first_of(rows: QuerySet[Any], number: int) -> list[Any]:
    """The first rows, found by their keys: else SQLite may begin with the tables that they are joined with, and read all rows."""
    return list(rows.filter(pk__in=list(rows.values_list("pk", flat=True)[:number])))


def newest(request: HttpRequest, rows: QuerySet[Any], size: int) -> Slice:
    """The rows from the request's `before` on, found by an index on (created_at, id) however many are newer.

    Anything else means the newest.
    """
    rows = rows.order_by("-created_at", "-pk")
    first = True
    try:
        at, _, key = request.GET.get("before", "").partition("_")
        if key:
            time, pk = datetime.fromisoformat(at), rows.model._meta.pk.to_python(key)
            if timezone.is_aware(time):
                # In UTC, as databases compare it, a time may have a year that there is none of.
                rows, first = rows_after(rows, "created_at", time.astimezone(UTC), pk), False
    except (ValueError, OverflowError, ValidationError):
        pass
    found = first_of(rows, size + 1)
    last = found[size - 1] if len(found) > size else None
    return Slice(found[:size], f"{last.created_at.isoformat()}_{last.pk}" if last else "", first)


def may_see_private(request: HttpRequest) -> bool:
    """Whether this user may see data of private repositories, and through the API with this token."""
    token: ApiToken | None = getattr(request, "auth", None)
    return bool(request.user.is_active and request.user.is_staff and (token is None or ApiToken.Scope.PRIVATE in token.scopes))


@require_safe
def start(request: HttpRequest) -> HttpResponse:
    """The start page; with `?fresh=` only what an open one asks for again."""
    wanted = [card for card in registry.cards_of("start") if card.fresh or "fresh" not in request.GET]
    cards = [{"template": card.template, **call(card.context, request)} for card in wanted]
    return render(request, "controlplane/start.html", {"cards": cards, "working": working(), "base_url": settings.CC_CI.base_url})


def working() -> bool:
    """Whether any host's ticker is alive."""
    return Host.objects.filter(ticked_at__gt=timezone.now() - SILENT).exists()


class LoginPage(LoginView):
    """Log in with a forge, or with the password of an account here."""

    template_name = "controlplane/login.html"

    def get_context_data(self, **more: Any) -> dict[str, Any]:
        context = super().get_context_data(forges=registry.ask("forge logins", default=()), **more)
        if context["forges"]:
            # Most people press the button above it, and a phone would open its keyboard.
            context["form"].fields["username"].widget.attrs.pop("autofocus", None)
        return context


@login_not_required
@require_safe
def health(request: HttpRequest) -> HttpResponse:
    """For load balancers and monitors: 200 while the database responds; `working` is whether workers run."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        alive = working()
    except DatabaseError:
        return JsonResponse({"database": False}, status=503)
    return JsonResponse({"database": True, "working": alive, "version": settings.VERSION})


#: Programs that index the web find recipes and verdicts, and are kept from what is endless, or for people alone.
ROBOTS = """\
User-agent: *
Disallow: /admin/
Disallow: /api/
Disallow: /hooks/
Disallow: /infra/
Disallow: /runs/*/log/
Disallow: /runs/*/live/
Disallow: /*?
"""


@login_not_required
@require_safe
def robots(request: HttpRequest) -> HttpResponse:
    return HttpResponse(ROBOTS, content_type="text/plain; charset=utf-8")


@require_safe
def docs_index(request: HttpRequest) -> HttpResponse:
    """All pages of the documentation, or with `?search=` the sections that have these words."""
    asked = request.GET.get("search", "").strip()
    context = {"asked": asked, "hits": docs.search(asked), "most": docs.MOST, "groups": docs.groups()}
    return render(request, "controlplane/docs_index.html", context)


@require_safe
def docs_page(request: HttpRequest, name: str) -> HttpResponse:
    """A page of the documentation, or a picture in one."""
    name = name.rstrip("/")
    if page := docs.pages().get(name):
        return render(request, "controlplane/docs_page.html", {"page": page})
    found = docs.shown_file(name)
    if found is None:
        raise Http404
    content, kind = found
    return HttpResponse(content, content_type=kind, headers={"X-Content-Type-Options": "nosniff"})
