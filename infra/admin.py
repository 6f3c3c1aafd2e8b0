"""The server's own apps in the admin: read-only, because all of it is a trail or comes from infra.yml.

Its actions are the buttons of `infra.web.actions`, as on the pages at /infra/.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from controlplane.adminsite import BigAdmin, ReadOnlyAdmin, ReadOnlyInline, ask, values
from infra.models import AlertSent, AppSecret, InfraApp, InfraFile, InfraRelease, Snapshot, Upgrade, UpgradeEvent
from infra.runtime.drift import Refused
from infra.states import UpgradeState
from infra.upgrades import enqueue
from infra.web.actions import BUTTONS, On

NO_RIGHT = "This needs the permission {}."
ROLLBACK_FAILED = "rollback failed"
APP_LABELS = {"settled": "success", "upgrading": "primary", "drifted": "danger", ROLLBACK_FAILED: "danger"}
UPGRADE_LABELS = {
    "succeeded": "success",
    ROLLBACK_FAILED: "danger",
    "rolled back": "warning",
    "rolling back": "warning",
    "failed before anything was changed": "warning",
}


def buttons_of(on: On) -> Callable[[type[ModelAdmin]], type[ModelAdmin]]:
    """Give an admin class the buttons of `infra.web.actions` for its rows, as its actions."""

    def add(page: type[ModelAdmin]) -> type[ModelAdmin]:
        names = [name for name, button in BUTTONS.items() if button.on == on]
        for name in names:
            setattr(page, name, _action(name))
        page.actions = [*names, *page.actions]
        return page

    return add


def _action(name: str) -> Any:
    def press(page: ModelAdmin, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Press the button for each row and show the result. Asks first if the button does."""
        button = BUTTONS[name]
        if not request.user.has_perm(button.right):
            page.message_user(request, NO_RIGHT.format(button.right), messages.ERROR)
            return None
        rows = list(queryset if button.on == "app" else queryset.select_related("app"))
        if button.asks and request.POST.get("sure") != "yes":
            what = [(row, button.says(row), button.typed(row)) for row in rows]
            return ask(page, request, name, button.label, what, button.danger)
        for row in rows:
            try:
                done = button.press(row, request.user.get_username())
            except Refused as error:
                page.message_user(request, str(error), messages.ERROR)
            else:
                page.log_change(request, row, f"{button.label}: {done}")
                page.message_user(request, _begun(done) if isinstance(done, Upgrade) else done, messages.SUCCESS)
        return None

    press.__name__ = name
    return action(description=f"{BUTTONS[name].label}{' …' if BUTTONS[name].asks else ''}")(press)


def _begun(upgrade: Upgrade) -> SafeString:
    return format_html('Started {}: <a href="{}">follow it</a>.', str(upgrade), upgrade.get_absolute_url())


def _link(upgrade: Upgrade | None) -> SafeString | str:
    if upgrade is None:
        return "–"
    style = "text-primary-600 dark:text-primary-500 underline"
    return format_html('<a href="{}" class="{}">{}</a>', upgrade.get_absolute_url(), style, str(upgrade))


class UpgradeInline(ReadOnlyInline):
    model = Upgrade
    fields = ("live_page", "state", "trigger", "created_at", "finished_at", "reason")
    readonly_fields = fields  # the form has no field for a time that is set automatically

    @display(description="upgrade")
    def live_page(self, upgrade: Upgrade) -> SafeString | str:
        return _link(upgrade)


class EventInline(ReadOnlyInline):
    model = UpgradeEvent
    fields = ("at", "kind", "text")


@admin.register(InfraFile)
class InfraFileAdmin(ReadOnlyAdmin):
    list_display = ("path", "applied_at")


@admin.register(InfraApp)
@buttons_of("app")
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
    exclude = ("left",)  # specs hold environments, and those may hold secrets
    inlines = [UpgradeInline]
    actions = ["show_plan"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[InfraApp]:
        return InfraApp.objects.with_last_upgrade()

    @action(description="Show what an upgrade would do, and why not more")
    def show_plan(self, request: HttpRequest, queryset: QuerySet[InfraApp]) -> None:
        for app in queryset:
            self.message_user(request, str(enqueue.plan_of(app)), messages.INFO)

    @display(description="owner", label={"reconciled by cc-ci": "primary", "managed by its maintainers": "info"})
    def owned(self, app: InfraApp) -> str:
        return InfraApp.Owner(app.owner).label

    @display(description="state", label=APP_LABELS)
    def stands(self, app: InfraApp) -> str:
        return ROLLBACK_FAILED if app.lost else str(InfraApp.State(app.state).label)


@admin.register(InfraRelease)
@buttons_of("release")
class InfraReleaseAdmin(ReadOnlyAdmin):
    list_display = ("version", "app", "stands", "why", "tag", "tagged_at", "approved_by")
    list_filter = ("state", "app", "annotated", "gone")
    search_fields = ("version", "app__name", "notes")
    list_select_related = ("app",)
    exclude = ("reasons", "lifted")
    readonly_fields = ("explained",)

    @display(description="state", label={"candidate": "info", "held": "warning", "quarantined": "danger"})
    def stands(self, release: InfraRelease) -> str:
        return InfraRelease.State(release.state).label

    @display(description="tag")
    def tag(self, release: InfraRelease) -> str:
        return "no longer exists" if release.gone else "annotated" if release.annotated else "lightweight"

    @display(description="blockers")
    def why(self, release: InfraRelease) -> str:
        return " ".join(reason["text"] for reason in release.reasons)[:200]

    @display(description="blockers and their remedies")
    def explained(self, release: InfraRelease) -> SafeString:
        return format_html_join("", "<p>{} {}{}</p>", ((r["text"], r["lift"], _passages(r)) for r in release.reasons))


def _passages(reason: dict[str, Any]) -> SafeString:
    cut = [
        (p["line"], p["text"][: p["start"]], p["text"][p["start"] : p["end"]], p["text"][p["end"] :]) for p in reason["passages"]
    ]
    return format_html_join("", "<br>{}: {}<mark>{}</mark>{}", cut)


@admin.register(Upgrade)
class UpgradeAdmin(ReadOnlyAdmin):
    list_display = ("live_page", "stands", "trigger", "created_at", "finished_at", "reason")
    readonly_fields = ("live_page",)
    exclude = ("specs",)  # as above
    list_filter = ("state", "app")
    search_fields = ("app__name", "to_version", "from_version", "reason")
    list_select_related = ("app",)
    date_hierarchy = "created_at"
    inlines = [EventInline]

    @display(description="upgrade", ordering="app")
    def live_page(self, upgrade: Upgrade) -> SafeString | str:
        return _link(upgrade)

    @display(description="state", label=UPGRADE_LABELS)
    def stands(self, upgrade: Upgrade) -> str:
        return upgrade.get_state_display()


@admin.register(UpgradeEvent)
class UpgradeEventAdmin(BigAdmin, ReadOnlyAdmin):
    list_display = ("at", "live_page", "kind", "text")
    list_filter = (values("kind", "kind", {str(state): str(state.label) for state in UpgradeState}), "upgrade__app")
    search_fields = ("text", "upgrade__app__name")
    list_select_related = ("upgrade__app",)
    deferred = ("data", "upgrade__specs", "upgrade__digests", "upgrade__baseline", "upgrade__step", "upgrade__facts")

    @display(description="upgrade", ordering="upgrade")
    def live_page(self, event: UpgradeEvent) -> SafeString | str:
        return _link(event.upgrade)


@admin.register(Snapshot)
@buttons_of("snapshot")
class SnapshotAdmin(ReadOnlyAdmin):
    list_display = ("taken_at", "app", "version", "live_page", "store", "size", "verified", "kept_because")
    list_filter = ("app", "store", "proved")
    search_fields = ("app__name", "version", "location")
    list_select_related = ("app", "upgrade__app")

    @display(description="verified", label={"verified": "success", "not verified": "danger"})
    def verified(self, snapshot: Snapshot) -> str:
        return "verified" if snapshot.proved else "not verified"

    @display(description="taken by", ordering="upgrade")
    def live_page(self, snapshot: Snapshot) -> SafeString | str:
        return _link(snapshot.upgrade)

    @display(description="size", ordering="bytes")
    def size(self, snapshot: Snapshot) -> str:
        return filesizeformat(snapshot.bytes)


@admin.register(AppSecret)
class AppSecretAdmin(ReadOnlyAdmin):
    """Shows that a secret exists, never its value."""

    list_display = ("name", "app", "made_at")
    list_filter = ("app",)
    search_fields = ("name",)
    exclude = ("value",)


@admin.register(AlertSent)
class AlertSentAdmin(ReadOnlyAdmin):
    list_display = ("at", "kind", "app", "text", "sent")
    list_filter = ("kind", "app", "delivered")
    search_fields = ("text",)
    list_select_related = ("app",)

    @display(description="sent", label={"delivered": "success", "on its way": "info", "failed": "danger"})
    def sent(self, alert: AlertSent) -> str:
        return "delivered" if alert.delivered else "failed" if alert.problem else "on its way"
