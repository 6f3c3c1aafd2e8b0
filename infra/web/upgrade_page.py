"""The live page of one upgrade, for staff: steps with their times, probe results, the log, and what to do next."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.templatetags.static import static
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_safe

from controlplane.staff import may_see, to_see
from infra.models import InfraApp, InfraRelease, Upgrade
from infra.releases.evaluate import command
from infra.runtime.inspect import folder_of, without_secrets
from infra.states import CHANGING, MENDED, UpgradeState
from infra.upgrades import install
from infra.web.actions import BUTTONS

S = UpgradeState
PARTS = ("summary", "facts", "steps", "probes", "trail")
LOG_CHARS = 200_000
SHOWN_SAMPLES = 30
TONES: dict[str, str] = {S.SUCCEEDED: "good", S.FAILED: "warn", S.ROLLED_BACK: "warn", S.ROLLBACK_FAILED: "bad"}
_ICONS: dict[str, str] = {S.SUCCEEDED: "passed", S.FAILED: "warning", S.ROLLED_BACK: "warning", S.ROLLBACK_FAILED: "failed"}
_FAVICONS: dict[str, str] = {
    S.SUCCEEDED: "favicon-passed",
    S.FAILED: "favicon-trouble",
    S.ROLLED_BACK: "favicon-trouble",
    S.ROLLBACK_FAILED: "favicon-failed",
}
_STEPS = (S.SNAPSHOTTING, S.DEPLOYING, S.VERIFYING, S.SOAKING)
_NAMES = {
    S.SNAPSHOTTING: "Snapshot",
    S.DEPLOYING: "Deploy and converge",
    S.VERIFYING: "Verify",
    S.SOAKING: "Soak",
    S.ROLLING_BACK: "Roll back",
}


def _log(upgrade: Upgrade) -> tuple[str, bool]:
    """The end of the log, and whether it was cut."""
    try:
        with (folder_of(upgrade) / "log").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_CHARS))
            text, cut = file.read().decode(errors="replace"), size > LOG_CHARS
    except OSError:
        return "", False
    if cut:
        text = text.partition("\n")[2]  # a secret cut in two would not be recognized
    return without_secrets(upgrade.app, text), cut


def _steps(upgrade: Upgrade, moves: list[tuple[str, datetime, str]]) -> list[dict[str, Any]]:
    """Each step with its start, its duration so far, and its final message."""
    found = []
    for number, (state, at, _) in enumerate(moves):
        if state not in _NAMES:
            continue
        after = moves[number + 1] if number + 1 < len(moves) else None
        until = after[1] if after else timezone.now()
        failed = after is not None and after[0] in (S.ROLLING_BACK, S.ROLLBACK_FAILED)
        tone = "bad" if failed else "good" if after else "busy"
        icon = "failed" if failed else "passed" if after else "running"
        said = after[2] if after else str(upgrade.step.get("name", ""))
        seconds = round((until - at).total_seconds(), 1)
        found.append(
            {"name": _NAMES[UpgradeState(state)], "tone": tone, "icon": icon, "at": at, "seconds": seconds, "said": said}
        )
    done = {state for state, _, _ in moves}
    if not upgrade.final and upgrade.state != S.ROLLING_BACK:
        found += [{"name": _NAMES[s], "tone": "quiet", "icon": "waiting", "said": ""} for s in _STEPS if s not in done]
    return found


@dataclass(frozen=True)
class Next:
    """What a person may do now: a sentence, the command to type, and the button that does the same."""

    text: str
    typed: str = ""
    label: str = ""
    url: str = ""
    danger: bool = False


def _pressed(name: str, row: InfraApp | InfraRelease, text: str) -> Next:
    button = BUTTONS[name]
    return Next(text, button.typed(row), button.named(row), reverse("infra-do", args=[name, row.pk]), button.danger)


def _next(upgrade: Upgrade) -> list[Next]:
    app = upgrade.app
    later = app.upgrades.filter(pk__gt=upgrade.pk).first()
    if later:
        return [Next(f"There is a later upgrade: {later}.", label="See the latest upgrade", url=later.get_absolute_url())]
    if app.state == InfraApp.State.DRIFTED and upgrade.final:
        texts = {
            "adopt": "The app has drifted, and nothing is touched. If what runs is right:",
            "restore_ours": "To restore what cc-ci had deployed:",
            "hand_over": "To leave it to its maintainers:",
        }
        return [_pressed(name, app, text) for name, text in texts.items()]
    if upgrade.state in CHANGING:
        if upgrade.request.back:
            return [Next("A rollback was requested: it starts at the next check.")]
        return [_pressed("rollback", app, "To roll back:")]
    if upgrade.state == S.SUCCEEDED:
        if app.last_success() != upgrade:  # there is no version before
            return [Next("Nothing.")]
        return [_pressed("rollback", app, "Nothing. To roll back anyway:")]
    if upgrade.request.kind == install.KIND and upgrade.state in (S.FAILED, S.ROLLED_BACK):
        return _bring_up_again(upgrade)
    if upgrade.state == S.ROLLED_BACK:
        return _after_the_way_back(upgrade)
    if upgrade.state == S.ROLLBACK_FAILED:
        if mender := upgrade.step.get(MENDED):
            return [Next(f"Nothing: {mender} has repaired it.")]
        return [
            _pressed("adopt", app, "Read the log, repair the app manually, and when it is healthy:"),
            Next(
                "The data from before the upgrade:", command("snapshots", app.name), "See the snapshots", app.get_absolute_url()
            ),
        ]
    if upgrade.state == S.FAILED:
        words = "Nothing was changed. What blocks the upgrade:"
        return [Next(words, command("status", app.name), "See the app's status", app.get_absolute_url())]
    return []


def _bring_up_again(upgrade: Upgrade) -> list[Next]:
    app = upgrade.app
    if "--volumes" in upgrade.reason:
        return [
            _pressed("deploy_keep", app, "Nothing was changed. To use the existing volumes:"),
            _pressed("deploy_replace", app, "To replace them with the snapshot:"),
        ]
    return [_pressed("deploy", app, "It is not running. Fix what the reason says, then:")]


def _after_the_way_back(upgrade: Upgrade) -> list[Next]:
    release = upgrade.app.release(upgrade.to_version)
    if release and release.state == InfraRelease.State.QUARANTINED:
        return [_pressed("lift", release, "Wait for a newer version. To try this one again:")]
    return [Next("The version is not to blame: it is tried again as soon as it passes the gate.")]


def _context(upgrade: Upgrade) -> dict[str, Any]:
    events = list(upgrade.events.all())
    states = {str(state) for state in UpgradeState}
    moves = [(event.kind, event.at, event.text) for event in events if event.kind in states]
    samples = [event for event in events if event.kind == "sample"]
    log, cut = _log(upgrade)
    headline = f"{upgrade.versions}: {upgrade.get_state_display()}"
    return {
        "upgrade": upgrade,
        "final": upgrade.final,
        "tone": TONES.get(upgrade.state, "busy"),
        "icon": _ICONS.get(upgrade.state, "running"),
        "headline": headline,
        "title": f"{upgrade.app.name} {headline} · cc-ci",
        "favicon": static(f"controlplane/{_FAVICONS.get(upgrade.state, 'favicon-running')}.svg"),
        "steps": _steps(upgrade, moves),
        "samples": list(reversed(samples[-SHOWN_SAMPLES:])),
        "sample_count": len(samples),
        "trail": [event for event in events if event.kind != "sample"],
        "next": _next(upgrade),
        "took": round((upgrade.finished_at - upgrade.started_at).total_seconds(), 1)
        if upgrade.finished_at and upgrade.started_at
        else None,
        "log": log,
        "cut": cut,
        "log_mark": hashlib.sha256(log.encode()).hexdigest()[:16],
    }


@to_see("infra.upgrade")
@require_safe
def page(request: HttpRequest, pk: int) -> HttpResponse:
    upgrade = get_object_or_404(Upgrade.objects.select_related("app", "snapshot"), pk=pk)
    return render(request, "infra/upgrade.html", _context(upgrade))


@require_safe
def live(request: HttpRequest, pk: int) -> HttpResponse:
    """The parts of the page that change, as JSON; `?seen=` names the log that the reader already has."""
    if not may_see(request.user, "infra.upgrade"):
        return JsonResponse({"error": "login"}, status=403)
    upgrade = get_object_or_404(Upgrade.objects.select_related("app", "snapshot"), pk=pk)
    context = _context(upgrade)
    parts = {name: render(request, f"infra/_upgrade_{name}.html", context).content.decode() for name in PARTS}
    seen = request.GET.get("seen") == context["log_mark"]
    answer = {name: context[name] for name in ("final", "title", "favicon", "headline", "log_mark", "cut")}
    return JsonResponse({"state": upgrade.state, **answer, "log": None if seen else context["log"], "parts": parts})
