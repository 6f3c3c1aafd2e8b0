"""The states of an upgrade."""

from __future__ import annotations

from django.db.models import TextChoices


class UpgradeState(TextChoices):
    PLANNED = "planned", "planned"
    APPROVED = "approved", "approved"
    SNAPSHOTTING = "snapshotting", "snapshotting"
    DEPLOYING = "deploying", "deploying"
    VERIFYING = "verifying", "verifying"
    SOAKING = "soaking", "soaking"
    SUCCEEDED = "succeeded", "succeeded"
    FAILED = "failed", "failed before anything was changed"
    ROLLING_BACK = "rolling_back", "rolling back"
    ROLLED_BACK = "rolled_back", "rolled back"
    ROLLBACK_FAILED = "rollback_failed", "rollback failed"


#: Something may have been changed, and a rollback is possible.
CHANGING = (UpgradeState.SNAPSHOTTING, UpgradeState.DEPLOYING, UpgradeState.VERIFYING, UpgradeState.SOAKING)
#: Active: the database allows one per app.
WORKING = (*CHANGING, UpgradeState.ROLLING_BACK)
#: Active, or about to start.
UNDER_WAY = (*WORKING, UpgradeState.APPROVED)
#: Nothing has been changed yet.
WAITING = (UpgradeState.PLANNED, UpgradeState.APPROVED)
FINAL = (UpgradeState.SUCCEEDED, UpgradeState.FAILED, UpgradeState.ROLLED_BACK, UpgradeState.ROLLBACK_FAILED)

#: The key in `Upgrade.step` for who repaired the app after a failed rollback.
MENDED = "mended"
