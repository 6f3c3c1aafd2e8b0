"""The server's own apps in the admin. All of it is a trail or comes from infra.yml: nothing is changed here by hand."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from unfold.admin import TabularInline
from unfold.decorators import action, display

from controlplane.adminsite import ReadOnlyAdmin
from infra.looking import NotApproved, approve
from infra.models import InfraApp, InfraFile, InfraRelease, Snapshot, Upgrade, UpgradeEvent
from infra.states import UpgradeState

UPGRADE_LABELS = {
    "succeeded": "success",
    "rollback failed": "danger",
    "rolled back": "warning",
    "rolling back": "warning",
    "failed before anything was changed": "warning",
    "held": "info",
}


class ReadOnlyInline(TabularInline):
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class UpgradeInline(ReadOnlyInline):
    model = Upgrade
    fields = ("from_version", "to_version", "state", "trigger", "created_at", "finished_at", "reason")
    readonly_fields = fields  # the form has no place for a time that is set by itself


class EventInline(ReadOnlyInline):
    model = UpgradeEvent
    fields = ("at", "kind", "text")


@admin.register(InfraFile)
class InfraFileAdmin(ReadOnlyAdmin):
    list_display = ("path", "applied_at")


@admin.register(InfraApp)
class InfraAppAdmin(ReadOnlyAdmin):
    list_display = (
        "name",
        "owned",
        "stands",
        "running_version",
        "pinned_version",
        "server",
        "stack",
        "deployer",
        "discovered_at",
    )
    list_filter = ("owner", "state", "server", "deployer", "declared")
    search_fields = ("name", "recipe", "domain", "stack")
    inlines = [UpgradeInline]

    @display(description="owner", label={"reconciled by cc-ci": "primary", "its maintainers": "info"})
    def owned(self, app: InfraApp) -> str:
        return InfraApp.Owner(app.owner).label

    @display(description="state", label={"settled": "success", "upgrading": "primary", "contested": "danger"})
    def stands(self, app: InfraApp) -> str:
        return InfraApp.State(app.state).label


@admin.register(InfraRelease)
class InfraReleaseAdmin(ReadOnlyAdmin):
    list_display = ("version", "app", "stands", "why", "annotated", "tagged_at", "approved_by", "gone")
    list_filter = ("state", "app", "annotated", "gone")
    search_fields = ("version", "app__name", "notes")
    list_select_related = ("app",)
    exclude = ("reasons", "lifted")
    readonly_fields = ("explained",)
    actions = ["approve"]

    @display(description="state", label={"candidate": "info", "held": "warning", "quarantined": "danger"})
    def stands(self, release: InfraRelease) -> str:
        return InfraRelease.State(release.state).label

    @display(description="why it is not taken")
    def why(self, release: InfraRelease) -> str:
        return " ".join(reason["text"] for reason in release.reasons)[:200]

    @display(description="why it is not taken, and what lifts it")
    def explained(self, release: InfraRelease) -> SafeString:
        return format_html_join("", "<p>{} {}{}</p>", ((r["text"], r["lift"], _passages(r)) for r in release.reasons))

    @action(description="Approve this version")
    def approve(self, request: HttpRequest, queryset: QuerySet[InfraRelease]) -> None:
        if not request.user.has_perm("infra.change_infrarelease"):
            self.message_user(request, "Approving needs the right to change releases.", messages.ERROR)
            return
        for release in queryset.select_related("app"):
            try:
                approve(release.app, release.version, request.user.get_username())
            except NotApproved as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                self.message_user(request, f"{release} is approved.", messages.SUCCESS)


def _passages(reason: dict[str, Any]) -> SafeString:
    cut = [
        (p["line"], p["text"][: p["start"]], p["text"][p["start"] : p["end"]], p["text"][p["end"] :]) for p in reason["passages"]
    ]
    return format_html_join("", "<br>{}: {}<mark>{}</mark>{}", cut)


@admin.register(Upgrade)
class UpgradeAdmin(ReadOnlyAdmin):
    list_display = ("id", "app", "from_version", "to_version", "stands", "trigger", "created_at", "finished_at")
    list_filter = ("state", "app")
    search_fields = ("app__name", "to_version", "from_version", "reason")
    list_select_related = ("app",)
    date_hierarchy = "created_at"
    inlines = [EventInline]

    @display(description="state", label=UPGRADE_LABELS)
    def stands(self, upgrade: Upgrade) -> str:
        return str(UpgradeState(upgrade.state).label)


@admin.register(UpgradeEvent)
class UpgradeEventAdmin(ReadOnlyAdmin):
    list_display = ("at", "upgrade", "kind", "text")
    list_filter = ("kind", "upgrade__app")
    search_fields = ("text", "upgrade__app__name")
    list_select_related = ("upgrade__app",)


@admin.register(Snapshot)
class SnapshotAdmin(ReadOnlyAdmin):
    list_display = ("taken_at", "app", "version", "store", "size", "proved", "kept_because")
    list_filter = ("app", "store", "proved")
    search_fields = ("app__name", "version", "location")
    list_select_related = ("app",)

    @display(description="size", ordering="bytes")
    def size(self, snapshot: Snapshot) -> str:
        return filesizeformat(snapshot.bytes)
