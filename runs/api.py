"""The API's operations on runs and recipes.

Who sees what, and who may do what, is decided by the functions that the pages and the admin use.
"""

# No `from __future__ import annotations`: django-ninja needs those of paginated functions as objects.

from datetime import datetime
from typing import Annotated
from uuid import UUID

from django.db.models import Count, OuterRef, Prefetch, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from ninja import Field, Path, Query, Router, Schema
from ninja.pagination import paginate
from ninja.responses import Status
from pydantic import StrictBool

from controlplane.api import FullName, Newest, Number, Refused, Scope, Text, answers, one_of
from controlplane.secrets import SecretUnreadable
from enrollment.forges.base import ForgeError, explain
from enrollment.models import Repository
from runs import approval, manual, search
from runs.manual_actions import ACTIONS
from runs.models import FINAL, CaseResult, StageResult, State, TestRun
from runs.permissions import visible_repositories, visible_runs

#: As many runs in a page of a recipe's history, since each comes with all its tests.
HISTORY = 25

RunState = Annotated[State, one_of(State)]

router = Router(tags=["runs"])
recipes = Router(tags=["recipes"])


class Run(Schema):
    id: UUID
    url: str = Field(description="Its page.")
    repository: str = Field(validation_alias="repository.full_name", description="OWNER/REPO.")
    forge: str = Field(validation_alias="repository.forge.url")
    pull_request: int | None
    ref: str
    sha: str = Field(description="The commit that is tested, whatever happens to the branch.")
    stages: list[str]
    requested_by: str
    trusted: bool
    quick: bool = Field(description="It started on known-good data, and does not count.")
    state: RunState
    reason: str = Field(description="What failed, and what to do; empty if nothing.")
    level: int | None = Field(description="How far the recipe got, from 0 to 5.")
    retry_of: UUID | None = Field(validation_alias="retry_of_id")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @staticmethod
    def resolve_pull_request(run: TestRun) -> int | None:
        return run.pull_request.number if run.pull_request else None


class Case(Schema):
    name: str
    file: str
    status: str
    seconds: float


class CaseWithMessage(Case):
    message: str


class Stage(Schema):
    name: str
    status: str
    reason: str
    seconds: float
    cases: list[CaseWithMessage]


class RunWithResults(Run):
    deployer: str
    sandbox: str
    warnings: list[str]
    results: list[Stage] = Field(validation_alias="stage_results")


class Log(Schema):
    state: RunState
    log: str = Field(description="Its last part, if it is long.")


class Recipe(Schema):
    id: Number
    repository: str = Field(validation_alias="full_name", description="OWNER/REPO.")
    forge: str = Field(validation_alias="forge.url")
    private: bool
    default_branch: str
    last_run: UUID | None = Field(description="Its newest run with a verdict.")
    last_state: RunState | None


class StageOfTest(Schema):
    stage: str = Field(validation_alias="name")
    status: str
    cases: list[Case]


class Tested(Schema):
    """What one run showed about the recipe's tests."""

    run: UUID = Field(validation_alias="pk")
    sha: str
    state: RunState
    created_at: datetime
    results: list[StageOfTest] = Field(validation_alias="stage_results")


class Filters(Schema):
    state: RunState | None = None
    active: bool = Field(False, description="Only runs that have not ended.")
    repository: FullName | None = None


class Start(Schema, extra="forbid"):
    """Which repository's default branch to run."""

    repository: FullName
    forge: Text = Field("", description="URL or name of the forge, if several have a repository of this name.")
    sha: str = Field(
        "",
        pattern="^([0-9a-f]{40}|[0-9a-f]{64})?$",
        description="The commit that the branch must be at. Empty: whichever it is at; the run is pinned to that.",
    )
    extra_tests: StrictBool = False


class Again(Schema, extra="forbid"):
    extra_tests: StrictBool = Field(
        False, description="Also run the extra tests; they are run anyway if the earlier run had them."
    )


@router.get("", **answers(Scope.READ, list[Run]))
@paginate(Newest, at="created_at")
def list_runs(request: HttpRequest, filters: Query[Filters]) -> QuerySet[TestRun]:
    """List runs, newest first."""
    runs = visible_runs(request).defer("log", "details")
    if filters.state:
        runs = runs.filter(state=filters.state)
    if filters.active:
        runs = search.active(runs)
    if filters.repository:
        owner, _, name = filters.repository.partition("/")
        runs = runs.filter(repository__in=list(visible_repositories(request).filter(owner__iexact=owner, name__iexact=name)))
    return runs


@router.get("/{run_id}", **answers(Scope.READ, RunWithResults))
def show_run(request: HttpRequest, run_id: UUID) -> TestRun:
    """Show one run, with its stages and tests."""
    cases = Prefetch("stage_results__cases", CaseResult.objects.defer("output"))
    return get_object_or_404(visible_runs(request).prefetch_related(cases), pk=run_id)


@router.get("/{run_id}/log", **answers(Scope.READ, Log))
def show_log(request: HttpRequest, run_id: UUID) -> TestRun:
    """Show a run's log."""
    return get_object_or_404(visible_runs(request), pk=run_id)


@router.post("", **answers(Scope.RUN, Run, 201))
def start_run(request: HttpRequest, given: Start) -> Status[TestRun]:
    """Start a run of a default branch's newest commit, as the admin's action does."""
    _may_ask(request)
    owner, _, name = given.repository.partition("/")
    rows = visible_repositories(request).watched().filter(owner__iexact=owner, name__iexact=name).select_related("forge")
    found = [row for row in rows if given.forge.rstrip("/") in ("", row.forge.url, row.forge.name)]
    if not found:
        raise Refused(404, f"{given.repository} is not watched, or this token may not see it. GET /api/recipes lists what is.")
    if len(found) > 1:
        raise Refused(409, f"Several forges have it; add forge, one of: {', '.join(row.forge.url for row in found)}")
    who, where = _who(request), _where(request)
    try:
        return Status(201, manual.run_repository(found[0], who, extra=given.extra_tests, expected=given.sha, where=where))
    except manual.Moved as refusal:
        raise Refused(409, str(refusal)) from refusal
    except (ForgeError, SecretUnreadable) as error:
        raise Refused(502, explain(error)) from error


@router.post("/{run_id}/again", **answers(Scope.RUN, Run, 201))
def run_again(request: HttpRequest, run_id: UUID, given: Again) -> Status[TestRun]:
    """Run all stages again on the same commit. A stranger's run keeps its approval, which is checked again."""
    return Status(201, _act(request, run_id, "again-with-extra-tests" if given.extra_tests else "again"))


@router.post("/{run_id}/cancel", **answers(Scope.RUN, Run))
def cancel_run(request: HttpRequest, run_id: UUID) -> TestRun:
    """Cancel a run. One that is under way ends as soon as it is torn down."""
    return _act(request, run_id, "cancel")


@router.post("/{run_id}/approve", **answers(Scope.APPROVE, Run))
def approve_run(request: HttpRequest, run_id: UUID) -> TestRun:
    """Approve a stranger's run that waits for it, for the commit that it is pinned to."""
    return _act(request, run_id, "approve")


def _act(request: HttpRequest, run_id: UUID, action: str) -> TestRun:
    _may_ask(request)
    run = get_object_or_404(visible_runs(request), pk=run_id)
    try:
        return ACTIONS[action].do(run, _who(request), _where(request))
    except manual.NotDone as refusal:
        raise Refused(502 if refusal.passing else 409, str(refusal)) from refusal


def _may_ask(request: HttpRequest) -> None:
    if not approval.may_ask(request.user):
        raise Refused(403, f"{_who(request)} lacks the permission to add runs. A superuser gives it in the admin.")


def _who(request: HttpRequest) -> str:
    return str(request.user.get_username())


def _where(request: HttpRequest) -> str:
    return f"through the API with the token {request.auth}"  # type: ignore[attr-defined]


@recipes.get("", **answers(Scope.READ, list[Recipe]))
@paginate(Newest)
def list_recipes(request: HttpRequest) -> QuerySet[Repository]:
    """List the watched recipes, those enrolled last first, each with its newest verdict."""
    ended = TestRun.objects.filter(repository=OuterRef("pk"), quick=False, state__in=FINAL)
    last = ended.exclude(state__in=[State.CANCELLED, State.SUPERSEDED]).order_by("-created_at")
    rows = visible_repositories(request).watched().select_related("forge")
    return rows.annotate(last_run=Subquery(last.values("pk")[:1]), last_state=Subquery(last.values("state")[:1]))


class Tests(Schema):
    stage: Text = ""
    name: Text = Field("", description="Only tests of this name.")


@recipes.get("/{recipe_id}/tests", **answers(Scope.READ, list[Tested]))
@paginate(Newest, at="created_at", most=HISTORY, weight="tests")
def list_tests(request: HttpRequest, recipe_id: Path[Number], filters: Query[Tests]) -> QuerySet[TestRun]:
    """List what the recipe's runs showed about each test, newest first."""
    row = get_object_or_404(visible_repositories(request), pk=recipe_id)
    stages, cases = StageResult.objects.all(), CaseResult.objects.defer("message", "output")
    if filters.stage:
        stages, cases = stages.filter(name=filters.stage), cases.filter(stage__name=filters.stage)
    if filters.name:
        cases = cases.filter(name=filters.name)
    # A stranger's run may have thousands of tests, and 25 of them would be 80 MB.
    tests = cases.filter(stage__run=OuterRef("pk")).order_by().values("stage__run").annotate(count=Count("pk")).values("count")
    # On other data, as quick runs have it, the same test may end differently.
    found = visible_runs(request).filter(repository=row, quick=False, state__in=FINAL).defer("log", "details")
    found = found.annotate(tests=Coalesce(Subquery(tests), 0))
    return found.prefetch_related(Prefetch("stage_results", stages.prefetch_related(Prefetch("cases", cases))))
