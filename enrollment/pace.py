"""How often to ask: rarely where a verified hook tells of everything, at full speed elsewhere and wherever one let us down.

A search asks for all of an owner's repositories in one request, so an owner rests when each of its repositories has a
verified hook. Where its last look was is kept on the forge's row (`Forge.rarely`), since the forge's own cursor goes on with
those that are asked at each look; so nothing that was said meanwhile is skipped when it is asked at full speed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from enrollment.clocks import believed
from enrollment.hook_states import State, move
from enrollment.models import Comment, Delivery, Forge, Repository, WebhookConfig
from enrollment.webhooks import wanted

#: A delivery may take so long, retries of the queue included, before polling's finding counts against the hook.
GRACE = timedelta(seconds=60)
#: How far back polling's findings are held against the hooks.
BACK = timedelta(minutes=30)
#: The forge's clock and ours may differ by so much.
CLOCKS_DIFFER = timedelta(minutes=2)
#: Stands for all owners at once, where the forge cannot be asked for one.
ALL = "*"


def covering(forge: Forge) -> tuple[dict[int, WebhookConfig], dict[int, WebhookConfig]]:
    """The verified hooks of a forge: by repository, and by owner's id."""
    hooks = list(WebhookConfig.objects.filter(forge=forge, state=State.VERIFIED).select_related("repository"))
    own = {hook.repository_id: hook for hook in hooks if hook.repository_id is not None}
    return own, {hook.owner_id: hook for hook in hooks if hook.repository_id is None and hook.owner_id is not None}


def told_by(row: Repository, hooks: tuple[dict[int, WebhookConfig], dict[int, WebhookConfig]]) -> WebhookConfig | None:
    """The verified hook that tells of a repository's comments: its own, or its organisation's unless hooks are off for it."""
    own, organisations = hooks
    if hook := own.get(row.pk):
        return hook
    if row.owner_id is not None and wanted(settings.CC_CI.webhook_autoregister, row.forge.webhooks, row.webhooks):
        return organisations.get(row.owner_id)
    return None


@dataclass
class Turns:
    """Whom one look asks, and from when on."""

    keys: dict[str | None, str]  #: of each owner that could be asked
    calm: frozenset[str | None]
    entries: dict[str, tuple[datetime, datetime]]
    forge_cursor: datetime | None
    earliest: datetime
    alike: bool  #: an answer may hold everybody's, so all are asked from the same time on
    now: datetime
    every: timedelta

    @property
    def due(self) -> list[str | None]:
        return [owner for owner in self.keys if owner not in self.calm or self._is_due(owner)]

    def _is_due(self, owner: str | None) -> bool:
        if self.forge_cursor is None:
            return True
        entry = self._entry(owner)
        # Also when our clock was set back.
        return entry is not None and not timedelta(0) <= self.now - entry[1] < self.every

    def _entry(self, owner: str | None) -> tuple[datetime, datetime] | None:
        key = self.keys[owner]
        found = list(self.entries.values()) if key == ALL else [self.entries[name] for name in (key, ALL) if name in self.entries]
        return min(found, default=None)

    def cursor(self, owner: str | None) -> datetime:
        """The forge's time up to which all of an owner's is seen."""
        if self.alike:
            return min(self._cursor(name) for name in self.keys)
        return self._cursor(owner)

    def _cursor(self, owner: str | None) -> datetime:
        entry = self._entry(owner)
        return entry[0] if entry else self.forge_cursor or self.earliest

    def settled(self, started_at: datetime, everybody: bool) -> dict[str, Any]:
        """What is to be written on the forge's row after a look that began at the forge's time `started_at`. `everybody`:
        the answers held all that changed, whoever was asked for."""
        asked = set(self.keys) if everybody else set(self.due)
        left: dict[str, list[str]] = {}
        for owner, key in self.keys.items():
            if owner in self.calm:
                entry = self._entry(owner) or (self._cursor(owner), self.now)
                seen, at = (started_at, self.now) if owner in asked else entry
                left[key] = [seen.isoformat(), at.isoformat()]
        fields: dict[str, Any] = {"rarely": left}
        # The cursor is for those without an entry: it moves when one of them was asked, or when all were.
        if asked and (asked == set(self.keys) or not asked <= self.calm):
            fields["cursor"] = started_at
        return fields


def turns(forge: Forge, repositories: Sequence[Repository], owners: Iterable[str | None]) -> Turns:
    """Whom the next look at a forge asks. `owners` are those that could be asked for; None stands for all at once."""
    hooks = covering(forge)
    loud = [row for row in repositories if told_by(row, hooks) is None]
    names = {row.owner for row in loud}
    keys = {row.owner: str(row.owner_id or row.owner) for row in repositories}
    owners = list(owners)
    earliest = min(row.enrolled_at for row in repositories)
    return Turns(
        keys={owner: ALL if owner is None else keys[owner] for owner in owners},
        calm=frozenset(owner for owner in owners if (not loud if owner is None else owner not in names)),
        entries=_read(forge.rarely, earliest),
        forge_cursor=believed(forge.cursor),
        earliest=earliest,
        alike=forge.search != Forge.OwnerFilter.WORKS,
        now=timezone.now(),
        every=timedelta(seconds=settings.CC_CI.poll_rarely_seconds),
    )


def _read(kept: dict[str, list[str]], earliest: datetime) -> dict[str, tuple[datetime, datetime]]:
    times = {name: (datetime.fromisoformat(seen), datetime.fromisoformat(at)) for name, (seen, at) in kept.items()}
    return {name: (believed(seen) or earliest, at) for name, (seen, at) in times.items()}


def to_list(forge: Forge, repositories: Iterable[Repository]) -> list[Repository]:
    """Those to be listed one by one at this look, where there is no search: all but the calm ones that were listed lately."""
    hooks, every = covering(forge), timedelta(seconds=settings.CC_CI.poll_rarely_seconds)
    return [
        row
        for row in repositories
        if row.net_cursor is None or told_by(row, hooks) is None or abs(timezone.now() - row.net_cursor) > every
    ]


# --- hooks that let us down


def find_unhealthy() -> list[str]:
    """Move hooks that missed a comment to *unhealthy*. Returns a line for each.

    What polling found is held against what was delivered: a comment that was written while the hook was verified, and of
    which GRACE after it was found no rightly signed delivery has come, was missed.
    """
    now = timezone.now()
    found = (
        Comment.objects.exclude(via=Comment.Via.DELIVERY)
        .filter(seen_at__gt=now - BACK, seen_at__lt=now - GRACE)
        .select_related("pull_request__repository__forge", "forge")
        .order_by("created_at")
    )
    lines: list[str] = []
    hooks: dict[int, tuple[dict[int, WebhookConfig], dict[int, WebhookConfig]]] = {}
    for comment in found:
        if comment.forge_id not in hooks:
            hooks[comment.forge_id] = covering(comment.forge)
        hook = told_by(comment.pull_request.repository, hooks[comment.forge_id])
        if hook is None or comment.updated_at < hook.state_at + CLOCKS_DIFFER:
            continue
        # Of its own place: by another hook, whose secret people may know, anybody's comments could be told.
        told = Delivery.objects.filter(repository=comment.pull_request.repository, forge_comment_id=comment.forge_comment_id)
        if told.exists():
            continue
        reason = f"polling found {comment} on {comment.pull_request}, and no delivery told of it"
        # Looked at at once: perhaps it can be repaired.
        if move(hook, "miss", reason, next_check_at=None):
            lines.append(f"{hook.place}: {reason}")
            del hooks[comment.forge_id]
    return lines
