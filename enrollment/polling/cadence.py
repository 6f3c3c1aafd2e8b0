"""How often to poll: rarely where a verified hook covers everything, at full speed elsewhere and wherever a hook failed.

A search covers all of an owner's repositories in one request, so an owner is polled rarely if each of its repositories has a
verified hook. The time up to which such an owner was read is kept in the forge's row (`Forge.rarely`), since the forge's own
cursor advances with those that every poll asks for; so nothing is skipped when polling returns to full speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from enrollment.forge_access.clock_skew import believed
from enrollment.models import Forge, Repository
from enrollment.webhooks.coverage import covering, covering_hook

#: Stands for all owners at once, if the forge cannot be asked for one.
ALL = "*"


@dataclass
class Turns:
    """Which owners one poll asks for, and since when."""

    keys: dict[str | None, str]  #: of each owner that could be asked
    calm: frozenset[str | None]
    entries: dict[str, tuple[datetime, datetime]]
    forge_cursor: datetime | None
    earliest: datetime
    alike: bool  #: a response may contain everybody's, so all are asked since the same time
    now: datetime
    every: timedelta

    @property
    def due(self) -> list[str | None]:
        return [owner for owner in self.keys if owner not in self.calm or self._is_due(owner)]

    def _is_due(self, owner: str | None) -> bool:
        if self.forge_cursor is None:
            return True
        entry = self._entry(owner)
        # Also due if our clock was set back.
        return entry is not None and not timedelta(0) <= self.now - entry[1] < self.every

    def _entry(self, owner: str | None) -> tuple[datetime, datetime] | None:
        key = self.keys[owner]
        found = list(self.entries.values()) if key == ALL else [self.entries[name] for name in (key, ALL) if name in self.entries]
        return min(found, default=None)

    def cursor(self, owner: str | None) -> datetime:
        """The forge's time up to which everything of an owner was read."""
        if self.alike:
            return min(self._cursor(name) for name in self.keys)
        return self._cursor(owner)

    def _cursor(self, owner: str | None) -> datetime:
        entry = self._entry(owner)
        return entry[0] if entry else self.forge_cursor or self.earliest

    def settled(self, started_at: datetime, everybody: bool) -> dict[str, Any]:
        """The fields to store in the forge's row after a poll that began at the forge's time `started_at`. `everybody`: the
        responses contained all changes, whoever was asked for.
        """
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
    """Decide which owners the next poll of a forge asks for. `owners` are the possible ones; None stands for all at once."""
    hooks = covering(forge)
    loud = [row for row in repositories if covering_hook(row, hooks) is None]
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
    """The repositories to list individually in this poll, where there is no search: all but calm ones that were listed
    recently.
    """
    hooks, every = covering(forge), timedelta(seconds=settings.CC_CI.poll_rarely_seconds)
    return [
        row
        for row in repositories
        if row.net_cursor is None or covering_hook(row, hooks) is None or abs(timezone.now() - row.net_cursor) > every
    ]
