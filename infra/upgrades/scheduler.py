"""Maintenance runs: which app is upgraded next, one at a time, in order, within its window; and what ends a run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from controlplane.time_window import Window
from infra import alerts
from infra.config.apply import export
from infra.config.load import Declaration
from infra.config.schema import Policy
from infra.lifecycle import claim_alert
from infra.models import AlertSent, InfraApp, InfraRelease, Upgrade
from infra.releases import evaluate
from infra.releases.gate import Plan
from infra.runtime.drift import Refused
from infra.states import UpgradeState
from infra.upgrades import enqueue

TRIGGER = "nightly"
#: How long a maintenance run lasts for an app without a window.
NIGHT = timedelta(hours=12)
_FAILED = (UpgradeState.FAILED, UpgradeState.ROLLED_BACK, UpgradeState.ROLLBACK_FAILED)


@dataclass(frozen=True)
class Next:
    """An app, the gate's plan for it, and why else it is not upgraded in this run; empty if it is."""

    app: InfraApp
    plan: Plan
    waits: str = ""

    @property
    def takes(self) -> bool:
        return bool(self.plan.takes and not self.waits)

    def __str__(self) -> str:
        return f"{self.plan}\n  {self.waits}" if self.waits and self.plan.takes else str(self.plan)


def order() -> list[InfraApp]:
    """The declared apps, each after those it depends on."""
    rows = {app.name: app for app in InfraApp.objects.filter(declared=True)}
    return [rows[name] for name in Declaration(export()).order()]


def ends(upgrade: Upgrade) -> datetime:
    """When the maintenance run of this failure ends: when its app's window closes, or after NIGHT."""
    at = upgrade.finished_at or upgrade.created_at
    window = Window.parse(upgrade.app.window)
    closes = window.closes(at) if window.text and window.contains(at) else None
    return closes or at + NIGHT


def failures(now: datetime) -> list[Upgrade]:
    """The failed upgrades of the current maintenance run."""
    recent = Upgrade.objects.filter(trigger=TRIGGER, state__in=_FAILED, finished_at__gt=now - timedelta(days=8))
    return [upgrade for upgrade in recent.select_related("app") if ends(upgrade) > now]


def whole_plan(now: datetime | None = None, *, look_at_all: bool = True) -> list[Next]:
    """Every app in its order, with what would be done and why not more. Changes nothing on the host.

    Runs preflight only for apps that could be upgraded otherwise, unless `look_at_all`.
    """
    now = now or timezone.now()
    failed = failures(now)
    at_work = Upgrade.objects.under_way().select_related("app").first()
    found = []
    for app in order():
        plan = evaluate.plan_of(app, now=now)
        if plan.takes or (look_at_all and app.ours):
            plan = enqueue.plan_of(app)
        found.append(Next(app, plan, _waits(app, failed, at_work)))
    return found


def _waits(app: InfraApp, failed: list[Upgrade], at_work: Upgrade | None) -> str:
    if at_work:
        return f"Waiting for {at_work} to finish: upgrades run one at a time."
    for one in failed:
        when = f"{ends(one):%Y-%m-%d %H:%M} UTC"
        if one.app_id == app.pk:
            return f"It failed in this maintenance run ({one}); no retry before {when}."
        if Policy.model_validate(one.app.policy).after_failure == "stop":
            return f"The maintenance run ended when {one} failed; the next starts at {when}. (after_failure: stop)"
    return ""


def step() -> str:
    """Start the next upgrade that may start, if any. Returns what was done."""
    tell_held()
    for item in whole_plan(look_at_all=False):
        if item.takes:
            try:
                return f"started {enqueue.begin(item.app, str(item.plan.takes), TRIGGER)}"
            except Refused as error:
                return str(error)
    return summary() or "nothing to do"


def tell_held() -> int:
    """Alert people once about each held version, with the passages of its notes that hold it."""
    waiting = InfraRelease.objects.filter(
        state=InfraRelease.State.HELD, held_told_at=None, gone=False, app__declared=True, app__owner=InfraApp.Owner.RECONCILED
    ).select_related("app")
    told = 0
    for release in waiting:
        if not claim_alert(release):
            continue
        reasons = [f"{r['text']} {r['lift']}" for r in release.reasons]
        passages = [f"> {p['line']}: {p['text']}" for r in release.reasons for p in r["passages"]]
        notes = ["", "Release notes:", *(f"> {line}" for line in release.notes[:3000].splitlines())] if release.notes else []
        text = [f"{release} waits for approval.", *reasons, *passages, *notes]
        told += alerts.tell("held", release.app, text, key=f"{release.version}:{release.commit[:12]}")
    return told


def summary() -> str:
    """Alert people once about the run's results, when nothing is left to do. Empty if there is nothing new."""
    if Upgrade.objects.under_way().exists():
        return ""
    last = AlertSent.objects.filter(kind="nightly").order_by("-at").first()
    done = Upgrade.objects.filter(trigger=TRIGGER).exclude(finished_at=None).select_related("app").order_by("id")
    done = done.filter(finished_at__gt=last.at) if last else done
    if not done:
        return ""
    lines = [f"{one}: {one.get_state_display()}{f'. {one.reason}' if one.reason else ''}" for one in done]
    alerts.tell("nightly", None, lines, key=f"{done[len(done) - 1].pk}")
    return f"reported {len(lines)} upgrades"
