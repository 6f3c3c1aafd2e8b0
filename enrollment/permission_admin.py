"""Permissions, capabilities and requests in the admin: tables on the pages of forges and repositories, and a list of requests."""

from __future__ import annotations

from datetime import timedelta

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from controlplane.adminsite import ReadOnlyAdmin
from controlplane.secrets import SecretUnreadable
from enrollment import permission_report
from enrollment.forge_access import capabilities, permissions, rate_limit
from enrollment.forge_access.clients import client_for
from enrollment.forges.base import ForgeError
from enrollment.models import Forge, Repository, RequestCount, Right, Traffic

#: The fields of both pages that say who may ask.
POLICIES = ("members_may_ask", "team", "collaborators_may_ask", "allow", "block", "strangers_await_approval")


def permissions_table(forge: Forge, repository: Repository | None = None) -> str:
    """The table of the token's permissions, as HTML."""
    lines = permission_report.lines_of(forge, repository)
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
    return render_to_string(
        "enrollment/_lines.html", {"lines": rows, "heading": "permission of the token (scope it needs)", "empty": empty}
    )


def capabilities_table(forge: Forge) -> str:
    """The table of the forge's capabilities, as HTML."""
    lines = capabilities.lines_of(forge)
    rows = [{"text": line.text, "seen": line.value, "meaning": line.otherwise, "evidence": line.evidence} for line in lines]
    at = (
        f"Version {forge.abilities_version}, checked {forge.abilities_at:%Y-%m-%d %H:%M}."
        if forge.abilities_at
        else "Not checked yet."
    )
    return render_to_string("enrollment/_lines.html", {"lines": rows, "heading": "capability of the forge", "empty": at})


def traffic_message(forge: Forge) -> str:
    """The state of the circuit and the budget."""
    row = Traffic.objects.filter(forge=forge).first()
    now = timezone.now()
    message = rate_limit.circuit_message(row, now) or "Requests are sent normally."
    if row and row.refused_at and row.refused_at > now - timedelta(hours=1):
        message += f" The budget delayed a request at {row.refused_at:%H:%M:%S}."
    return message


def traffic_table(forge: Forge) -> str:
    """The table of the last day's requests by kind, as HTML."""
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
    empty = "" if lines else "No requests in the last 24 hours."
    return render_to_string(
        "enrollment/_lines.html", {"lines": lines, "heading": "requests in the last 24 hours", "empty": empty}
    )


@action(description="Refresh permissions and capabilities now", permissions=["change"])
def refresh_now(model_admin: ModelAdmin, request: HttpRequest, queryset: QuerySet[Forge]) -> None:
    for forge in queryset:
        try:
            client = client_for(forge)
            lines = permissions.refresh_all(forge, client, everything=True)
        except (ForgeError, SecretUnreadable) as error:
            model_admin.message_user(request, f"{forge.name}: {error}", messages.ERROR)
            continue
        model_admin.message_user(request, "; ".join(lines), messages.SUCCESS)


@action(description="Refresh permissions now", permissions=["change"])
def refresh_permissions_now(model_admin: ModelAdmin, request: HttpRequest, queryset: QuerySet[Repository]) -> None:
    for row in queryset.select_related("forge"):
        try:
            client = client_for(row.forge)
            seen = permissions.keep(row.forge, permissions.of_repository(row, client), repository=row)
        except (ForgeError, SecretUnreadable) as error:
            model_admin.message_user(request, f"{row.full_name}: {error}", messages.ERROR)
            continue
        silent = [f"{one.name}: {one.evidence}" for one in seen if one.failed]
        message = "; ".join(silent) or "seen"
        model_admin.message_user(request, f"{row.full_name}: {message}", messages.WARNING if silent else messages.SUCCESS)


@admin.register(Right)
class RightAdmin(ReadOnlyAdmin):
    list_display = ("place", "name", "held_label", "evidence", "at")
    list_filter = ("held", "name", "forge")
    search_fields = ("repository__owner", "repository__name", "owner", "evidence")
    list_select_related = ("repository", "forge")

    @display(description="seen", label={"yes": "success", "no": "warning", "not seen yet": "info"})
    def held_label(self, row: Right) -> str:
        return Right.Held(row.held).label


@admin.register(RequestCount)
class RequestCountAdmin(ReadOnlyAdmin):
    list_display = ("hour", "forge", "kind", "requests", "errors", "each", "slow")
    list_filter = ("forge", "kind", ("hour", admin.DateFieldListFilter))
    list_select_related = ("forge",)
    date_hierarchy = "hour"

    @display(description="each")
    def each(self, row: RequestCount) -> str:
        return f"{1000 * row.seconds / max(1, row.requests):.0f} ms"

    @display(description="slowest", ordering="slowest")
    def slow(self, row: RequestCount) -> str:
        return f"{1000 * row.slowest:.0f} ms"
