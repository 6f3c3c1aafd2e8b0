"""The only file that updates an app, a release or an upgrade: their state tables, and every UPDATE of their rows.

`controlplane.transitions` is the mechanism. An upgrade's transitions are recorded in its trail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.db import IntegrityError
from django.db.models import F, Q
from django.utils import timezone

from controlplane.transitions import Transitions
from infra.models import InfraApp, InfraRelease, Upgrade, UpgradeEvent
from infra.states import CHANGING, FINAL, MENDED, WAITING, UpgradeState
from infra.upgrade_records import Facts

S, A, R = UpgradeState, InfraApp.State, InfraRelease.State
_OURS = Q(owner=InfraApp.Owner.RECONCILED)

#: Of an upgrade: event -> (states it may come from, state it leads to)
MOVES: dict[str, tuple[tuple[UpgradeState, ...], UpgradeState]] = {
    "approve": ((S.PLANNED,), S.APPROVED),
    "snapshot": ((S.APPROVED,), S.SNAPSHOTTING),
    "deploy": ((S.SNAPSHOTTING,), S.DEPLOYING),
    "verify": ((S.DEPLOYING,), S.VERIFYING),
    "soak": ((S.VERIFYING,), S.SOAKING),
    "succeed": ((S.SOAKING,), S.SUCCEEDED),
    "fail": (WAITING, S.FAILED),
    "roll_back": (CHANGING, S.ROLLING_BACK),
    "rolled_back": ((S.ROLLING_BACK,), S.ROLLED_BACK),
    "rollback_failed": ((S.ROLLING_BACK,), S.ROLLBACK_FAILED),
}

#: Of an app: event -> (states it may come from, state it leads to, what else must be true of it)
APP_MOVES: dict[str, tuple[tuple[InfraApp.State, ...], InfraApp.State, Q]] = {
    "upgrade": ((A.SETTLED, A.DRIFTED), A.UPGRADING, _OURS & Q(declared=True)),
    "settle": ((A.UPGRADING,), A.SETTLED, _OURS),
    "drift": ((A.SETTLED, A.UPGRADING, A.DRIFTED), A.DRIFTED, _OURS),
    "adopt": ((A.SETTLED, A.DRIFTED), A.SETTLED, Q()),
    "hand_over": ((A.SETTLED, A.DRIFTED), A.SETTLED, _OURS),
}

#: Of a release: event -> (states it may come from, state it leads to)
RELEASE_MOVES: dict[str, tuple[tuple[InfraRelease.State, ...], InfraRelease.State]] = {
    "hold": ((R.CANDIDATE, R.HELD), R.HELD),
    "clear": ((R.CANDIDATE, R.HELD), R.CANDIDATE),
    "quarantine": ((R.CANDIDATE, R.HELD, R.QUARANTINED), R.QUARANTINED),
    "release": ((R.QUARANTINED,), R.CANDIDATE),
}

_UPGRADES = Transitions(Upgrade, MOVES)
_APPS = Transitions(InfraApp, APP_MOVES)
_RELEASES = Transitions(InfraRelease, RELEASE_MOVES)


# --- upgrades


def move(upgrade: Upgrade, event: str, text: str = "", *, fence: int | None = None, **fields: Any) -> bool:
    """Make a transition, and set `fields` with it; returns whether it was made. With `fence`, only the worker whose number
    the row carries (see `claim`) may make it. The upgrade is refreshed.

    Also False if another upgrade of the same app is active.
    """
    target, now = MOVES[event][1], timezone.now()
    if target in FINAL:
        fields.setdefault("finished_at", now)
    if target == S.SNAPSHOTTING:
        fields.setdefault("started_at", now)
    try:
        return _UPGRADES.move(
            upgrade, event, {"state_at": now, **fields}, where=_held(fence), then=lambda row: note(row, target, text)
        )
    except IntegrityError:
        if target != S.SNAPSHOTTING:  # only this one can violate one_upgrade_at_work_per_app
            raise
        upgrade.refresh_from_db()
        return False


def note(upgrade: Upgrade, kind: str, text: str = "", **data: Any) -> None:
    """Add a line to the trail."""
    UpgradeEvent.objects.create(upgrade=upgrade, at=timezone.now(), kind=kind, text=text, data=data, fence=upgrade.fence)


def claim(upgrade: Upgrade, fence: int) -> bool:
    """Claim the upgrade for the lease holder with this fencing number; False if a later holder has it already."""
    claimed = Upgrade.objects.filter(pk=upgrade.pk, fence__lte=fence).update(fence=fence)
    upgrade.refresh_from_db()
    return bool(claimed)


def announce(upgrade: Upgrade, fence: int, step: Mapping[str, Any], **fields: Any) -> bool:
    """Record the next action, if this worker still holds the upgrade and the app is being upgraded."""
    app = InfraApp.objects.filter(_OURS, pk=upgrade.app_id, state=A.UPGRADING)
    rows = Upgrade.objects.filter(_held(fence), pk=upgrade.pk, state=upgrade.state, app__in=app)
    return _write(upgrade, rows, step=step, **fields)


def remember(upgrade: Upgrade, fence: int, **facts: Any) -> bool:
    """Record facts that later steps need, if this worker still holds the upgrade."""
    rows = Upgrade.objects.filter(_held(fence), pk=upgrade.pk)
    return _write(upgrade, rows, facts=with_facts(upgrade, **facts))


def with_facts(upgrade: Upgrade, **facts: Any) -> dict[str, Any]:
    """The upgrade's facts updated with these, as stored."""
    return replace(Facts.from_json(upgrade.facts), **facts).as_json()


def request_rollback(upgrade: Upgrade, who: str) -> bool:
    """Request a rollback from the worker of a running upgrade."""
    rows = Upgrade.objects.filter(pk=upgrade.pk, state__in=CHANGING)
    asked = _write(upgrade, rows, asked=replace(upgrade.request, back=who).as_json())
    if asked:
        note(upgrade, "asked", f"{who} requested a rollback to {upgrade.from_version}.")
    return asked


def _held(fence: int | None) -> Q:
    return Q() if fence is None else Q(fence=fence)


# --- apps


def move_app(app: InfraApp, event: str, **fields: Any) -> bool:
    """Make an app's transition if it has not changed since it was read; returns whether it was made. The app is refreshed.

    Each transition increments the app's fencing number, so whoever read it earlier can change nothing.
    """
    where = APP_MOVES[event][2] & Q(fence=app.fence, state=app.state)
    return _APPS.move(app, event, {"fence": F("fence") + 1, **fields}, where=where)


def observe(app: InfraApp, columns: Mapping[str, Any]) -> bool:
    """Store what was seen of an app at rest, if it has not changed since it was read."""
    rows = InfraApp.objects.filter(pk=app.pk, fence=app.fence, owner=app.owner, state=A.SETTLED, fingerprint=app.fingerprint)
    return _write(app, rows, **columns)


def declare(app: InfraApp, columns: Mapping[str, Any]) -> bool:
    """Store what infra.yml declares, if the app has not changed since it was read."""
    grown = {"fence": F("fence") + 1} if {"owner", "declared"} & set(columns) else {}
    return bool(InfraApp.objects.filter(pk=app.pk, fence=app.fence, state=app.state).update(**columns, **grown))


def discovered(row: InfraApp | InfraRelease, **columns: Any) -> bool:
    """Store what was read from an app's repository, or an approval: no state depends on it."""
    return _write(row, type(row)._default_manager.filter(pk=row.pk), **columns)


def record_repair(app: InfraApp, who: str) -> None:
    """Record that a person has repaired what a failed rollback left."""
    for upgrade in app.upgrades.filter(state=S.ROLLBACK_FAILED):
        if not upgrade.step.get(MENDED):
            _write(upgrade, Upgrade.objects.filter(pk=upgrade.pk), step={**upgrade.step, MENDED: who})


# --- releases


def move_release(release: InfraRelease, event: str, **fields: Any) -> bool:
    """Make a release's transition; returns whether it was made. The release is refreshed."""
    if RELEASE_MOVES[event][1] != R.HELD:
        fields["held_told_at"] = None
    return _RELEASES.move(release, event, fields)


def judge(release: InfraRelease, held: bool, reasons: list[dict[str, Any]]) -> bool:
    """Store the gate's verdict on a release; returns whether it is newly held. A quarantined one stays in quarantine."""
    was = release.state
    if was == R.QUARANTINED:
        discovered(release, reasons=reasons)
        return False
    return move_release(release, "hold" if held else "clear", reasons=reasons) and held and was != R.HELD


def claim_alert(release: InfraRelease) -> bool:
    """Claim the alert about a held release: exactly one process gets True, once."""
    return _write(release, InfraRelease.objects.filter(pk=release.pk, held_told_at=None), held_told_at=timezone.now())


def _write(row: Any, rows: Any, **columns: Any) -> bool:
    """One conditional UPDATE of columns; also sets them on the instance."""
    written = rows.update(**columns)
    if written:
        for name, value in columns.items():
            setattr(row, name, value)
    return bool(written)
