"""The pages of the server's own apps, for staff: status, infra.yml, the plan of the maintenance run, and all buttons."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin.views.decorators import staff_member_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_safe

from controlplane.staff import may_see, to_see
from infra import doctor
from infra.config import apply
from infra.config.diff import to_apply
from infra.config.load import DeclarationError, dump
from infra.models import InfraApp, InfraFile, InfraRelease, Snapshot, Upgrade
from infra.releases.evaluate import plan_of
from infra.releases.gate import Plan, Verdict
from infra.runtime.drift import Refused
from infra.snapshots import snapshot
from infra.upgrades import scheduler
from infra.web.actions import BUTTONS, Button, On, that_fit
from infra.web.status import describe, marked_notes

SHOWN_VERSIONS = 10
#: Blockers shown in a place of their own on the page.
_LOUD = ("contested", "rollback_failed", "under_way", "maintainers")
_ROWS = {"app": InfraApp, "release": InfraRelease, "snapshot": Snapshot}


def card(request: HttpRequest) -> dict[str, Any]:
    """The start page's card on the apps; empty for those who may not see them."""
    if not may_see(request.user, "infra.infraapp"):
        return {"apps": []}
    apps = list(InfraApp.objects.filter(declared=True))
    held = InfraRelease.objects.filter(app__declared=True, state=InfraRelease.State.HELD, gone=False)
    waiting = set(held.values_list("app_id", flat=True))
    return {"apps": [{"app": app, **_standing(app, held=app.pk in waiting)} for app in apps]}


def _standing(app: InfraApp, *, held: bool) -> dict[str, Any]:
    """An app's status as a word, a colour and an icon, and the upgrade that it is about; the worst comes first."""
    upgrade: Upgrade | None = None
    if app.state == InfraApp.State.DRIFTED:
        word, tone, icon = "drifted", "bad", "warning"
    elif upgrade := app.rollback_failed():
        word, tone, icon = "rollback failed", "bad", "failed"
    elif (upgrade := app.under_way()) or app.state == InfraApp.State.UPGRADING:
        word, tone, icon = "upgrading", "busy", "running"
    elif held and app.ours:
        word, tone, icon = "a version is held", "warn", "waiting"
    elif not app.ours:
        word, tone, icon = ("managed by its maintainers" if app.declared else "not managed"), "quiet", ""
    else:
        word, tone, icon = "settled", "good", "passed"
    return {"word": word, "tone": tone, "icon": icon, "about": upgrade}


@to_see("infra.infraapp")
@require_safe
def app_list(request: HttpRequest) -> HttpResponse:
    """All apps, each with the gate's current blockers. Runs no preflight."""
    apps = [_app(app, request.user) for app in InfraApp.objects.order_by("-declared", "position", "name")]
    return render(request, "infra/app_list.html", {"apps": apps})


def _app(app: InfraApp, user: Any) -> dict[str, Any]:
    plan = plan_of(app)
    status = describe(app, plan)
    reasons = snapshot.kept(app)
    shown, first = _shown("app", app, user), _first(app, plan)
    return {
        **status,
        **_standing(app, held=any(verdict.held for verdict in plan.verdicts)),
        "row": app,
        "last": app.upgrades.first(),
        "at_work": app.under_way(),
        "failed": app.rollback_failed(),
        "keeps": [blocker for blocker in status["blockers"] if blocker["kind"] not in _LOUD],
        "buttons": [one for one in shown if one["name"] in first],
        "more": [one for one in shown if one["name"] not in first],
        "versions": _versions(app, plan, status, user),
        "left_out": max(0, len(plan.verdicts) - len(_few(plan))),
        "taken": [
            {"row": row, "why": reasons.get(row.pk, ""), "buttons": _shown("snapshot", row, user)}
            for row in app.taken.select_related("app")
        ],
    }


def _first(app: InfraApp, plan: Plan) -> set[str]:
    """The buttons that matter most in the app's state; the others are folded away."""
    if app.state == InfraApp.State.DRIFTED:
        return {"adopt", "restore_ours", "hand_over"}
    if app.rollback_failed():
        return {"adopt"}
    if app.under_way():
        return {"rollback"}
    if not app.running_version:
        return {"deploy"}
    return {"upgrade"} if plan.target else set()


def _few(plan: Plan) -> list[Verdict]:
    """The verdicts to show, newest first: the newest ones, and the one on the version that comes next."""
    newest = list(reversed(plan.verdicts))
    return newest[:SHOWN_VERSIONS] + [one for one in newest[SHOWN_VERSIONS:] if one.version == plan.target]


def _versions(app: InfraApp, plan: Plan, status: dict[str, Any], user: Any) -> list[dict[str, Any]]:
    """The versions above the running one, newest first: the gate's verdict, the notes, and the buttons."""
    blocked = {verdict["version"]: verdict["blockers"] for verdict in status["held"]}
    rows = {row.version: row for row in app.releases.filter(gone=False).select_related("app")}
    failed = {upgrade.pk: upgrade for upgrade in app.upgrades.all()[:50]}
    found = []
    for verdict in _few(plan):
        row = rows[str(verdict.version)]
        found.append(
            {
                "row": row,
                "version": row.version,
                "held": verdict.held,
                "quarantined": row.state == InfraRelease.State.QUARANTINED,
                "blockers": blocked.get(row.version, []),
                "notes": marked_notes(row.notes, plan, row.version),
                "upgrade": failed.get(row.evidence.get("upgrade", 0)),
                "swarm": row.evidence.get("swarm", []),
                "buttons": _shown("release", row, user),
            }
        )
    return found


def _shown(on: On, row: Any, user: Any) -> list[dict[str, Any]]:
    return [
        {"name": name, "button": one, "label": one.named(row), "says": one.says(row), "url": _address(name, row)}
        for name, one in that_fit(on, row, user)
    ]


def _address(name: str, row: Any) -> str:
    return reverse("infra-do", args=[name, row.pk] if row else [name])


# --- infra.yml, and the maintenance run


@to_see("infra.infrafile")
@require_safe
def file_page(request: HttpRequest) -> HttpResponse:
    """`cc-ci infra diff`, `check` (only with `?check`, because it contacts the stores) and `export`, on one page."""
    path = apply.place()
    context: dict[str, Any] = {"path": path, "file": InfraFile.objects.first(), "export": dump(apply.export())}
    try:
        changes = apply.differences(apply.read(path))
        context |= {"changes": changes, "applies": bool(to_apply(changes))}
    except DeclarationError as error:
        context["problems"] = [str(problem) for problem in error.problems]
    except apply.NotApplied as error:
        context["problems"] = [str(error)]
    if "check" in request.GET:
        context["findings"] = list(doctor.examine(path))
    return render(request, "infra/file.html", {**context, "buttons": _shown_of_server("apply", request.user)})


@to_see("infra.infrafile")
@require_safe
def export(request: HttpRequest) -> HttpResponse:
    """`cc-ci infra export`: download the database as an infra.yml."""
    headers = {"Content-Disposition": 'attachment; filename="infra.yml"'}
    return HttpResponse(dump(apply.export()), content_type="text/yaml; charset=utf-8", headers=headers)


@to_see("infra.infraapp")
@require_safe
def maintenance_run(request: HttpRequest) -> HttpResponse:
    """`cc-ci infra nightly --dry-run`: the whole plan with all reasons, after a fresh preflight."""
    plan = scheduler.whole_plan()
    at_work = Upgrade.objects.under_way().select_related("app")
    buttons = _shown_of_server("nightly", request.user)
    return render(request, "infra/night.html", {"plan": plan, "at_work": at_work, "buttons": buttons})


def _shown_of_server(name: str, user: Any) -> list[dict[str, Any]]:
    one = BUTTONS[name]
    words = {"name": name, "button": one, "label": one.named(None), "says": one.says(None), "url": _address(name, None)}
    return [words] if user.has_perm(one.right) else []


# --- buttons


@staff_member_required
@require_http_methods(["GET", "HEAD", "POST"])
def do(request: HttpRequest, name: str, pk: int = 0) -> HttpResponse:
    """GET shows what a button will do, and asks. POST does it, and redirects to the result or shows the refusal."""
    button = BUTTONS.get(name)
    if button is None or (button.on == "server") == bool(pk):
        raise Http404("There is no such button.")
    if not (request.user.has_perm(button.right) or may_see(request.user, "infra.infraapp")):
        raise PermissionDenied  # reveal neither what it would do nor whether the row exists
    row = get_object_or_404(_ROWS[button.on], pk=pk) if button.on != "server" else None
    if not request.user.has_perm(button.right):
        return _ask(request, name, button, row, f"This needs the permission {button.right}.", status=403)
    if request.method != "POST":
        return _ask(request, name, button, row)
    try:
        done = button.press(row, request.user.get_username())
    except Refused as error:
        return _ask(request, name, button, row, str(error), status=409)
    if isinstance(done, Upgrade):
        return redirect(done)
    messages.success(request, done)
    return redirect("infra-file" if name == "apply" else "infra-night" if name == "nightly" else "infra")


def _ask(request: HttpRequest, name: str, button: Button, row: Any, problem: str = "", status: int = 200) -> HttpResponse:
    app = row if button.on == "app" else getattr(row, "app", None)
    back = {"apply": reverse("infra-file"), "nightly": reverse("infra-night")}.get(name, reverse("infra"))
    context = {
        "button": button,
        "label": button.named(row),
        "says": button.says(row),
        "typed": button.typed(row),
        "app": app,
        "problem": problem,
        "allowed": status != 403,
        "back": app.get_absolute_url() if app else back,
        **(_standing(app, held=False) if app else {}),
    }
    return render(request, "infra/ask.html", context, status=status)
