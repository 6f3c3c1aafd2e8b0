"""Permissions, capabilities and requests in the admin: tables on the pages of forges and repositories, and a list of requests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.decorators import display

from controlplane.adminsite import NotDone, ReadOnlyAdmin, row_action, values
from controlplane.secrets import SecretUnreadable
from enrollment import permission_report
from enrollment.forge_access import capabilities, permissions, rate_limit
from enrollment.forge_access.clients import client_for
from enrollment.forges.base import ForgeError
from enrollment.models import Forge, Repository, RequestCount, Right, Traffic

#: The fields of both pages that say who may ask.
POLICIES = ("members_may_ask", "team", "collaborators_may_ask", "allow", "block", "strangers_await_approval")


def _table(heading: str, lines: list[dict[str, str]], empty: str) -> str:
    """A table as HTML, with the text `empty` below it."""
    return render_to_string("enrollment/_lines.html", {"lines": lines, "heading": heading, "empty": empty})


@display(description="permissions")
def permissions_table(place: Forge | Repository) -> str:
    """The table of the token's permissions."""
    lines = permission_report.lines_of(place) if isinstance(place, Forge) else permission_report.lines_of(place.forge, place)
    rows = [
        {
            "text": f"{line.text} ({line.scope})" if line.scope else line.text,
            "seen": permission_report.counts(line),
            "meaning": line.meaning,
            "evidence": line.evidence,
            "level": line.level,
        }
        for line in lines
    ]
    not_yet = "Not checked yet: run the action “Refresh permissions and capabilities now”."
    empty = permission_report.NOT_THE_SCOPES if any(line.counts for line in lines) else not_yet
    return _table("permission of the token (scope it needs)", rows, empty)


@display(description="capabilities")
def capabilities_table(forge: Forge) -> str:
    """The table of the forge's capabilities."""
    lines = capabilities.lines_of(forge)
    rows = [{"text": line.text, "seen": line.value, "meaning": line.otherwise, "evidence": line.evidence} for line in lines]
    at = (
        f"Version {forge.abilities_version}, checked {forge.abilities_at:%Y-%m-%d %H:%M}."
        if forge.abilities_at
        else "Not checked yet."
    )
    return _table("capability of the forge", rows, at)


@display(description="requests now")
def traffic_message(forge: Forge) -> str:
    """The state of the circuit and the budget."""
    row = Traffic.objects.filter(forge=forge).first()
    now = timezone.now()
    message = rate_limit.circuit_message(row, now) or "Requests are sent normally."
    if row and row.refused_at and row.refused_at > now - timedelta(hours=1):
        message += f" The budget delayed a request at {row.refused_at:%H:%M:%S}."
    return message


@display(description="requests")
def traffic_table(forge: Forge) -> str:
    """The table of the last day's requests by kind."""
    rate_limit.request_stats.write()
    rows = RequestCount.objects.filter(forge=forge, hour__gte=timezone.now() - timedelta(hours=24))
    kinds: dict[str, list[float]] = {}
    for row in rows:
        found = kinds.setdefault(row.kind, [0, 0, 0.0, 0.0])
        found[0] += row.requests
        found[1] += row.errors
        found[2] += row.seconds
        found[3] = max(found[3], row.slowest)
    lines = [
        {
            "text": kind,
            "seen": f"{count:.0f}",
            "meaning": f"{errors:.0f} failed",
            "evidence": f"{1000 * seconds / max(1, count):.0f} ms on average, {1000 * slowest:.0f} ms at most",
        }
        for kind, (count, errors, seconds, slowest) in sorted(kinds.items())
    ]
    return _table("requests in the last 24 hours", lines, "" if lines else "No requests in the last 24 hours.")


@row_action("Refresh permissions and capabilities now", "change")
def refresh_now(model_admin: ModelAdmin, request: HttpRequest, forge: Forge) -> str:
    try:
        return "; ".join(permissions.refresh_all(forge, client_for(forge), everything=True))
    except (ForgeError, SecretUnreadable) as error:
        raise NotDone(f"{forge.name}: {error}") from error


@row_action("Refresh permissions now", "change")
def refresh_permissions_now(model_admin: ModelAdmin, request: HttpRequest, row: Repository) -> str:
    try:
        seen = permissions.keep(row.forge, permissions.of_repository(row, client_for(row.forge)), repository=row)
    except (ForgeError, SecretUnreadable) as error:
        raise NotDone(f"{row.full_name}: {error}") from error
    if silent := [f"{one.name}: {one.evidence}" for one in seen if one.failed]:
        raise NotDone(f"{row.full_name}: {'; '.join(silent)}")
    return f"{row.full_name}: seen"


@admin.register(Right)
class RightAdmin(ReadOnlyAdmin):
    list_display = ("place", "name", "held_label", "evidence", "seen_at")
    list_filter = ("held", values("permission", "name", {name: name for name in permissions.PERMISSIONS}), "forge")
    search_fields = ("repository__owner", "repository__name", "owner", "evidence")
    list_select_related = ("repository", "forge")

    @display(description="seen", label={"yes": "success", "no": "warning", "not seen yet": "info"})
    def held_label(self, row: Right) -> str:
        return Right.Held(row.held).label

    @display(description="seen at", ordering="at")
    def seen_at(self, row: Right) -> Any:
        return row.at


@admin.register(RequestCount)
class RequestCountAdmin(ReadOnlyAdmin):
    list_display = ("hour", "forge", "kind", "requests", "errors", "each", "slow")
    list_filter = ("forge", ("hour", admin.DateFieldListFilter))
    list_select_related = ("forge",)

    @display(description="each")
    def each(self, row: RequestCount) -> str:
        return f"{1000 * row.seconds / max(1, row.requests):.0f} ms"

    @display(description="slowest", ordering="slowest")
    def slow(self, row: RequestCount) -> str:
        return f"{1000 * row.slowest:.0f} ms"
