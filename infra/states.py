"""The states of an upgrade."""

from __future__ import annotations

from django.db.models import TextChoices


class UpgradeState(TextChoices):
    PLANNED = "planned", "planned"
    HELD = "held", "held"
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


#: Something may have been changed, and the way back is open.
CHANGING = (UpgradeState.SNAPSHOTTING, UpgradeState.DEPLOYING, UpgradeState.VERIFYING, UpgradeState.SOAKING)
#: At work on the app: the database lets an app have one such upgrade.
WORKING = (*CHANGING, UpgradeState.ROLLING_BACK)
#: Nothing was changed yet.
WAITING = (UpgradeState.PLANNED, UpgradeState.HELD, UpgradeState.APPROVED)
FINAL = (UpgradeState.SUCCEEDED, UpgradeState.FAILED, UpgradeState.ROLLED_BACK, UpgradeState.ROLLBACK_FAILED)
