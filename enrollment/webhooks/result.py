"""The result of a pass over a forge's hooks, and how rows are read for a plan. Asks nobody and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from controlplane.secrets import SecretUnreadable
from enrollment.forges.base import ForgeError
from enrollment.models import WebhookConfig
from enrollment.webhooks.lifecycle import State
from enrollment.webhooks.plan import WRITES, Action, DesiredHook
from enrollment.webhooks.registration import Place

#: A hook that looks right and is unhealthy for longer gets a new secret; at most one each NEW_SECRET_AFTER.
SILENT_AFTER = timedelta(hours=6)
NEW_SECRET_AFTER = timedelta(days=1)


@dataclass
class Pass:
    """The result of a pass over a forge's hooks: the plan and, if it was applied, the number of writes at the forge."""

    forge: str
    actions: list[Action] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    writes: int = 0
    unfinished: bool = False
    skipped: str = ""

    def text(self) -> str:
        if self.skipped:
            return f"{self.forge}: {self.skipped}"
        changes = sum(action.do in WRITES for action in self.actions)
        text = f"{self.forge}: {len(self.actions)} hooks checked, {changes} to change, {self.writes} writes"
        return f"{text}, {len(self.problems)} problems" if self.problems else text


class Coverage(Enum):
    """Whether an organisation's hook covers its repositories."""

    YES = "it covers them"
    NO = "there is none, so each needs its own"
    DOUBT = "unknown, or unhealthy: theirs stay as they are"


def coverage_of(rows: list[WebhookConfig]) -> Coverage:
    """Whether an organisation's hook with these rows covers its repositories."""
    row = next((row for row in rows if row.state != State.ROTATING), None)
    if row and row.state in (State.REGISTERED, State.VERIFIED) and row.remote_id is not None:
        return Coverage.YES
    return Coverage.NO if row and row.state == State.REFUSED else Coverage.DOUBT


def why(place: Place, error: ForgeError) -> str:
    if place.repository is None:
        return (
            f"The token's account does not own {place.owner} ({error}). Each repository gets its own hook, where the "
            "token may create one."
        )
    return f"The token lacks the admin permission on {place} ({error}). Grant it, or add the hook manually."


def not_taken(row: WebhookConfig, error: ForgeError) -> str:
    return (
        f"The forge rejected the hook ({error}). Check that the forge may deliver to {row.url}: CC_CI_WEBHOOK_URL or "
        "CC_CI_BASE_URL sets this address, and the forge's configuration says which hosts are allowed. It is retried "
        "within hours."
    )


def as_desired(row: WebhookConfig, now: datetime) -> DesiredHook:
    try:
        row.reveal_secret()
        unreadable = False
    except SecretUnreadable:
        unreadable = True
    rotating = row.state == State.ROTATING
    return DesiredHook(
        key=row.key,
        url=row.url,
        remote_id=row.remote_id,
        by_hand=row.by_hand,
        refused=row.reason if row.state == State.REFUSED else "",
        rotating=rotating,
        ended=rotating and row.ends_at is not None and row.ends_at <= now,
        unreadable=unreadable and not rotating,
        silent=row.state == State.UNHEALTHY and row.state_at < now - SILENT_AFTER and row.created_at < now - NEW_SECRET_AFTER,
    )
