"""The public page of deferred tests. Those from or about a private repository require a login."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from controlplane.pages import may_see_private, paginate
from enrollment.forge_login.visitors import private_seen
from runs.deferred import registry
from runs.models import DeferredItem


@require_safe
def deferred_list(request: HttpRequest) -> HttpResponse:
    """All entries, newest first, filtered by state and recipe."""
    rows = registry.items()
    if not may_see_private(request):
        rows = registry.public(rows, private_seen(request))
    names = rows.exclude(recipe=None).values_list("recipe__owner", "recipe__name").order_by()
    recipes = sorted({f"{owner}/{name}" for owner, name in names.distinct()[:500]})
    chosen = {name: request.GET.get(name, "") for name in ("state", "recipe")}
    if chosen["state"] in DeferredItem.State.values:
        rows = rows.filter(state=chosen["state"])
    if chosen["recipe"]:
        owner, _, name = chosen["recipe"].partition("/")
        rows = rows.filter(recipe__owner=owner, recipe__name=name)
    context = {
        "page": paginate(request, rows, 25),
        "chosen": chosen,
        "states": DeferredItem.State.choices,
        "recipes": recipes,
    }
    return render(request, "runs/deferred_list.html", context)
