"""Run the gate for an app: rows in, rows out. `Preflight` carries what only the host can tell."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils import timezone

from controlplane.registry import registry
from controlplane.time_window import Window
from infra import lifecycle
from infra.config.schema import Policy
from infra.models import InfraApp, InfraRelease
from infra.recipe_version import Unreadable, Version
from infra.releases.gate import Evidence, GateFacts, Plan, Preflight, Release, decide, evidence_of


class NotApproved(Exception):
    """This version cannot be approved; the message says why and what to do."""


_UNSEEN = Preflight()


def plan_of(app: InfraApp, preflight: Preflight = _UNSEEN, *, any_time: bool = False, now: datetime | None = None) -> Plan:
    """What may be done with the app now. `any_time`: a person asked, so the window and the host's load are ignored."""
    return decide(facts_of(app, preflight, any_time=any_time, now=now or timezone.now()))


def facts_of(app: InfraApp, preflight: Preflight, *, any_time: bool, now: datetime) -> GateFacts:
    """The gate's input, from the rows and `preflight`."""
    releases = app.releases.filter(gone=False)
    running = readable(app.running_version)
    at_work, failed = app.under_way(), app.rollback_failed()
    return GateFacts(
        app=app.name,
        now=now,
        running=running,
        releases=[_release(app, row, running) for row in releases if readable(row.version)],
        policy=Policy.model_validate(app.policy),
        window=Window.parse(app.window),
        ours=app.ours,
        any_time=any_time,
        by_hand=by_hand(app),
        drifted=app.state == InfraApp.State.DRIFTED,
        under_way=f"{at_work.from_version} → {at_work.to_version}, {at_work.get_state_display()}." if at_work else "",
        rollback_failed=(failed.reason or f"the rollback of {failed.to_version}.") if failed else "",
        preflight=preflight,
    )


def by_hand(app: InfraApp) -> str:
    """The command its maintainers run to upgrade it, without the version."""
    return f"abra app upgrade {app.domain}"


def readable(text: str) -> Version | None:
    try:
        return Version.parse(text)
    except Unreadable:
        return None


def _release(app: InfraApp, row: InfraRelease, running: Version | None) -> Release:
    version = Version.parse(row.version)
    quarantined = ""
    if row.state == InfraRelease.State.QUARANTINED:
        quarantined = str(row.evidence.get("quarantined") or "an upgrade to it was rolled back.")
    return Release(
        version=version,
        published_at=row.published_at,
        annotated=row.annotated,
        notes=row.notes,
        quarantined=quarantined,
        waived=frozenset(row.lifted) if row.approved_at else frozenset(),
        # Others answer this from their own tables, so it is asked only about newer versions.
        evidence=_evidence(app, row) if running and version > running else None,
    )


def _evidence(app: InfraApp, row: InfraRelease) -> Evidence | None:
    """This server's test results for the release; those for another commit under the same tag do not count."""
    answer: dict[str, Any] | None = registry.ask("version_evidence", app.recipe, row.version)
    if answer and answer.get("commit") and answer["commit"] != row.commit:
        return None
    return evidence_of(answer)


def record(app: InfraApp, plan: Plan) -> list[InfraRelease]:
    """Store the gate's verdict on each release. Returns those that are newly held."""
    newly = []
    for row in app.releases.all():
        version = readable(row.version)
        verdict = plan.verdict(version) if version else None
        reasons = [blocker.as_dict() for blocker in verdict.blockers] if verdict else []
        held = bool(verdict and verdict.held)
        states = (InfraRelease.State.QUARANTINED, InfraRelease.State.HELD if held else InfraRelease.State.CANDIDATE)
        if (row.state not in states or row.reasons != reasons) and lifecycle.judge(row, held, reasons):
            newly.append(row)
    return newly


def approve(app: InfraApp, version: str, who: str) -> InfraRelease:
    """Waive this version's current cumulative blockers, for it alone. Raises NotApproved."""
    with transaction.atomic():
        row = app.releases.select_for_update().filter(version=version, gone=False).first()
        if row is None:
            raise NotApproved(f"{app.name} has no release {version}. See: {command('releases', app.name)}")
        if not app.ours:
            raise NotApproved(
                f"{app.name} is managed by its maintainers, who need no approval here. They run: {by_hand(app)} {version}"
            )
        if row.state == InfraRelease.State.QUARANTINED:
            raise NotApproved(f"{version} is quarantined. To release it: {command('lift', app.name, version)}")
        plan = plan_of(app)
        parsed = readable(version)
        verdict = plan.verdict(parsed) if parsed else None
        if verdict is None:
            raise NotApproved(f"{version} is not newer than what runs ({app.running_version or 'unknown'}).")
        waived = {blocker.key for blocker in (*verdict.blockers, *verdict.waived) if blocker.scope == "cumulative"}
        if not verdict.held:
            why = "it is already approved" if verdict.waived else "it has no blocker that an approval can waive"
            rest = "".join(f" {blocker.text} {blocker.remedy}" for blocker in verdict.blockers)
            raise NotApproved(f"{version} needs no approval: {why}.{rest}")
        lifecycle.discovered(row, approved_by=who[:255], approved_at=timezone.now(), lifted=sorted(waived))
        record(app, plan_of(app))
    row.refresh_from_db()
    return row


def command(*words: str) -> str:
    """A command as one types it."""
    return " ".join(("cc-ci infra", *words))
