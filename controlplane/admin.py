"""Admin pages of the control plane: recurring tasks, leases, hosts, django-q's history, users, groups and API tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.defaultfilters import truncatechars
from django.utils import timezone
from django_q.models import Failure, OrmQ, Schedule, Success, Task
from unfold.admin import ModelAdmin
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminIntegerFieldWidget, UnfoldAdminTextInputWidget

from controlplane import logins, tokens
from controlplane.adminsite import NotDone, ReadOnlyAdmin, row_action
from controlplane.models import ApiToken, FailedLogin, Host, Lease, RecurringTask
from controlplane.registry import registry

#: The supervisor watches it: without it, a healthy queue looks stalled.
HEARTBEAT = "controlplane.tasks.heartbeat"


@admin.register(RecurringTask)
class RecurringTaskAdmin(ReadOnlyAdmin):
    """Only `enabled` can be changed; the rest comes from the program's table and the last run."""

    list_display = ("name", "outcome", "every", "due_at", "last_finished_at", "took", "said", "enabled")
    list_filter = ("enabled", "per_host")
    search_fields = ("name", "last_error")
    fields = (
        "name",
        "what",
        "enabled",
        "every",
        "due_at",
        "last_queued_at",
        "last_started_at",
        "last_finished_at",
        "took",
        "last_result",
        "last_error",
        "last_error_at",
    )
    readonly_fields = tuple(name for name in fields if name != "enabled")
    actions = ("run_now",)

    def has_change_permission(self, request: HttpRequest, obj: RecurringTask | None = None) -> bool:
        if obj is not None and obj.name.partition("@")[0] == HEARTBEAT:
            return False
        return ModelAdmin.has_change_permission(self, request, obj)

    @row_action("Run now", "change")
    def run_now(self, request: HttpRequest, row: RecurringTask) -> str:
        """Make it due: the responsible host's ticker queues it within a second."""
        if not RecurringTask.objects.filter(pk=row.pk, enabled=True).update(due_at=timezone.now()):
            raise NotDone(f"{row} is disabled and will not run.")
        return f"{row} will run as soon as a worker is free."

    @display(description="last run", label={"ok": "success", "failed": "danger", "never": "info"})
    def outcome(self, row: RecurringTask) -> str:
        if row.last_error:
            return "failed"
        return "ok" if row.last_finished_at else "never"

    @display(description="every", ordering="every_seconds")
    def every(self, row: RecurringTask) -> str:
        return _seconds(row.every_seconds)

    @display(description="took", ordering="last_seconds")
    def took(self, row: RecurringTask) -> str:
        return "-" if row.last_seconds is None else f"{row.last_seconds:.2f} s"

    @display(description="result or error")
    def said(self, row: RecurringTask) -> str:
        return truncatechars(row.last_error or row.last_result, 120)

    @display(description="what it does")
    def what(self, row: RecurringTask) -> str:
        task = registry.recurring.get(row.name.partition("@")[0])
        return task.text if task else ""


@admin.register(Lease)
class LeaseAdmin(ReadOnlyAdmin):
    list_display = ("name", "state", "owner", "expires_at", "fence")
    search_fields = ("name", "owner")

    @display(description="state", label={"held": "warning", "free": "success"})
    def state(self, row: Lease) -> str:
        return "held" if row.owner and row.expires_at > timezone.now() else "free"


@admin.register(Host)
class HostAdmin(ReadOnlyAdmin):
    list_display = ("name", "ticker", "started_at", "ticked_at", "worked_at", "restarts")

    @display(description="ticker", label={"up": "success", "down": "danger"})
    def ticker(self, row: Host) -> str:
        return "up" if row.ticked_at and (timezone.now() - row.ticked_at).total_seconds() < 30 else "down"


admin.site.index_template = "controlplane/admin_start.html"
admin.site.index_title = "Overview"
admin.site.login_template = "controlplane/admin_login.html"

# Schedules are `RecurringTask` rows; django-q's own would never run and only confuse.
for model in (Schedule, Success, Failure, OrmQ, User, Group):
    admin.site.unregister(model)


class TaskTrail(ReadOnlyAdmin):
    list_display = ("name", "func", "cluster", "started", "stopped", "took", "outcome")
    list_filter = ("cluster",)
    search_fields = ("name", "func")
    fields = ("id", "name", "func", "args", "cluster", "started", "stopped", "attempt_count", "result")

    @display(description="took")
    def took(self, row: Task) -> str:
        return f"{row.time_taken():.2f} s"

    @display(description="result")
    def outcome(self, row: Task) -> str:
        return truncatechars(str(row.result or "").partition("\n")[0], 120)


@admin.register(Success)
class SuccessAdmin(TaskTrail):
    """The last successful tasks, except recurring ones, which have their own table."""


@admin.register(Failure)
class FailureAdmin(TaskTrail):
    """Tasks that raised, or exceeded their time limit."""


@admin.register(OrmQ)
class QueueAdmin(ReadOnlyAdmin):
    """Waiting and running tasks: a task stays here until it has finished."""

    list_display = ("name", "func", "state", "machine", "lock")
    list_filter = ("key",)
    fields = ("id", "key", "name", "func", "args", "lock")

    @display(description="machine", ordering="key")
    def machine(self, row: OrmQ) -> str:
        return str(row.key).removeprefix("cc-ci-")

    @display(description="state", label={"waiting": "info", "taken": "warning"})
    def state(self, row: OrmQ) -> str:
        taken: datetime = row.lock
        return "taken" if taken > timezone.now() else "waiting"


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):  # type: ignore[type-arg]
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):
    pass


@admin.register(FailedLogin)
class WrongLogins(ReadOnlyAdmin):
    """Recent failed logins, and who is locked out because of them. Deleting them unlocks immediately."""

    list_display = ("attempt_time", "ip_address", "username", "failures_since_start", "waits")
    search_fields = ("ip_address", "username")
    fields = ("attempt_time", "ip_address", "username", "failures_since_start", "waits", "user_agent", "path_info")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(ModelAdmin.has_delete_permission(self, request, obj))

    @display(description="locked out")
    def waits(self, row: FailedLogin) -> str:
        mine = [one.until for one in logins.locked() if one.address == row.ip_address and one.name in ("", row.username)]
        return f"until {max(mine):%H:%M:%S} UTC" if mine else "-"


class ApiTokenForm(forms.ModelForm):  # type: ignore[type-arg]
    scopes = forms.MultipleChoiceField(choices=ApiToken.Scope.choices, widget=UnfoldAdminCheckboxSelectMultipleWidget)
    days = forms.IntegerField(
        min_value=1,
        max_value=tokens.MOST_DAYS,
        initial=tokens.DEFAULT_DAYS,
        widget=UnfoldAdminIntegerFieldWidget,
        label="Days until it expires",
    )

    class Meta:
        model = ApiToken
        fields = ("name",)
        widgets = {"name": UnfoldAdminTextInputWidget}

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if not name.isprintable():  # it is shown in terminals, logs and a run's events
            raise forms.ValidationError("Use one line, without control characters.")
        return name


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnlyAdmin):
    """Each person's own tokens: one for somebody else would act as somebody else. Superusers see and revoke those of all."""

    list_display = ("name", "user", "key", "scopes", "standing", "expires_at", "last_used_at")
    search_fields = ("name", "key", "user__username")
    list_select_related = ("user",)
    exclude = ("digest", "minute_at", "requests")
    actions = ("revoke",)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(ModelAdmin.has_add_permission(self, request))

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiToken]:
        rows: QuerySet[ApiToken] = super().get_queryset(request)
        return rows if request.user.is_superuser else rows.filter(user=request.user.pk)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, **kwargs) if obj else ApiTokenForm

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return super().get_fields(request, obj) if obj else ("name", "scopes", "days")

    def save_model(self, request: HttpRequest, obj: ApiToken, form: Any, change: bool) -> None:
        data = form.cleaned_data
        row, request.made_token = tokens.make(request.user, data["name"], data["scopes"], data["days"])  # type: ignore[attr-defined]
        obj.pk, obj.key = row.pk, row.key

    def response_add(self, request: HttpRequest, obj: ApiToken, post_url_continue: str | None = None) -> HttpResponse:
        """Show the token in this response only: no session, cookie or page keeps it."""
        return render(request, "controlplane/token.html", {"token": request.made_token, "name": obj.name})  # type: ignore[attr-defined]

    @display(description="status", label={"valid": "success", "expired": "warning", "revoked": "danger", "suspended": "danger"})
    def standing(self, row: ApiToken) -> str:
        return tokens.status_of(row)

    @row_action("Revoke", "act", "The token {row} is refused from now on, for good.", danger=True)
    def revoke(self, request: HttpRequest, token: ApiToken) -> str:
        if not tokens.revoke(ApiToken.objects.filter(pk=token.pk)):
            raise NotDone(f"{token} was revoked before.")
        return f"Revoked {token}."


def _seconds(value: float) -> str:
    if value >= 3600 and value % 3600 == 0:
        return f"{value / 3600:g} h"
    return f"{value / 60:g} min" if value >= 60 and value % 60 == 0 else f"{value:g} s"
