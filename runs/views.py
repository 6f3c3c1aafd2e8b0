"""The pages of runs. Runs of repositories that are public at the forge are public; others require a login."""

from __future__ import annotations

import gzip
import shlex
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from tempfile import SpooledTemporaryFile
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.core.paginator import Paginator
from django.db.models import Exists, OuterRef, Prefetch, QuerySet, prefetch_related_objects
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.templatetags.static import static
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST, require_safe

from controlplane.pages import newest
from controlplane.secrets import SecretUnreadable
from controlplane.templatetags.frame import weblink
from controlplane.untrusted import commit
from enrollment.forge_access.rate_limit import within
from enrollment.forges.base import ForgeError, explain
from enrollment.webhooks.receiver import OUTCOMES, Answer, judge_head
from enrollment.webhooks.views import body_of, respond
from runs import case_history, commands, scheduling, search
from runs.comparison import compare
from runs.executors import hook
from runs.executors.local import WHOLE_LOG
from runs.harness.stage_table import DEFAULT_STAGES, in_order
from runs.manual import NotDone
from runs.manual_actions import ACTIONS
from runs.models import FINAL, JUDGED, Artefact, CaseResult, State, TestRun
from runs.permissions import asker, may_act, may_see, repository_or_login, visible_repositories, visible_runs
from runs.render import HEADLINE, again, expectation, origin, outdated, progress, to_repeat
from runs.templatetags.run_pages import commit_url

#: Lines of the log in one answer of the live page; the whole log is a file of its own.
LIVE_CHARS = 200_000
#: So many tests of a run need no search.
FEW = 10
#: The parts of the run's page that change while it runs: templates `runs/_<name>.html`.
PARTS = ("summary", "failing", "facts", "stages", "more", "trail")
#: How many of a forge's slowest answers a button waits for.
ANSWERS = 3
#: The picture in the browser's tab.
FAVICONS = {
    State.PASSED: "favicon-passed",
    State.FAILED: "favicon-failed",
    State.ERRORED: "favicon-trouble",
    State.TIMED_OUT: "favicon-trouble",
    State.STARTING: "favicon-running",
    State.RUNNING: "favicon-running",
}


def _run_or_login(request: HttpRequest, run_id: uuid.UUID) -> TestRun | HttpResponse:
    run = get_object_or_404(TestRun.objects.select_related("repository__forge", "pull_request", "retry_of", "comment"), pk=run_id)
    return may_see(request, run.repository) or run


@require_safe
def run_list(request: HttpRequest) -> HttpResponse:
    """All runs, newest first, filtered by state and repository, and searched."""
    runs = visible_runs(request).defer("log", "details")
    chosen = {name: request.GET.get(name, "") for name in ("state", "repository", "search")}
    if chosen["state"] == "active":
        runs = search.active(runs)
    elif chosen["state"] in State.values:
        runs = runs.filter(state=chosen["state"])
    repositories = visible_repositories(request)
    if chosen["search"].strip():
        runs = search.found(runs, chosen["search"], repositories)
    if chosen["repository"]:
        owner, _, name = chosen["repository"].partition("/")
        runs = runs.filter(repository__in=list(repositories.filter(owner=owner, name=name)))
    context = {
        "page": newest(request, runs, 25),
        "chosen": chosen,
        "states": State.choices,
        "repositories": _names(request),
        "command": commands.RUN.form,
    }
    return render(request, "runs/run_list.html", context)


def _names(request: HttpRequest) -> list[str]:
    """The repositories to choose from: those with runs that this user may see."""
    rows = visible_repositories(request).filter(Exists(TestRun.objects.filter(repository=OuterRef("pk"))))
    return sorted({f"{owner}/{name}" for owner, name in rows.values_list("owner", "name")[:500]})


@csrf_exempt
def executor_hook(request: HttpRequest, name: str) -> HttpResponse:
    """`POST /runs/executors/<name>/hook/`: a CI server says that there is news of a build."""
    return respond(lambda: _executor_hook(request, name))


def _executor_hook(request: HttpRequest, name: str) -> Answer:
    if wrong := judge_head(request.method or "", request.headers, hook.is_claimed):
        return Answer(wrong)
    row, secret = hook.secret_of(name)
    if row is None or not hook.is_signed(request.headers, secret):
        return Answer(OUTCOMES["unsigned"])
    body = body_of(request)
    if isinstance(body, Answer):
        return body
    return hook.take(row, body) if hook.is_digest(request.headers, body) else Answer(OUTCOMES["unsigned"])


@require_POST
def act(request: HttpRequest, run_id: uuid.UUID, name: str) -> HttpResponse:
    """A button of a run's page: does it, and shows the run that the person sees next, with what was done or why not."""
    if name not in ACTIONS:
        raise Http404
    run = get_object_or_404(visible_runs(request), pk=run_id)
    if not request.user.is_authenticated:
        return redirect_to_login(run.get_absolute_url())
    try:
        with within(ANSWERS * settings.CC_CI.http_timeout):
            who = asker(request, run)
            shown = ACTIONS[name].do(run, who.name, "on its page", who.person)
    except (NotDone, ForgeError, SecretUnreadable) as refusal:
        messages.error(request, explain(refusal))
        return redirect(run)
    messages.success(request, ACTIONS[name].done.format(run=shown))
    return redirect(shown)


@require_safe
def run(request: HttpRequest, run_id: uuid.UUID) -> HttpResponse:
    """One run: the verdict, what failed, the stages, the log, the trail."""
    row = _run_or_login(request, run_id)
    if isinstance(row, HttpResponse):
        return row
    actions = ACTIONS.values() if may_act(request, row) else ()
    return render(request, "runs/run.html", {**run_context(row, request.GET.get("tests", "")), "actions": actions})


def run_context(row: TestRun, words: str = "") -> dict[str, Any]:
    """The context of a run's page, and of its live updates, so that both show the same. `words`: to find its tests by."""
    prefetch_related_objects([row], "stage_results__cases")
    stages = list(row.stage_results.all())
    state = State(row.state)
    final = row.state in FINAL
    last_pass = _last_pass(row) if final else None
    artefacts = list(row.artefacts.defer("data")) if final else []
    cases = [case for stage in stages for case in stage.cases.all()]
    words = words.strip()[:200]
    for stage in stages:
        found = [case for case in stage.cases.all() if words.lower() in f"{case.file}::{case.name}".lower()]
        stage.found = found  # type: ignore[attr-defined]
    if cases:
        flaky = case_history.flaky(row.repository_id, row.sha)
        for case in cases:
            case.history = flaky.get(case_history.case_of(case))  # type: ignore[attr-defined]
    return {
        "run": row,
        "headline": HEADLINE[state],
        "title": f"{state.label}: {row.repository.name} · cc-ci",
        "preview": f"{row.repository.name} {HEADLINE[state]}",
        "favicon": static(f"controlplane/{FAVICONS.get(state, 'favicon-quiet')}.svg"),
        "commit_url": commit_url(row.repository, row.sha),
        "unclean": row.teardown.get("clean") is False,
        "newer": _newer(row) if final else None,
        "since": final and state != State.PASSED,
        "last_pass": last_pass,
        "elapsed": int((timezone.now() - row.started_at).total_seconds()) if row.started_at and not final else None,
        "expectation": expectation(row, scheduling.place_of(row), scheduling.usual_seconds(row)) if row.active else [],
        "outdated": outdated(row),
        "comparison": compare(whole(last_pass), row) if last_pass and row.state in JUDGED else None,
        "known_good": origin(row) if row.quick else None,
        "attempt": again(row) if row.attempt > 1 else "",
        "stages": stages,
        "searched": words,
        "searchable": final and len(cases) > FEW,
        "progress": _progress(row) if not stages else [],
        "failing": [case for case in cases if case.status in case_history.FAILING],
        "trail": list(row.events.all()[:500]),
        "log": row.log[-LIVE_CHARS:],
        "log_mark": f"{row.attempt}-{row.log_offset}-{len(row.log)}",
        "cut": len(row.log) > LIVE_CHARS,
        "again": commands.RUN.form,
        "retry": to_repeat(row),
        "by_hand": _by_hand(row),
        "cancel": commands.VERBS["cancel"].form,
        "with_extra": commands.OPTIONS["--extra-tests"].form,
        "details": row.details,
        "artefacts": artefacts,
        "picture": next((artefact for artefact in artefacts if artefact.kind == Artefact.Kind.PICTURE), None),
        "final": final,
    }


def _by_hand(row: TestRun) -> str:
    """What to type on another machine for the same run; empty if the forge gave no address to clone from."""
    if not weblink(row.repository.clone_url):
        return ""
    words = ["cc-ci", "run", row.repository.clone_url, "--ref", row.ref, "--sha", row.sha]
    if set(stages := in_order((*row.stages, *row.taken_over))) != set(DEFAULT_STAGES):
        words += ["--stages", ",".join(stages)]
    return shlex.join(words)


def whole(run: TestRun) -> TestRun:
    """A run with all its results, without its log and what its tests printed."""
    runs = TestRun.objects.select_related("repository__forge", "pull_request").defer("log")
    return runs.prefetch_related("stage_results", Prefetch("stage_results__cases", CaseResult.objects.defer("output"))).get(
        pk=run.pk
    )


def _progress(row: TestRun) -> list[tuple[str, str]]:
    """The stages of a run without results. Once the run has ended, none is shown as waiting."""
    if row.active:
        return progress(row)
    ended = {"waiting": "not_run", "running": "not_finished"}
    return [(name, ended.get(status, status)) for name, status in progress(row)]


def _same_thing(row: TestRun) -> QuerySet[TestRun]:
    """The runs of the same pull request or branch."""
    runs = row.repository.runs.exclude(pk=row.pk)
    return runs.filter(pull_request=row.pull_request) if row.pull_request else runs.filter(pull_request=None, ref=row.ref)


def _newer(row: TestRun) -> TestRun | None:
    return _same_thing(row).filter(created_at__gt=row.created_at).first()


def _last_pass(row: TestRun) -> TestRun | None:
    """The newest run of the recipe that passed, at any commit. A quick one does not count."""
    return row.repository.runs.filter(state=State.PASSED, quick=False, created_at__lt=row.created_at).first()


@require_safe
def test_history(request: HttpRequest, repository_id: int) -> HttpResponse:
    """The history of a repository's tests, flaky ones first. `?commit=`: with the runs of a stranger's code at that commit."""
    repository = repository_or_login(request, repository_id)
    if isinstance(repository, HttpResponse):
        return repository
    sha = commit(request.GET.get("commit", ""))
    found = case_history.sorted_cases(case_history.of_repository(repository.pk, sha))
    context = {
        "repository": repository,
        "sha": sha,
        "page": Paginator(found, 50).get_page(request.GET.get("page")),
        "flaky": sum(case.flaky for case in found),
        "runs": case_history.RUNS,
        "shown": case_history.SHOWN,
    }
    return render(request, "runs/test_history.html", context)


@require_safe
def live(request: HttpRequest, run_id: uuid.UUID) -> HttpResponse:
    """The changing parts of a run's page, as JSON: state, log, and HTML.

    `?seen=` identifies the log that the client has (`log_mark`); if it has not changed, `log` is null. With `more`, `log` is only
    what came after it.
    """
    row = _run_or_login(request, run_id)
    if isinstance(row, HttpResponse):
        return JsonResponse({"error": "login"}, status=403)
    context = run_context(row)
    parts = {name: render(request, f"runs/_{name}.html", context).content.decode() for name in PARTS}
    news = _after(row, request.GET.get("seen", ""))
    answer = {name: context[name] for name in ("final", "title", "favicon", "headline", "log_mark", "cut")}
    text = context["log"] if news is None else news or None
    return JsonResponse({"state": row.state, **answer, "log": text, "more": bool(news), "parts": parts})


def _after(row: TestRun, mark: str) -> str | None:
    """What a log has after a `log_mark`; None if that cannot be told from what is kept of it."""
    attempt, _, rest = mark.partition("-")
    offset = rest.partition("-")[0]
    if attempt != str(row.attempt) or not offset.isascii() or not offset.isdigit() or len(offset) > 18:
        return None
    kept, count = row.log.encode(), row.log_offset - int(offset)
    return kept[len(kept) - count :].decode(errors="ignore") if 0 <= count < len(kept) else None


@require_safe
def log(request: HttpRequest, run_id: uuid.UUID) -> HttpResponseBase:
    """The log as plain text: all of it, or if the machine was lost, its end."""
    row = _run_or_login(request, run_id)
    if isinstance(row, HttpResponse):
        return row
    file = row.artefacts.filter(name=WHOLE_LOG).first()
    parts: Iterable[str | bytes] = _unpacked(bytes(file.data)) if file else [row.log]
    response = StreamingHttpResponse(parts, content_type="text/plain; charset=utf-8")
    response["X-Content-Type-Options"] = "nosniff"
    return response


def _unpacked(data: bytes) -> Iterator[bytes]:
    with gzip.open(BytesIO(data)) as stream:
        yield from iter(lambda: stream.read(1 << 16), b"")


@require_safe
def archive(request: HttpRequest, run_id: uuid.UUID) -> HttpResponseBase:
    """All files of a run in one, stored as they are: packing them tighter would be work for whoever asks."""
    row = _run_or_login(request, run_id)
    if isinstance(row, HttpResponse):
        return row
    packed = SpooledTemporaryFile(max_size=4 << 20)  # noqa: SIM115  # the response closes it
    with zipfile.ZipFile(packed, "w") as files:
        for file in row.artefacts.iterator(chunk_size=1):
            files.writestr(file.name, bytes(file.data))
        files.writestr("log.txt", row.log)
    packed.seek(0)
    response = FileResponse(packed, as_attachment=True, filename=f"run-{row.short_id}.zip", content_type="application/zip")
    response["X-Content-Type-Options"] = "nosniff"
    return response


@require_safe
def artefact(request: HttpRequest, run_id: uuid.UUID, name: str) -> HttpResponse:
    """One file of a run. Its content is untrusted: everything except the screenshot is served as plain text."""
    row = _run_or_login(request, run_id)
    if isinstance(row, HttpResponse):
        return row
    file = get_object_or_404(Artefact, run=row, name=name)
    kinds = {Artefact.Kind.PICTURE: "image/png", Artefact.Kind.RESULTS: "application/json"}
    kind = "application/gzip" if name == WHOLE_LOG else kinds.get(Artefact.Kind(file.kind), "text/plain; charset=utf-8")
    response = HttpResponse(bytes(file.data), content_type=kind)
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response["Cache-Control"] = "private, max-age=86400" if row.repository.private else "public, max-age=86400"
    return response


#: Active runs on the start page, and verdicts there.
NOW, NEWEST = 20, 5


def now_card(request: HttpRequest) -> dict[str, Any]:
    """The start page's section on what runs, and what waits with its place and estimate."""
    runs = search.active(visible_runs(request).defer("log")).order_by("created_at")
    active = list(runs[:NOW])
    places = scheduling.places() if any(run.state == State.QUEUED for run in active) else {}
    usual = scheduling.usual(active) if active else {}
    for run in active:
        run.expectation = expectation(run, places.get(run.pk, 0), usual.get(run.pk))  # type: ignore[attr-defined]
    return {"active": active, "more": runs.count() - NOW if len(active) == NOW else 0}


def recent_card(request: HttpRequest) -> dict[str, Any]:
    """The start page's section on verdicts."""
    return {"recent": search.newest_ended(visible_runs(request).defer("log"), NEWEST)}


def commands_card(request: HttpRequest) -> dict[str, Any]:
    """The start page's section on commands."""
    return {"entries": commands.table()}
