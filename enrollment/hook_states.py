"""The only file that changes a webhook's state.

MOVES is the table: from which states an event may lead where, and who may cause it. A move is one conditional UPDATE; when
it changes no row, somebody else was first, or the event means nothing in that state. Each move is one line in the log, so a
state that lasts is told once.
"""

from __future__ import annotations

import logging
from typing import Any

from django.utils import timezone

from enrollment.models import WebhookConfig

log = logging.getLogger(__name__)

State = WebhookConfig.State

#: event -> (states it may come from, state it leads to, who may cause it, what happened). docs/webhooks.md shows it.
MOVES: dict[str, tuple[tuple[State, ...], State, str, str]] = {
    "register": (
        (State.ABSENT, State.DRIFTED, State.DISABLED, State.REFUSED),
        State.REGISTERED,
        "reconciling",
        "It stands at the forge as it should; no delivery has proved it yet.",
    ),
    "deliver": (
        (State.ABSENT, State.REGISTERED, State.UNHEALTHY, State.REFUSED),
        State.VERIFIED,
        "the receiver",
        "A delivery of a comment on a pull request of its place came, signed with its own secret.",
    ),
    "miss": (
        (State.VERIFIED,),
        State.UNHEALTHY,
        "polling",
        "Polling found a comment that a delivery should have told.",
    ),
    "drift": (
        (State.REGISTERED, State.VERIFIED, State.UNHEALTHY, State.DISABLED),
        State.DRIFTED,
        "reconciling",
        "At the forge it is gone, or not as it should be. It is repaired, and stays so when that fails.",
    ),
    "disable": (
        (State.ABSENT, State.REGISTERED, State.VERIFIED, State.UNHEALTHY, State.DRIFTED, State.REFUSED),
        State.DISABLED,
        "reconciling",
        "Somebody switched it off at the forge. It stays off, unless CC_CI_WEBHOOK_REENABLE is set.",
    ),
    "refuse": (
        (State.ABSENT, State.REGISTERED, State.UNHEALTHY, State.DRIFTED, State.DISABLED),
        State.REFUSED,
        "reconciling",
        "The token may not see to hooks there, or the forge does not take one. One that delivers stays verified.",
    ),
    "rotate": (
        (State.ABSENT, State.REGISTERED, State.VERIFIED, State.UNHEALTHY, State.DRIFTED, State.DISABLED, State.REFUSED),
        State.ROTATING,
        "a person, reconciling",
        "Another hook with a new secret takes its place. Both secrets count for a while; then it is deleted.",
    ),
}


def move(hook: WebhookConfig, event: str, reason: str = "", **fields: Any) -> bool:
    """Do a move; returns whether it was one. `fields` are set with it. The row in hand is brought up to date."""
    sources, target, _, _ = MOVES[event]
    now = timezone.now()
    moved = WebhookConfig.objects.filter(pk=hook.pk, state__in=sources).update(
        state=target, state_at=now, reason=reason[:2000], **fields
    )
    if moved:
        log.log(
            logging.WARNING if target in (State.UNHEALTHY, State.DRIFTED, State.DISABLED, State.REFUSED) else logging.INFO,
            "webhook of %s is %s now%s",
            hook.place,
            target.value,
            f": {reason}" if reason else "",
        )
        hook.state, hook.state_at, hook.reason = target, now, reason[:2000]
        for name, value in fields.items():
            setattr(hook, name, value)
    return bool(moved)
