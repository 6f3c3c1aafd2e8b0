"""The server's own apps in the admin. All of it is a trail or comes from infra.yml: nothing is changed here by hand.

Its actions are those of `cc-ci infra`, under the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from controlplane.adminsite import ReadOnlyAdmin, ReadOnlyInline
from infra import ownership, wanting
from infra.looking import NotApproved, approve
from infra.models import AlertSent, AppSecret, InfraApp, InfraFile, InfraRelease, Snapshot, Upgrade, UpgradeEvent
from infra.ownership import Refused
from infra.states import UpgradeState

UPGRADE_LABELS = {
    "succeeded": "success",
    "rollback failed": "danger",
    "rolled back": "warning",
    "rolling back": "warning",
    "failed before anything was changed": "warning",
    "held": "info",
}


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
    actions = ["upgrade", "upgrade_now", "show_plan", "rollback", "rollback_with_data", "adopt", "restore_ours", "hand_over"]

    @action(description="Upgrade, if its window is open")
    def upgrade(self, request: HttpRequest, queryset: QuerySet[InfraApp]) -> None:
        _each(self, request, queryset, lambda app, who: _begun(wanting.upgrade(app, "", f"{who}, by button")))

    @action(description="Upgrade now, outside its window as well")
    def upgrade_now(self, request: HttpRequest, queryset: QuerySet[InfraApp]) -> None:
        _each(self, request, queryset, lambda app, who: _begun(wanting.upgrade(app, "", f"{who}, by button", now=True)))

    @action(description="Show what an upgrade would do, and why not more")
    def show_plan(self, request: HttpRequest, queryset: QuerySet[InfraApp]) -> None:
        for app in queryset:
            self.message_user(request, str(wanting.plan_of(app)), messages.INFO)

    @action(description="Roll back to the version before")
    def rollback(self, request: HttpRequest, queryset: QuerySet[InfraApp]) -> None:
        _each(self, request, queryset, lambda app, who: _begun(wanting.roll_back(app, who)))

    @action(description="Roll back, with the data of the snapshot taken then")
    def rollback_with_data(self, request: HttpRequest, queryset: QuerySet[InfraApp]) -> None:
        _each(self, request, queryset, lambda app, who: _begun(wanting.roll_back(app, who, data=True)))

    @action(description="Adopt: what runs is cc-ci's now")
    def adopt(self, request: HttpRequest, queryset: QuerySet[InfraApp]) -> None:
        _each(self, request, queryset, lambda app, who: " ".join([f"{app} is cc-ci's.", *ownership.adopt(app, who)]))

    @action(description="Put back what cc-ci had left there (restore-ours)")
    def restore_ours(self, request: HttpRequest, queryset: QuerySet[InfraApp]) -> None:
        _each(self, request, queryset, lambda app, who: _begun(wanting.restore_ours(app, who)))

    @action(description="Hand over to its maintainers")
    def hand_over(self, request: HttpRequest, queryset: QuerySet[InfraApp]) -> None:
        _each(self, request, queryset, lambda app, who: " ".join([f"{app} is handed over.", *ownership.hand_over(app, who)]))

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
    actions = ["approve", "upgrade_to", "lift"]

    @display(description="state", label={"candidate": "info", "held": "warning", "quarantined": "danger"})
    def stands(self, release: InfraRelease) -> str:
        return InfraRelease.State(release.state).label

    @display(description="why it is not taken")
    def why(self, release: InfraRelease) -> str:
        return " ".join(reason["text"] for reason in release.reasons)[:200]

    @display(description="why it is not taken, and what lifts it")
    def explained(self, release: InfraRelease) -> SafeString:
        return format_html_join("", "<p>{} {}{}</p>", ((r["text"], r["lift"], _passages(r)) for r in release.reasons))

    @action(description="Upgrade to this version, if the gate lets it through")
    def upgrade_to(self, request: HttpRequest, queryset: QuerySet[InfraRelease]) -> None:
        def begin(release: InfraRelease, who: str) -> str:
            return _begun(wanting.upgrade(release.app, release.version, f"{who}, by button", now=True))

        _each(self, request, queryset.select_related("app"), begin)

    @action(description="Lift its quarantine")
    def lift(self, request: HttpRequest, queryset: QuerySet[InfraRelease]) -> None:
        def lifted(release: InfraRelease, who: str) -> str:
            return f"{wanting.lift(release.app, release.version, who)} may be tried again."

        _each(self, request, queryset.select_related("app"), lifted)

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


def _begun(upgrade: Upgrade) -> str:
    return f"{upgrade} has begun: {upgrade.get_absolute_url()}"


def _each(
    page: ModelAdmin,
    request: HttpRequest,
    rows: QuerySet[Any],
    act: Callable[[Any, str], str],
    right: str = "infra.change_infraapp",
) -> None:
    """Do it with each row and say what came of it, for those who may change apps."""
    if not request.user.has_perm(right):
        page.message_user(request, "This needs the right to change infra apps.", messages.ERROR)
        return
    for row in rows:
        try:
            said = act(row, request.user.get_username())
        except Refused as error:
            page.message_user(request, str(error), messages.ERROR)
        else:
            page.message_user(request, said, messages.SUCCESS)


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
    actions = ["restore"]
    list_filter = ("app", "store", "proved")
    search_fields = ("app__name", "version", "location")
    list_select_related = ("app",)

    @display(description="size", ordering="bytes")
    def size(self, snapshot: Snapshot) -> str:
        return filesizeformat(snapshot.bytes)

    @action(description="Restore: its data, with the version that it was taken of")
    def restore(self, request: HttpRequest, queryset: QuerySet[Snapshot]) -> None:
        rows = queryset.select_related("app")
        _each(self, request, rows, lambda row, who: _begun(wanting.restore(row.app, row, who)))


@admin.register(AppSecret)
class AppSecretAdmin(ReadOnlyAdmin):
    """That there is one; its value is shown nowhere."""

    list_display = ("name", "app", "made_at")
    list_filter = ("app",)
    search_fields = ("name",)
    exclude = ("value",)


@admin.register(AlertSent)
class AlertSentAdmin(ReadOnlyAdmin):
    list_display = ("at", "kind", "app", "text", "delivered", "problem")
    list_filter = ("kind", "app", "delivered")
    search_fields = ("text",)
    list_select_related = ("app",)
