"""What a pass over a forge's hooks found, and how the rows read to it. Asks nobody, and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from controlplane.secrets import SecretUnreadable
from enrollment.forges.base import ForgeError
from enrollment.hook_rows import Place
from enrollment.hook_states import State
from enrollment.models import WebhookConfig
from enrollment.webhooks import WRITES, Action, Wanted

#: A hook that looks right and is unhealthy for longer gets a new secret; at most one each NEW_SECRET_AFTER.
SILENT_AFTER = timedelta(hours=6)
NEW_SECRET_AFTER = timedelta(days=1)


@dataclass
class Pass:
    """What a look at a forge's hooks found: the plan and, when it was applied, how often something was written there."""

    forge: str
    actions: list[Action] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    writes: int = 0
    unfinished: bool = False
    skipped: str = ""

    def words(self) -> str:
        if self.skipped:
            return f"{self.forge}: {self.skipped}"
        changes = sum(action.do in WRITES for action in self.actions)
        text = f"{self.forge}: {len(self.actions)} hooks looked at, {changes} to change, {self.writes} writes"
        return f"{text}, {len(self.problems)} problems" if self.problems else text


class Told(Enum):
    """What an organisation's hook is to its repositories."""

    YES = "it tells of them"
    NO = "there is none, so each needs its own"
    DOUBT = "it is not known, or not well: theirs stay as they are"


def told_by(rows: list[WebhookConfig]) -> Told:
    """What the hook of an organisation with these rows is to its repositories."""
    row = next((row for row in rows if row.state != State.ROTATING), None)
    if row and row.state in (State.REGISTERED, State.VERIFIED) and row.remote_id is not None:
        return Told.YES
    return Told.NO if row and row.state == State.REFUSED else Told.DOUBT


def why(place: Place, error: ForgeError) -> str:
    if place.repository is None:
        return f"The token does not own {place.owner} ({error}). Each repository gets a hook of its own, where the token may."
    return f"The token has no admin right at {place} ({error}). Give it one, or add the hook by hand."


def not_taken(row: WebhookConfig, error: ForgeError) -> str:
    return (
        f"The forge does not take the hook ({error}). See that it may deliver to {row.url}: the address is CC_CI_WEBHOOK_URL or "
        "CC_CI_BASE_URL here, and which are allowed is set at the forge. Or give it time: it is tried again within hours."
    )


def as_wanted(row: WebhookConfig, now: datetime) -> Wanted:
    try:
        row.reveal_secret()
        unreadable = False
    except SecretUnreadable:
        unreadable = True
    rotating = row.state == State.ROTATING
    return Wanted(
        key=row.key,
        url=row.url,
        remote_id=row.remote_id,
        seen=row.remote_id is not None,
        by_hand=row.by_hand,
        refused=row.reason if row.state == State.REFUSED else "",
        rotating=rotating,
        ended=rotating and row.ends_at is not None and row.ends_at <= now,
        unreadable=unreadable and not rotating,
        silent=row.state == State.UNHEALTHY and row.state_at < now - SILENT_AFTER and row.created_at < now - NEW_SECRET_AFTER,
    )
