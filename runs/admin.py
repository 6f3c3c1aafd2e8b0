"""Admin pages of runs, their trail, and their reports to the forge."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat, truncatechars
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django_q.tasks import async_task
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from controlplane.adminsite import BigAdmin, NotDone, ReadOnlyAdmin, ReadOnlyInline, choices, row_action, values
from controlplane.models import Host
from controlplane.secrets import SecretUnreadable
from enrollment.admin import AddressForm, token_field
from enrollment.forges.base import ForgeError
from enrollment.models import Repository
from runs import approval, manual, search
from runs.deferred import admin as deferred_admin  # noqa: F401 - registers itself
from runs.executors.check import check_executor
from runs.harness.stage_table import STAGES
from runs.manual_actions import ACTIONS
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
from runs.render import STAGE_MARK

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
STATUSES = {name: name.replace("_", " ") for name in STAGE_MARK if name != "running"}
#: Kinds of events that one looks for; the harness has more.
EVENTS = {name: name for name in (*State.values, "stop_wanted", "approved", "lost", "stage_finished")}


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


#: Columns that a list of runs does not need, and that are most of a row.
HEAVY = ("log", "details", "warnings", "teardown", "stages", "taken_over", "stop_reason", "build_url")


def heavy_of(run: str) -> tuple[str, ...]:
    """The same for a list of what belongs to runs, which shows no reason either. `run`: the path to it."""
    return tuple(f"{run}__{name}" for name in (*HEAVY, "reason"))


#: Filters by columns without an index read at most the runs of this time.
LATELY = timedelta(days=90)


def lately(**values: Any) -> Q:
    return Q(created_at__gt=timezone.now() - LATELY, **values)


def _levels() -> dict[str, tuple[str, Q]]:
    return {str(level): (str(level), lately(level=level)) for level in range(6)}


def _machines() -> dict[str, tuple[str, Q]]:
    return {name: (name, lately(host=name)) for name in Host.objects.values_list("name", flat=True)}


def _trust() -> dict[str, tuple[str, Q]]:
    return {"yes": ("trusted", lately(trusted=True)), "no": ("a stranger's", lately(trusted=False))}


#: The newest runs that a search means; more rows of runs nobody pages through.
RUNS = 1000


class RunPages(BigAdmin, ReadOnlyAdmin):
    """Of rows of runs, found by what finds the run, or a text. `run`: the path to it."""

    run = "run"

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[Any], search_term: str) -> tuple[QuerySet[Any], bool]:
        if search_term:
            found = search.found(TestRun.objects.order_by("-created_at"), search_term, Repository.objects.all())
            if runs := list(found.values_list("pk", flat=True)[:RUNS]):
                return queryset.filter(**{f"{self.run}__in": runs}), False
        return super().get_search_results(request, queryset, search_term)

    @display(description="run")
    def of_run(self, row: Any) -> SafeString:
        run = row
        for name in self.run.split("__"):
            run = getattr(run, name)
        return _link(run, f"{run} of {run.repository}")


def _link(run: Any, text: str) -> SafeString:
    return format_html('<a href="{}" class="cc-link">{}</a>', run.get_absolute_url(), text)


FINDS = "A recipe, #12, at least 7 digits of a commit or a run, or who asked"


@admin.register(TestRun)
class TestRunAdmin(BigAdmin, ReadOnlyAdmin):
    list_display = ("page", "about", "short_sha", "result", "level", "created_at", "took", "requested_by", "reason_short")
    list_display_links = None
    list_filter = (
        "state",
        choices("level (last 90 days)", "level", _levels),
        choices("code (last 90 days)", "trust", _trust),
        choices("machine (last 90 days)", "machine", _machines),
        "repository__forge",
        ("created_at", admin.DateFieldListFilter),
    )
    search_fields = ("pk",)
    search_help_text = FINDS
    ordering = ("-created_at", "-id")
    list_select_related = ("repository", "pull_request")
    deferred = HEAVY
    inlines = [StageInline, EventInline]
    fieldsets = (
        (None, {"fields": ("repository", "pull_request", "comment", "requested_by", "commit", "state", "reason", "level")}),
        ("What is run", {"fields": ("asked_stages", "trusted", "quick", "scheduled", "retry_of", "kept_stages", "upgrade_from")}),
        ("When", {"fields": ("created_at", "started_at", "finished_at", "stop_wanted", "stop_reason")}),
        ("Where", {"fields": ("host", "executor", "executor_name", "build_url", "attempt", "deployer", "sandbox")}),
        ("What it left", {"fields": ("warnings", "teardown", "details"), "classes": ("collapse",)}),
    )
    readonly_fields = ("created_at", "commit", "asked_stages", "kept_stages")
    actions = ["run", "run_with_extra_tests", "cancel", "approve"]

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[Any], search_term: str) -> tuple[QuerySet[Any], bool]:
        return (search.found(queryset, search_term, Repository.objects.all()) if search_term else queryset), False

    def has_run_permission(self, request: HttpRequest) -> bool:
        return approval.may_ask(request.user)

    @display(description="run")
    def page(self, run: TestRun) -> SafeString:
        record = reverse("admin:runs_testrun_change", args=[run.pk])
        return format_html('{} <a href="{}" class="cc-soft">record</a>', _link(run, run.short_id), record)

    @display(description="recipe")
    def about(self, run: TestRun) -> str:
        return f"{run.repository}#{run.pull_request.number}" if run.pull_request else str(run.repository)

    @display(description="commit")
    def short_sha(self, run: TestRun) -> str:
        return run.short_sha

    @display(description="commit")
    def commit(self, run: TestRun) -> str:
        return run.sha

    @display(description="stages")
    def asked_stages(self, run: TestRun) -> str:
        return ", ".join(map(str, run.stages))

    @display(description="stages taken over from the run that this repeats")
    def kept_stages(self, run: TestRun) -> str:
        return ", ".join(map(str, run.taken_over)) or "–"

    @display(description="state", label=STATE_LABELS)
    def result(self, run: TestRun) -> str:
        return State(run.state).label

    @display(description="took")
    def took(self, run: TestRun) -> str:
        return f"{run.seconds:.0f} s" if run.seconds is not None else "–"

    @display(description="reason")
    def reason_short(self, run: TestRun) -> str:
        return truncatechars(run.reason, 80)

    @row_action("Run again", "run", "{row} is repeated at its commit, as a new run by you.")
    def run(self, request: HttpRequest, run: TestRun) -> SafeString:
        return _do(request, run, "again")

    @row_action(
        "Run again with extra tests", "run", "{row} is repeated at its commit, with its extra tests, as a new run by you."
    )
    def run_with_extra_tests(self, request: HttpRequest, run: TestRun) -> SafeString:
        return _do(request, run, "again-with-extra-tests")

    @row_action("Cancel", "run", "{row} ends now without a verdict. What it deployed is removed.", danger=True)
    def cancel(self, request: HttpRequest, run: TestRun) -> SafeString:
        return _do(request, run, "cancel")

    @row_action("Approve (runs awaiting approval)", "run", "{row} deploys and runs a stranger's code. Read it first.")
    def approve(self, request: HttpRequest, run: TestRun) -> SafeString:
        return _do(request, run, "approve")


def _do(request: HttpRequest, run: TestRun, name: str) -> SafeString:
    action = ACTIONS[name]
    try:
        new = action.do(run, request.user.get_username(), manual.ADMIN)
    except manual.NotDone as refusal:
        raise NotDone(str(refusal)) from refusal
    return format_html("{}: {}", _link(new, str(new)), action.done.format(run=new))


@admin.register(ScheduledRun)
class ScheduledRunAdmin(RunPages):
    list_display = ("repository", "what_for", "night", "outcome", "change", "created_at")
    list_filter = ("kind", values("change", "change", {"worse": "worse", "better": "better"}), "repository__forge")
    search_fields = ("repository__name", "version")
    search_help_text = f"{FINDS}; or a version, among the newest"
    list_select_related = ("repository", "run__repository")
    deferred = heavy_of("run")

    @display(description="tested")
    def what_for(self, row: ScheduledRun) -> str:
        return f"{row.what}, with extra tests" if row.extra else row.what

    @display(description="run")
    def outcome(self, row: ScheduledRun) -> str:
        return _link(row.run, f"{row.run}: {State(row.run.state).label}") if row.run else row.note


@admin.register(StageResult)
class StageResultAdmin(RunPages):
    list_display = ("of_run", "name", "status", "seconds", "reason")
    list_filter = (values("stage", "name", {name: name for name in STAGES}), values("status", "status", STATUSES))
    search_fields = ("reason",)
    search_help_text = f"{FINDS}; or a reason, among the newest"
    list_select_related = ("run__repository",)
    deferred = heavy_of("run")


@admin.register(Artefact)
class ArtefactAdmin(RunPages):
    list_display = ("name", "kind", "of_run", "size", "page")
    list_filter = (values("kind", "kind", dict(Artefact.Kind.choices)),)
    search_fields = ("name",)
    search_help_text = f"{FINDS}; or a name, among the newest"
    list_select_related = ("run__repository",)
    deferred = ("data", *heavy_of("run"))
    exclude = ("data",)

    @display(description="size")
    def size(self, row: Artefact) -> str:
        return filesizeformat(row.bytes)

    @display(description="page")
    def page(self, row: Artefact) -> SafeString:
        return format_html('<a href="{}" class="cc-link">open</a>', row.get_absolute_url())


@admin.register(CaseResult)
class CaseResultAdmin(RunPages):
    run = "stage__run"
    list_display = ("name", "file", "status", "seconds", "stage_name", "of_run")
    list_filter = (values("status", "status", STATUSES),)
    search_fields = ("name", "file")
    search_help_text = f"{FINDS}; or a test's name, among the newest"
    list_select_related = ("stage__run__repository",)
    deferred = ("message", "output", *heavy_of("stage__run"))

    @display(description="stage")
    def stage_name(self, row: CaseResult) -> str:
        return row.stage.name


@admin.register(RunEvent)
class RunEventAdmin(RunPages):
    list_display = ("at", "of_run", "attempt", "kind", "stage", "text")
    list_filter = (values("kind", "kind", EVENTS), ("at", admin.DateFieldListFilter))
    search_fields = ("text",)
    search_help_text = f"{FINDS}; or a text, among the newest"
    list_select_related = ("run__repository",)
    deferred = ("data", *heavy_of("run"))


@admin.register(Report)
class ReportAdmin(RunPages):
    list_display = ("about", "kind", "standing", "posted_at", "tries", "next_try_at", "trouble")
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
    )
    search_fields = ("key", "last_error", "marker")
    search_help_text = f"{FINDS}; or an error, among the newest"
    list_select_related = ("repository", "pull_request__repository", "run__repository")
    deferred = ("wanted", "stale_ids", *heavy_of("run"))
    actions = ["try_now"]

    @display(description="about")
    def about(self, report: Report) -> str:
        if report.run:
            return _link(report.run, f"{report.run} of {report.run.repository}")
        return str(report.pull_request or report.repository)

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

    @row_action("Retry now", "act")
    def try_now(self, request: HttpRequest, report: Report) -> str:
        if report.next_try_at is None and not report.given_up:
            raise NotDone(f"{report} is up to date.")
        Report.objects.filter(pk=report.pk).update(next_try_at=timezone.now(), given_up=False)
        async_task("runs.tasks.send_report", report.pk)
        return f"{report} will be retried within seconds."


# --- actions on a repository: hung up here, since enrollment knows nothing of runs


@row_action("Run the default branch", "run", "The newest commit of the default branch of {row} is tested, as a run by you.")
def run(model_admin: ModelAdmin, request: HttpRequest, row: Repository) -> SafeString:
    return _run(request, row, extra=False)


@row_action("Run the default branch with extra tests", "run", "The same of {row}, with its extra tests, which may take long.")
def run_with_extra_tests(model_admin: ModelAdmin, request: HttpRequest, row: Repository) -> SafeString:
    return _run(request, row, extra=True)


def _run(request: HttpRequest, row: Repository, *, extra: bool) -> SafeString:
    try:
        new = manual.run_repository(row, request.user.get_username(), extra=extra)
    except (ForgeError, SecretUnreadable) as error:
        raise NotDone(f"{row.full_name}: {error}") from error
    return format_html("{}: {} is queued.", row.full_name, _link(new, str(new)))


def _may_run(page: ModelAdmin, request: HttpRequest) -> bool:
    return approval.may_ask(request.user)


repository_admin = admin.site._registry[Repository]
repository_admin.actions = [*(repository_admin.actions or []), run, run_with_extra_tests]
type(repository_admin).has_run_permission = _may_run  # type: ignore[attr-defined]
