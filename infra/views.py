"""The pages of the server's own apps, for staff: how each stands, infra.yml, the plan of the night, and the buttons of all."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin.views.decorators import staff_member_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_safe

from infra import applying, doctor, nightly, snapshots
from infra.buttons import BUTTONS, Button, On, that_fit
from infra.declaration import DeclarationError, dump
from infra.gate import Plan, Verdict
from infra.looking import look
from infra.models import InfraApp, InfraFile, InfraRelease, Snapshot, Upgrade
from infra.ownership import Refused
from infra.permissions import may_see, to_see
from infra.plan import to_apply
from infra.states import WORKING, UpgradeState
from infra.status import describe, marked_notes, rollback_failed, under_way

SHOWN_VERSIONS = 10
#: Blockers that have a place of their own on the page.
_LOUD = ("contested", "rollback_failed", "under_way", "maintainers")
_ROWS = {"app": InfraApp, "release": InfraRelease, "snapshot": Snapshot}


def card(request: HttpRequest) -> dict[str, Any]:
    """The start page's words on the apps: for those who may see them, and where there are some."""
    if not may_see(request.user, "infraapp"):
        return {"apps": []}
    apps = list(InfraApp.objects.filter(declared=True))
    held = InfraRelease.objects.filter(app__declared=True, state=InfraRelease.State.HELD, gone=False)
    waiting = set(held.values_list("app_id", flat=True))
    return {"apps": [{"app": app, **_standing(app, held=app.pk in waiting)} for app in apps]}


def _standing(app: InfraApp, *, held: bool) -> dict[str, Any]:
    """How an app stands in a word, a colour and a drawing, and the upgrade that this is about; the worst comes first."""
    upgrade: Upgrade | None = None
    if app.state == InfraApp.State.CONTESTED:
        word, tone, icon = "contested", "bad", "warning"
    elif upgrade := rollback_failed(app):
        word, tone, icon = "the way back failed", "bad", "failed"
    elif (upgrade := under_way(app)) or app.state == InfraApp.State.UPGRADING:
        word, tone, icon = "upgrading", "busy", "running"
    elif held and app.ours:
        word, tone, icon = "a version is held", "warn", "waiting"
    elif not app.ours:
        word, tone, icon = ("its maintainers'" if app.declared else "left alone"), "quiet", ""
    else:
        word, tone, icon = "settled", "good", "passed"
    return {"word": word, "tone": tone, "icon": icon, "about": upgrade}


@to_see("infraapp")
@require_safe
def app_list(request: HttpRequest) -> HttpResponse:
    """All apps, each with the gate's reasons as they are at this moment. The machine itself is not looked at for it."""
    apps = [_app(app, request.user) for app in InfraApp.objects.order_by("-declared", "position", "name")]
    return render(request, "infra/app_list.html", {"apps": apps})


def _app(app: InfraApp, user: Any) -> dict[str, Any]:
    plan = look(app)
    status = describe(app, plan)
    reasons = snapshots.kept(app)
    shown, first = _shown("app", app, user), _first(app, plan)
    return {
        **status,
        **_standing(app, held=any(verdict.held for verdict in plan.verdicts)),
        "row": app,
        "last": app.upgrades.first(),
        "at_work": under_way(app),
        "failed": rollback_failed(app),
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
    """The buttons that an app in its state asks for; the others are folded away."""
    if app.state == InfraApp.State.CONTESTED:
        return {"adopt", "restore_ours", "hand_over"}
    if rollback_failed(app):
        return {"adopt"}
    if under_way(app):
        return {"rollback"}
    if not app.running_version:
        return {"deploy"}
    return {"upgrade"} if plan.target else set()


def _few(plan: Plan) -> list[Verdict]:
    """The verdicts to show, newest first: the newest ones, and that of the version that comes next."""
    newest = list(reversed(plan.verdicts))
    return newest[:SHOWN_VERSIONS] + [one for one in newest[SHOWN_VERSIONS:] if one.version == plan.target]


def _versions(app: InfraApp, plan: Plan, status: dict[str, Any], user: Any) -> list[dict[str, Any]]:
    """The versions above the running one, newest first: what the gate says of it, its notes, and its buttons."""
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


# --- infra.yml, and the night


@to_see("infrafile")
@require_safe
def file_page(request: HttpRequest) -> HttpResponse:
    """`cc-ci infra diff`, `check` (with `?check`, for it asks the stores) and `export`, on one page."""
    path = applying.place()
    context: dict[str, Any] = {"path": path, "file": InfraFile.objects.first(), "export": dump(applying.export())}
    try:
        changes = applying.differences(applying.read(path))
        context |= {"changes": changes, "applies": bool(to_apply(changes))}
    except DeclarationError as error:
        context["problems"] = [str(problem) for problem in error.problems]
    except applying.NotApplied as error:
        context["problems"] = [str(error)]
    if "check" in request.GET:
        context["findings"] = list(doctor.examine(path))
    return render(request, "infra/file.html", {**context, "buttons": _shown_of_server("apply", request.user)})


@to_see("infrafile")
@require_safe
def export(request: HttpRequest) -> HttpResponse:
    """`cc-ci infra export`: the file that the database amounts to, to be saved."""
    headers = {"Content-Disposition": 'attachment; filename="infra.yml"'}
    return HttpResponse(dump(applying.export()), content_type="text/yaml; charset=utf-8", headers=headers)


@to_see("infraapp")
@require_safe
def night(request: HttpRequest) -> HttpResponse:
    """`cc-ci infra nightly --dry-run`: the whole plan with all reasons, after a fresh look at the machine."""
    plan = nightly.whole_plan()
    at_work = Upgrade.objects.filter(state__in=[*WORKING, UpgradeState.APPROVED]).select_related("app")
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
    """GET says what a button will do, and asks. POST does it, and goes where it can be seen, or says why it was refused."""
    button = BUTTONS.get(name)
    if button is None or (button.on == "server") == bool(pk):
        raise Http404("There is no such button.")
    if not (request.user.has_perm(button.right) or may_see(request.user, "infraapp")):
        raise PermissionDenied  # neither what it would do, nor whether there is such a row
    row = get_object_or_404(_ROWS[button.on], pk=pk) if button.on != "server" else None
    if not request.user.has_perm(button.right):
        return _ask(request, name, button, row, f"This needs the right {button.right}.", status=403)
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
