"""The only file that changes an upgrade's state.

MOVES is the table: from which states an event may lead where. A move is one conditional UPDATE; when it changes no row,
somebody else was first, and the caller stops. The trail gets its row in the same transaction.
"""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from infra.models import Upgrade, UpgradeEvent
from infra.states import CHANGING, FINAL, WAITING, UpgradeState

S = UpgradeState

#: event -> (states it may come from, state it leads to)
MOVES: dict[str, tuple[tuple[UpgradeState, ...], UpgradeState]] = {
    "hold": ((S.PLANNED,), S.HELD),
    "approve": ((S.PLANNED, S.HELD), S.APPROVED),
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


def move(upgrade: Upgrade, event: str, text: str = "", *, fence: int | None = None, **fields: Any) -> bool:
    """Do a move; returns whether it was ours to do. `fields` are set with it. With `fence` only the worker whose number
    the row carries (see `claim`) moves anything. The upgrade is refreshed.

    False, too, when another upgrade is at work on the same app.
    """
    sources, target = MOVES[event]
    now = timezone.now()
    if target in FINAL:
        fields.setdefault("finished_at", now)
    if target == S.SNAPSHOTTING:
        fields.setdefault("started_at", now)
    try:
        with transaction.atomic():
            rows = Upgrade.objects.filter(pk=upgrade.pk, state__in=sources)
            if fence is not None:
                rows = rows.filter(fence=fence)
            moved = rows.update(state=target, state_at=now, **fields)
            if moved:
                upgrade.refresh_from_db()
                note(upgrade, target, text)
    except IntegrityError:
        if target != S.SNAPSHOTTING:  # only there the constraint one_upgrade_at_work_per_app can object
            raise
        moved = 0
    if not moved:
        upgrade.refresh_from_db()
    return bool(moved)


def claim(upgrade: Upgrade, fence: int) -> bool:
    """Take the upgrade for the holder of a lease with this fencing number: false when a later holder has it already."""
    claimed = Upgrade.objects.filter(pk=upgrade.pk, fence__lte=fence).update(fence=fence)
    upgrade.refresh_from_db()
    return bool(claimed)


def note(upgrade: Upgrade, kind: str, text: str = "", **data: Any) -> None:
    """Add a line to the trail."""
    UpgradeEvent.objects.create(upgrade=upgrade, at=timezone.now(), kind=kind, text=text, data=data, fence=upgrade.fence)
