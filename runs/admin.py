"""Admin pages of runs, their trail, and their reports to the forge."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils import timezone
from django.utils.html import format_html
from django_q.tasks import async_task
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from controlplane.adminsite import ReadOnlyAdmin, ReadOnlyInline, choices
from controlplane.secrets import SecretUnreadable
from enrollment.admin import AddressForm, token_field
from enrollment.forges.base import ForgeError
from enrollment.models import Repository
from runs import approval, manual
from runs.deferred import admin as deferred_admin  # noqa: F401 - registers itself
from runs.executors.check import check_executor
from runs.manual_actions import ACTIONS, NotDone
from runs.models import (
    ACTIVE,
    Artefact,
    CaseResult,
    ExecutorChoice,
    RemoteExecutor,
    Report,
    RunEvent,
    ScheduledRun,
    StageResult,
    State,
    TestRun,
)

STATE_LABELS = {
    "passed": "success",
    "failed": "danger",
    "errored": "warning",
    "timed out": "warning",
    "cancelled": "info",
    "superseded": "info",
    "running": "primary",
    "starting": "primary",
}


class StageInline(ReadOnlyInline):
    model = StageResult
    fields = ("name", "status", "reason", "seconds")


class EventInline(ReadOnlyInline):
    model = RunEvent
    fields = ("at", "attempt", "kind", "stage", "text")


class RemoteExecutorForm(AddressForm):
    token = token_field("Its user needs write access to the runner repository.")
    hook_secret = token_field("Drone's DRONE_WEBHOOK_SECRET, if it sends webhooks. Without one they are ignored.")

    class Meta:
        model = RemoteExecutor
        fields = ("name", "kind", "url", "token", "repository", "branch", "slots", "hook_secret", "forges")

    def clean_hook_secret(self) -> Any:
        if not self.cleaned_data["hook_secret"] and "hook_secret" in self.changed_data:
            self.changed_data.remove("hook_secret")
        return self.cleaned_data["hook_secret"] or self.instance.hook_secret

    def clean_forges(self) -> Any:
        for forge in self.cleaned_data["forges"]:
            other = RemoteExecutor.objects.filter(forges=forge).exclude(pk=self.instance.pk).first()
            if other:
                raise forms.ValidationError(f"{forge} uses {other} already: remove it there first.")
        return self.cleaned_data["forges"]


@admin.register(RemoteExecutor)
class RemoteExecutorAdmin(ModelAdmin):
    form = RemoteExecutorForm
    list_display = ("name", "kind", "version", "url", "repository", "failures", "last_error")
    readonly_fields = ("version", "capabilities", "failures", "open_until", "last_error")
    actions = ["check_now"]

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        rows, counts, missing, protected = super().get_deleted_objects(objs, request)
        runs = TestRun.objects.filter(executor__in=objs, state__in=ACTIVE).select_related("executor")
        words = [f"{run} is under way on {run.executor}: cancel it, or wait for its end" for run in runs]
        return rows, counts, set() if words else missing, words or protected

    @action(description="Check now", permissions=["change"])
    def check_now(self, request: HttpRequest, queryset: QuerySet[RemoteExecutor]) -> None:
        levels = {"ok": messages.SUCCESS, "warning": messages.WARNING, "error": messages.ERROR}
        for row in queryset:
            for finding in check_executor(row):
                self.message_user(request, f"{finding.name}: {finding.text}. {finding.fix}", levels[finding.level])


@admin.register(ExecutorChoice)
class ExecutorChoiceAdmin(ModelAdmin):
    list_display = ("repository", "executor")
    list_select_related = ("repository", "executor")
    autocomplete_fields = ("repository",)


@admin.register(TestRun)
class TestRunAdmin(ReadOnlyAdmin):
    list_display = (
        "short_id",
        "repository",
        "pull_request",
        "short_sha",
        "result",
        "level",
        "requested_by",
        "created_at",
        "took",
        "page",
    )
    list_filter = (
        "state",
        "level",
        "repository__forge",
        "repository",
        "trusted",
        "deployer",
        "host",
        ("created_at", admin.DateFieldListFilter),
    )
    search_fields = ("id", "sha", "requested_by", "repository__owner", "repository__name", "reason")
    list_select_related = ("repository", "pull_request__repository")
    date_hierarchy = "created_at"
    inlines = [StageInline, EventInline]
    exclude = ("log", "log_offset", "event_seq")
    actions = ["run", "run_with_extra_tests", "cancel", "approve"]

    @display(description="state", label=STATE_LABELS)
    def result(self, run: TestRun) -> str:
        return State(run.state).label

    @display(description="took")
    def took(self, run: TestRun) -> str:
        return f"{run.seconds:.0f} s" if run.seconds is not None else ""

    @display(description="page")
    def page(self, run: TestRun) -> str:
        return format_html('<a href="{}">open</a>', run.get_absolute_url())

    @action(description="Run again")
    def run(self, request: HttpRequest, queryset: QuerySet[TestRun]) -> None:
        self._act(request, queryset, "again")

    @action(description="Run again with extra tests")
    def run_with_extra_tests(self, request: HttpRequest, queryset: QuerySet[TestRun]) -> None:
        self._act(request, queryset, "again-with-extra-tests")

    @action(description="Cancel")
    def cancel(self, request: HttpRequest, queryset: QuerySet[TestRun]) -> None:
        self._act(request, queryset, "cancel")

    @action(description="Approve (runs awaiting approval)")
    def approve(self, request: HttpRequest, queryset: QuerySet[TestRun]) -> None:
        self._act(request, queryset, "approve")

    def _act(self, request: HttpRequest, queryset: QuerySet[TestRun], name: str) -> None:
        _may_run(request)
        for run in queryset.select_related("repository__forge", "pull_request"):
            try:
                new = ACTIONS[name].do(run, request.user.get_username(), manual.ADMIN)
            except NotDone as refusal:
                self.message_user(request, str(refusal), messages.ERROR)
            else:
                link = format_html('<a href="{}">{}</a>', new.get_absolute_url(), new)
                self.message_user(request, format_html("{}: {}", link, ACTIONS[name].done.format(run=new)), messages.SUCCESS)


@admin.register(ScheduledRun)
class ScheduledRunAdmin(ReadOnlyAdmin):
    list_display = ("repository", "kind", "night", "extra", "version", "run", "change", "note", "created_at")
    list_filter = ("kind", "change", "repository")
    search_fields = ("repository__owner", "repository__name", "version")
    list_select_related = ("repository", "run")


@admin.register(StageResult)
class StageResultAdmin(ReadOnlyAdmin):
    list_display = ("run", "name", "status", "seconds", "reason")
    list_filter = ("name", "status", "run__repository")
    search_fields = ("run__id", "reason")
    list_select_related = ("run",)


@admin.register(Artefact)
class ArtefactAdmin(ReadOnlyAdmin):
    list_display = ("name", "kind", "run", "size", "page")
    list_filter = ("kind", "run__repository")
    search_fields = ("name", "run__id")
    list_select_related = ("run",)
    exclude = ("data",)

    @display(description="size", ordering="bytes")
    def size(self, row: Artefact) -> str:
        return filesizeformat(row.bytes)

    @display(description="page")
    def page(self, row: Artefact) -> str:
        return format_html('<a href="{}">open</a>', row.get_absolute_url())


@admin.register(CaseResult)
class CaseResultAdmin(ReadOnlyAdmin):
    list_display = ("name", "file", "status", "seconds", "stage")
    list_filter = ("status", "stage__name", "stage__run__repository")
    search_fields = ("name", "file", "message")
    list_select_related = ("stage__run",)


@admin.register(RunEvent)
class RunEventAdmin(ReadOnlyAdmin):
    list_display = ("at", "run", "attempt", "kind", "stage", "text")
    list_filter = ("kind", "stage", ("at", admin.DateFieldListFilter))
    search_fields = ("run__id", "text")
    list_select_related = ("run",)


@admin.register(Report)
class ReportAdmin(ReadOnlyAdmin):
    list_display = ("key", "kind", "repository", "standing", "posted_at", "tries", "next_try_at", "trouble")
    list_filter = (
        "kind",
        choices(
            "status",
            "standing",
            {
                "due": ("due", Q(next_try_at__isnull=False)),
                "failing": ("failing", Q(next_try_at__isnull=False) & ~Q(last_error="")),
                "given-up": ("given up", Q(given_up=True)),
            },
        ),
        "repository__forge",
        "repository",
    )
    search_fields = ("key", "last_error", "marker")
    list_select_related = ("repository",)
    actions = ["try_now"]

    @display(description="status", label={"up to date": "success", "due": "info", "failing": "danger", "given up": "warning"})
    def standing(self, report: Report) -> str:
        if report.given_up:
            return "given up"
        if report.next_try_at is None:
            return "up to date"
        return "failing" if report.last_error else "due"

    @display(description="last error")
    def trouble(self, report: Report) -> str:
        return report.last_error[:120]

    @action(description="Retry now", permissions=["act"])
    def try_now(self, request: HttpRequest, queryset: QuerySet[Report]) -> None:
        for report in queryset:
            if report.next_try_at is not None or report.given_up:
                Report.objects.filter(pk=report.pk).update(next_try_at=timezone.now(), given_up=False)
                async_task("runs.tasks.send_report", report.pk)
        self.message_user(request, "They will be retried within seconds.")


def _may_run(request: HttpRequest) -> None:
    if not approval.may_ask(request.user):
        raise PermissionDenied("Asking for runs requires the permission to add runs.")


# --- actions on a repository: hung up here, since enrollment knows nothing of runs


@action(description="Run the default branch")
def run(model_admin: ModelAdmin, request: HttpRequest, queryset: QuerySet[Repository]) -> None:
    _run(model_admin, request, queryset, extra=False)


@action(description="Run the default branch with extra tests")
def run_with_extra_tests(model_admin: ModelAdmin, request: HttpRequest, queryset: QuerySet[Repository]) -> None:
    _run(model_admin, request, queryset, extra=True)


def _run(model_admin: ModelAdmin, request: HttpRequest, queryset: QuerySet[Repository], *, extra: bool) -> None:
    _may_run(request)
    for row in queryset:
        try:
            new = manual.run_repository(row, request.user.get_username(), extra=extra)
        except (ForgeError, SecretUnreadable) as error:
            model_admin.message_user(request, f"{row.full_name}: {error}", messages.ERROR)
            continue
        text = format_html('{}: <a href="{}">{}</a> is queued.', row.full_name, new.get_absolute_url(), new)
        model_admin.message_user(request, text, messages.SUCCESS)


repository_admin = admin.site._registry[Repository]
repository_admin.actions = [*(repository_admin.actions or []), run, run_with_extra_tests]
