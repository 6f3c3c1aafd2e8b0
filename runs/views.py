"""The pages of runs. A run is public when its repository is public at the forge; otherwise it is shown after login only."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from controlplane.pages import paginate
from enrollment.models import Repository
from runs import chatops, reporting
from runs.models import ACTIVE, FINAL, State, TestRun
from runs.render import HEADLINE, progress

#: Lines of the log in one answer of the live page; the whole log is a file of its own.
LIVE_CHARS = 200_000


def visible_runs(request: HttpRequest) -> QuerySet[TestRun]:
    """The runs that this person may see."""
    runs = TestRun.objects.select_related("repository__forge", "pull_request")
    return runs if may_see_private(request) else runs.filter(repository__private=False)


def may_see_private(request: HttpRequest) -> bool:
    return bool(request.user.is_active and request.user.is_staff)


def _run_or_login(request: HttpRequest, run_id: uuid.UUID) -> TestRun | HttpResponse:
    run = get_object_or_404(TestRun.objects.select_related("repository__forge", "pull_request", "retry_of"), pk=run_id)
    if run.repository.private and not may_see_private(request):
        if request.user.is_authenticated:
            raise Http404
        return redirect_to_login(request.get_full_path())
    return run


@require_safe
def run_list(request: HttpRequest) -> HttpResponse:
    """All runs, newest first, filtered by state and repository."""
    runs = visible_runs(request)
    chosen = {name: request.GET.get(name, "") for name in ("state", "repository")}
    if chosen["state"] in State.values:
        runs = runs.filter(state=chosen["state"])
    elif chosen["state"] == "active":
        runs = runs.filter(state__in=ACTIVE)
    if chosen["repository"]:
        owner, _, name = chosen["repository"].partition("/")
        runs = runs.filter(repository__owner=owner, repository__name=name)
    context = {"page": paginate(request, runs, 25), "chosen": chosen, "states": State.choices}
    return render(request, "runs/run_list.html", context)


@require_safe
def run(request: HttpRequest, run_id: uuid.UUID) -> HttpResponse:
    """One run: the verdict, what failed, the stages, the log, the trail."""
    row = _run_or_login(request, run_id)
    return row if isinstance(row, HttpResponse) else render(request, "runs/run.html", run_context(row))


def run_context(row: TestRun) -> dict[str, Any]:
    """What the run's page shows; also the source of the live answer, so that both say the same."""
    stages = list(row.stage_results.prefetch_related("cases"))
    failing = [case for stage in stages for case in stage.cases.all() if case.status in ("failed", "errored")]
    return {
        "run": row,
        "headline": HEADLINE[State(row.state)],
        "ahead": reporting.ahead_of(row) if row.state == State.QUEUED else 0,
        "stages": stages,
        "progress": progress(row) if not stages else [],
        "failing": failing,
        "trail": list(row.events.all()[:500]),
        "log": row.log[-LIVE_CHARS:],
        "cut": len(row.log) > LIVE_CHARS,
        "retry": chatops.VERBS["retry"].form,
        "final": row.state in FINAL,
    }


@require_safe
def live(request: HttpRequest, run_id: uuid.UUID) -> HttpResponse:
    """What changes on the run's page: JSON with the state, the log, and the changing parts as HTML."""
    row = _run_or_login(request, run_id)
    if isinstance(row, HttpResponse):
        return JsonResponse({"error": "login"}, status=403)
    context = run_context(row)
    parts = {
        name: render(request, f"runs/_{name}.html", context).content.decode()
        for name in ("summary", "failing", "stages", "trail")
    }
    return JsonResponse({"state": row.state, "final": context["final"], "log": context["log"], "parts": parts})


@require_safe
def log(request: HttpRequest, run_id: uuid.UUID) -> HttpResponse:
    """The log as plain text."""
    row = _run_or_login(request, run_id)
    if isinstance(row, HttpResponse):
        return row
    response = HttpResponse(row.log, content_type="text/plain; charset=utf-8")
    response["X-Content-Type-Options"] = "nosniff"
    return response


def recent_card(request: HttpRequest) -> dict[str, Any]:
    """The start page's section on runs."""
    runs = visible_runs(request)
    return {
        "active": list(runs.filter(state__in=ACTIVE).order_by("created_at")[:20]),
        "recent": list(runs.filter(state__in=FINAL)[:10]),
        "any": runs.exists(),
    }


def repositories_card(request: HttpRequest) -> dict[str, Any]:
    """The start page's section on recipes: each with its newest verdict."""
    rows = Repository.objects.watched().select_related("forge")
    if not may_see_private(request):
        rows = rows.filter(private=False)
    cards = []
    for row in rows[:100]:
        last = row.runs.filter(state__in=FINAL).exclude(state__in=[State.CANCELLED, State.SUPERSEDED]).first()
        cards.append({"repository": row, "last": last})
    return {"repositories": cards, "entries": chatops.table()}
