"""Lets the gate look at an app: rows in, rows out. What only the machine can tell is handed in as `Live`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils import timezone

from controlplane.registry import registry
from infra.gate import Evidence, GateFacts, Plan, Release, decide, evidence_of
from infra.models import InfraApp, InfraRelease, Upgrade
from infra.schema import Policy
from infra.states import WORKING, UpgradeState
from infra.versions import Unreadable, Version
from infra.window import Window

#: The key in `Upgrade.step` by which a person's word is kept that a failed rollback was mended.
MENDED = "mended"


class NotApproved(Exception):
    """This version cannot be approved; the message says why and what to do."""


@dataclass(frozen=True)
class Live:
    """What a look at the machine found; each text a sentence, empty when all is well. Nothing was looked at: all empty."""

    contested: str = ""
    sick: str = ""
    busy: str = ""
    disk: str = ""
    old_image: str = ""


_UNSEEN = Live()


def look(app: InfraApp, live: Live = _UNSEEN, *, any_time: bool = False, now: datetime | None = None) -> Plan:
    """What may be done with the app now. `any_time`: a person asked: neither the window nor a busy machine counts."""
    return decide(facts_of(app, live, any_time=any_time, now=now or timezone.now()))


def facts_of(app: InfraApp, live: Live, *, any_time: bool, now: datetime) -> GateFacts:
    """All that the gate is to know, from the rows and from `live`."""
    releases = app.releases.filter(gone=False)
    running = readable(app.running_version)
    contested = live.contested
    if not contested and app.state == InfraApp.State.CONTESTED:
        contested = "something changed it without cc-ci."
    upgrades = app.upgrades.filter(state__in=[*WORKING, UpgradeState.ROLLBACK_FAILED, UpgradeState.SUCCEEDED])
    last = upgrades.order_by("-id").first()
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
        contested=contested,
        under_way=f"{last.from_version} → {last.to_version}, {last.get_state_display()}."
        if last and last.state in WORKING
        else "",
        rollback_failed=_rollback_failed(last),
        sick=live.sick,
        busy=live.busy,
        disk=live.disk,
        old_image=live.old_image,
    )


def _rollback_failed(last: Upgrade | None) -> str:
    if last is None or last.state != UpgradeState.ROLLBACK_FAILED or last.step.get(MENDED):
        return ""
    return last.reason or f"that of {last.to_version}."


def by_hand(app: InfraApp) -> str:
    """What its maintainers type to upgrade it, without the version."""
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
        lifted=frozenset(row.lifted) if row.approved_at else frozenset(),
        # Others answer this from their own tables: asked only about what may come.
        evidence=_evidence(app, row) if running and version > running else None,
    )


def _evidence(app: InfraApp, row: InfraRelease) -> Evidence | None:
    """What this server's tests say of the release; what was said of another commit under the same tag does not count."""
    answer: dict[str, Any] | None = registry.ask("version_evidence", app.recipe, row.version)
    if answer and answer.get("commit") and answer["commit"] != row.commit:
        return None
    return evidence_of(answer)


def record(app: InfraApp, plan: Plan) -> list[InfraRelease]:
    """Write down what the gate said of each release. Returns those that came to be held now."""
    newly: list[InfraRelease] = []
    for row in app.releases.all():
        version = readable(row.version)
        verdict = plan.verdict(version) if version else None
        reasons = [blocker.as_dict() for blocker in verdict.blockers] if verdict else []
        state = row.state
        if state != InfraRelease.State.QUARANTINED:
            state = InfraRelease.State.HELD if verdict and verdict.held else InfraRelease.State.CANDIDATE
        if (row.state, row.reasons) == (state, reasons):
            continue
        # A release that was quarantined in this moment stays it.
        told = row.held_told_at if state == InfraRelease.State.HELD else None
        if InfraRelease.objects.filter(pk=row.pk, state=row.state).update(state=state, reasons=reasons, held_told_at=told):
            if state == InfraRelease.State.HELD and row.state != state:
                newly.append(row)
            row.state, row.reasons = state, reasons
    return newly


def approve(app: InfraApp, version: str, who: str) -> InfraRelease:
    """Lift the cumulative blockers that this version has now, for it alone. Raises NotApproved."""
    with transaction.atomic():
        row = app.releases.select_for_update().filter(version=version, gone=False).first()
        if row is None:
            raise NotApproved(f"{app.name} has no release {version}. See: {command('releases', app.name)}")
        if not app.ours:
            raise NotApproved(f"{app.name} is its maintainers', who need no approval here. They type: {by_hand(app)} {version}")
        if row.state == InfraRelease.State.QUARANTINED:
            raise NotApproved(f"{version} is quarantined. To try it again: {command('lift', app.name, version)}")
        plan = look(app)
        parsed = readable(version)
        verdict = plan.verdict(parsed) if parsed else None
        if verdict is None:
            raise NotApproved(f"{version} is not above what runs ({app.running_version or 'nothing that is known'}).")
        lifted = {blocker.key for blocker in (*verdict.blockers, *verdict.lifted) if blocker.scope == "cumulative"}
        if not verdict.held:
            why = "it was approved already" if verdict.lifted else "nothing holds it that a person could lift"
            rest = "".join(f" {blocker.text} {blocker.lift}" for blocker in verdict.blockers)
            raise NotApproved(f"{version} needs no approval: {why}.{rest}")
        row.approved_by, row.approved_at, row.lifted = who[:255], timezone.now(), sorted(lifted)
        row.save(update_fields=["approved_by", "approved_at", "lifted"])
        record(app, look(app))
    row.refresh_from_db()
    return row


def command(*words: str) -> str:
    """A command as it is typed."""
    return " ".join(("cc-ci infra", *words))
