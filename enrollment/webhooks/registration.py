"""The rows of desired hooks: creating them, rotating their secrets, and revealing a secret to a maintainer once."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from controlplane.secrets import SecretUnreadable
from enrollment.forge_access.clients import client_for
from enrollment.forge_access.rate_limit import Purpose
from enrollment.forges.base import Forbidden, ForgeClient, ForgeError, NotFound
from enrollment.models import Forge, Repository, WebhookConfig
from enrollment.webhooks.lifecycle import State, move
from enrollment.webhooks.plan import key_in

#: How long a manually replaced secret stays valid, until somebody replaces it at the forge.
OVERLAP_BY_HAND = timedelta(days=1)


@dataclass(frozen=True)
class Place:
    """Where a hook belongs: a repository, or (without one) an organisation."""

    forge: Forge
    owner: str
    owner_id: int | None
    repository: Repository | None = None
    gone: str = ""  #: the name of a repository that has no row here any more

    def __str__(self) -> str:
        if self.gone:
            return f"{self.owner}/{self.gone}"
        return self.repository.full_name if self.repository else self.owner

    @property
    def name(self) -> str:
        return self.repository.name if self.repository else self.gone

    def rows(self) -> list[WebhookConfig]:
        """The current one first."""
        rows = WebhookConfig.objects.filter(forge=self.forge, repository=self.repository).select_related("repository")
        if self.repository is None:
            rows = rows.filter(owner_id=self.owner_id)
        if self.gone:
            rows = rows.filter(owner=str(self))
        return sorted(rows, key=current_first)


def current_first(row: WebhookConfig) -> tuple[bool, int]:
    return row.state == State.ROTATING, -row.pk


def new_row(place: Place, **more: object) -> WebhookConfig:
    """Create a row with a new key and a secret that nobody has seen."""
    return WebhookConfig.objects.create(
        forge=place.forge,
        repository=place.repository,
        owner=place.owner,
        owner_id=place.owner_id,
        key=secrets.token_hex(8),
        secret=secrets.token_hex(32),
        **more,
    )


def ensure_row(place: Place) -> None:
    """Create a current row for the place if it has none."""
    if not any(row.state != State.ROTATING for row in place.rows()):
        try:
            with transaction.atomic():
                new_row(place)
        except IntegrityError:
            pass  # another process created it at the same time


def drop_refused(rows: list[WebhookConfig]) -> list[WebhookConfig]:
    """Delete the rows that have no hook at the forge. Returns the others."""
    gone = [row.pk for row in rows if row.state == State.REFUSED and row.remote_id is None and not row.by_hand]
    if gone:
        WebhookConfig.objects.filter(pk__in=gone).delete()
    return [row for row in rows if row.pk not in gone]


def place_of(row: WebhookConfig) -> Place:
    return Place(row.forge, row.repository.owner if row.repository else row.owner, row.owner_id, row.repository)


def replace_secret(row: WebhookConfig, reason: str, *, by_hand: bool = False) -> WebhookConfig | None:
    """Start a rotation: mark the row as rotating and create another one with a new secret. None if another process was faster.

    The next pass creates the new hook, or with `by_hand` a maintainer does; from then on both secrets are valid for OVERLAP; a
    later pass deletes the old hook.
    """
    ends = timezone.now() if row.remote_id is None and not row.by_hand else None
    if row.by_hand:
        ends = timezone.now() + OVERLAP_BY_HAND
    with transaction.atomic():
        if not move(row, "rotate", reason, ends_at=ends, next_check_at=ends):
            return None
        return new_row(place_of(row), by_hand=by_hand)


class SeenTo(Exception):
    """No manual step is needed: cc-ci registered this hook itself. The message says so."""


def secret_by_hand(repository: Repository) -> WebhookConfig:
    """Create a secret for a maintainer who adds the hook manually; it replaces an earlier one. Returns the row, whose secret
    can be revealed only this once. Raises SeenTo, and IntegrityError if two people ask at once.
    """
    place = Place(repository.forge, repository.owner, repository.owner_id, repository)
    with transaction.atomic():
        current = next((row for row in place.rows() if row.state != State.ROTATING), None)
        if current is None:
            return new_row(place, by_hand=True)
        if not current.by_hand:
            if current.remote_id is not None:
                raise SeenTo(
                    f"cc-ci registered the hook of {place} itself; `cc-ci rotate_webhook_secret {place}` rotates its secret."
                )
            # Nobody has seen its secret, and the forge has never received it.
            if not WebhookConfig.objects.filter(pk=current.pk, by_hand=False, remote_id=None).update(by_hand=True):
                raise IntegrityError("Somebody else requested a secret at the same time; try again.")
            current.by_hand = True
            return current
        refusal = current.reason if current.state == State.REFUSED else ""
        made = replace_secret(current, "a maintainer requested a new secret", by_hand=True)
        if made is None:
            raise IntegrityError("Somebody else requested a secret at the same time; try again.")
        if refusal:
            move(made, "refuse", refusal)
        return made


def rotate(rows: list[WebhookConfig]) -> tuple[list[WebhookConfig], list[str]]:
    """Start rotating these current hooks. Returns the new rows, and a line with the reason for each that was skipped.

    Each is checked first: a disabled hook stays disabled, and if the token may not create another, the old one stays.
    """
    begun, left = [], []
    clients: dict[int, ForgeClient] = {}
    for row in rows:
        if row.by_hand:
            left.append(f"{row.place}: added manually; a maintainer creates a new secret on the repository's page")
        elif row.state in (State.REFUSED, State.ABSENT):
            left.append(f"{row.place}: {row.state}; there is no hook to rotate")
        elif _siblings(row):
            left.append(f"{row.place}: a rotation is already in progress")
        elif why := _against(row, clients):
            left.append(f"{row.place}: {why}")
        elif made := replace_secret(row, "a new secret was requested"):
            begun.append(made)
    return begun, left


def _against(row: WebhookConfig, clients: dict[int, ForgeClient]) -> str:
    """Why this hook cannot be replaced, or an empty string. Asks the forge."""
    place, off = place_of(row), row.state == State.DISABLED
    try:
        if row.forge_id not in clients:
            clients[row.forge_id] = client_for(row.forge, Purpose.UPKEEP)
        for hook in clients[row.forge_id].hooks(place.owner, place.name):
            if key_in(hook.url) == row.key:
                off = not hook.active
    except (Forbidden, NotFound) as error:
        return f"the token may no longer manage its hooks ({error}); its secret is unchanged"
    except (ForgeError, SecretUnreadable):
        pass  # the pass that creates the new one reports the error; until then the old one stays valid
    if off and not settings.CC_CI.webhook_reenable:
        return "disabled at the forge; enable it there first, or set CC_CI_WEBHOOK_REENABLE=1"
    return ""


def _siblings(row: WebhookConfig) -> list[WebhookConfig]:
    return [other for other in place_of(row).rows() if other.state == State.ROTATING]
