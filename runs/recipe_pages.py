"""The pages of recipes and pull requests, and the start page's table of recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.paginator import Paginator
from django.db.models import Avg, Prefetch
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from enrollment.models import PullRequest, Repository
from runs import case_history, commands
from runs.comparison import compare
from runs.deferred import registry
from runs.harness.stage_table import DEFAULT_STAGES, STAGES, StageName
from runs.models import ACTIVE, JUDGED, CaseResult, StageResult, State, TestRun
from runs.overview import SHOWN, SORTS, VERDICTS, charts, chosen, overviews
from runs.permissions import repository_or_login, visible_repositories, visible_runs
from runs.shared_pages import badge_markdown
from runs.views import whole

#: Rows of the table on one page.
PAGE = 200
#: Runs that charts cover, and runs among which the slowest tests are looked for.
CHARTED, TIMED = 60, 10
#: Rows of each list of a recipe's page.
MOST = 10


def repositories_card(request: HttpRequest) -> dict[str, Any]:
    """The start page's table of recipes."""
    asked = {name: request.GET.get(name, "") for name in ("show", "sort", "search")}
    everything = overviews(visible_repositories(request).watched().select_related("forge"))
    rows = chosen(everything, show=asked["show"], sort=asked["sort"], search=asked["search"])
    return {
        "count": len(everything),
        "page": Paginator(rows, PAGE).get_page(request.GET.get("page")),
        "asked": asked,
        "sorts": [(key, label) for key, (label, _) in SORTS.items()],
        "shown": [(key, label) for key, (label, _) in SHOWN.items()],
        "stages": STAGES,
    }


@require_safe
def recipe(request: HttpRequest, repository_id: int) -> HttpResponse:
    """One recipe: how its runs end, stage by stage, what is slow or flaky, what was tested, what is deferred."""
    row = repository_or_login(request, repository_id)
    if isinstance(row, HttpResponse):
        return row
    runs = visible_runs(request).filter(repository=row).defer("log")
    counting = list(runs.filter(trusted=True, quick=False, state__in=JUDGED)[:CHARTED])
    stages = StageResult.objects.filter(run__in=counting, status__in=VERDICTS).order_by("run__created_at")
    extra = next((run for run in counting if StageName.EXTRA in run.stages), None)
    timed = CaseResult.objects.filter(stage__run__in=counting[:TIMED], status="passed", stage__taken_from=None)
    slowest = timed.order_by().values("stage__name", "file", "name").annotate(average=Avg("seconds")).order_by("-average")
    found = case_history.sorted_cases(case_history.flaky(row.pk))
    (overview,) = overviews([row])
    context = {
        "repository": row,
        "overview": overview,
        "last": next(iter(counting), None),
        "charts": charts(list(stages.values_list("name", "status", "seconds"))),
        "covered": len(counting),
        "extra": extra,
        "slowest": list(slowest[:MOST]),
        "timed": min(TIMED, len(counting)),
        "flaky": found[:MOST],
        "versions": _versions(counting),
        "deferred": list(registry.public(registry.items(only_open=True), [row.pk]).filter(recipe=row)[:MOST]),
        "pulls": _pulls(row),
        "runs": list(runs[:MOST]),
        "command": commands.RUN.form,
        "badge": "" if row.private else badge_markdown(row),
        "preview": f"The newest verdict: {overview.state.replace('_', ' ')}." if overview.state else "Not tested yet.",
    }
    return render(request, "runs/recipe.html", context)


def _versions(runs: Sequence[TestRun]) -> list[TestRun]:
    """The newest run of each version that was deployed."""
    found: dict[str, TestRun] = {}
    for run in runs:
        if version := run.details.get("version"):
            found.setdefault(version, run)
    return list(found.values())[:MOST]


def _pulls(row: Repository) -> list[PullRequest]:
    """Its newest open pull requests that were tested, each with its newest run as `runs_so_far[0]`."""
    pulls = PullRequest.objects.filter(repository=row, state="open", runs__isnull=False).distinct().order_by("-number")
    newest = TestRun.objects.defer("log").order_by("-created_at")[:1]
    return list(pulls.prefetch_related(Prefetch("runs", newest, to_attr="runs_so_far"))[:MOST])


@require_safe
def pull_request(request: HttpRequest, repository_id: int, number: int) -> HttpResponse:
    """One pull request: all its runs, what stands between it and a merge, and what changed since a run passed."""
    row = repository_or_login(request, repository_id)
    if isinstance(row, HttpResponse):
        return row
    pull = get_object_or_404(row.pull_requests.select_related("repository__forge"), number=number)
    runs = list(visible_runs(request).filter(pull_request=pull).defer("log")[:PAGE])
    now = next((run for run in runs if run.state in JUDGED and not run.quick), None)
    before = _passed_before(pull, now) if now else None
    context = {
        "pull": pull,
        "runs": runs,
        "obstacles": obstacles(pull, runs),
        "now": now,
        "failing": [case for case in _cases(now) if case.status in case_history.FAILING] if now else [],
        "comparison": compare(whole(before), whole(now)) if before and now else None,
        "flaky": case_history.sorted_cases(case_history.flaky(pull.repository_id, now.sha if now else "")),
        "command": commands.RUN.form,
        "with_extra": commands.OPTIONS["--extra-tests"].form,
    }
    return render(request, "runs/pull_request.html", context)


def _cases(run: TestRun) -> list[CaseResult]:
    return list(CaseResult.objects.filter(stage__run=run, status__in=case_history.FAILING).select_related("stage")[:MOST])


def _passed_before(pull: PullRequest, now: TestRun) -> TestRun | None:
    """The newest run before `now` that passed in full: of the pull request, else of the branch that it goes to."""
    passed = TestRun.objects.filter(repository=pull.repository_id, state=State.PASSED, quick=False, created_at__lt=now.created_at)
    passed = passed.select_related("repository__forge", "pull_request").defer("log").order_by("-created_at")
    base = pull.base_ref or pull.repository.default_branch
    return passed.filter(pull_request=pull).first() or passed.filter(pull_request=None, ref=f"refs/heads/{base}").first()


def obstacles(pull: PullRequest, runs: Sequence[TestRun]) -> list[str]:
    """What stands between a pull request and a merge, as sentences; nothing if its newest commit passed in full. Pure.

    `runs`: its own, the newest first.
    """
    if pull.state == "closed":
        return ["The pull request is closed."]
    head = pull.head_sha or (runs[0].sha if runs else "")
    run = next((run for run in runs if run.sha == head and not run.quick), None)
    if run is None:
        return [f"Its newest commit, {head[:10]}, has not been tested." if head else "It has not been tested."]
    told = {
        State.AWAITING_APPROVAL: "A run of its newest commit waits for a maintainer's approval.",
        State.CANCELLED: "The run of its newest commit was cancelled.",
        State.SUPERSEDED: "The run of its newest commit was superseded.",
        State.ERRORED: f"The run of its newest commit could not be completed, which is not the recipe's fault. {run.reason}",
        State.FAILED: run.reason or "The run of its newest commit failed.",
        State.TIMED_OUT: run.reason or "The run of its newest commit timed out.",
    }
    if run.state in ACTIVE and run.state not in told:
        return ["A run of its newest commit is in progress."]
    if run.state != State.PASSED:
        return [told[State(run.state)].strip()]
    tested = {*run.stages, *run.taken_over}
    missing = [stage for stage in DEFAULT_STAGES if stage not in tested]
    found = [f"Its newest commit passed, but without these stages: {', '.join(missing)}."] if missing else []
    if run.teardown.get("clean") is False:
        found.append("Its newest commit passed, but the teardown left something behind.")
    return found
