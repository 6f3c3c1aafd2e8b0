"""The only file that changes a webhook's state.

MOVES is the table: from which states an event may lead where, and who may cause it; `controlplane.transitions` is the
mechanism. Each move is one line in the log, so a state that lasts is reported once.
"""

from __future__ import annotations

import logging
from typing import Any

from django.utils import timezone

from controlplane.transitions import Transitions
from enrollment.models import WebhookConfig

log = logging.getLogger(__name__)

State = WebhookConfig.State

#: event -> (states it may come from, state it leads to, who may cause it, what happened). docs/webhooks.md shows it.
MOVES: dict[str, tuple[tuple[State, ...], State, str, str]] = {
    "register": (
        (State.ABSENT, State.DRIFTED, State.DISABLED, State.REFUSED),
        State.REGISTERED,
        "reconciling",
        "It exists at the forge as desired; no delivery has proved it yet.",
    ),
    "deliver": (
        (State.ABSENT, State.REGISTERED, State.UNHEALTHY, State.REFUSED),
        State.VERIFIED,
        "the receiver",
        "A delivery about a comment on a pull request in its scope arrived, signed with its own secret.",
    ),
    "miss": (
        (State.VERIFIED,),
        State.UNHEALTHY,
        "polling",
        "Polling found a comment that no delivery had reported.",
    ),
    "drift": (
        (State.REGISTERED, State.VERIFIED, State.UNHEALTHY, State.DISABLED),
        State.DRIFTED,
        "reconciling",
        "It is missing at the forge, or differs from the desired state. It is repaired; if that fails, it stays drifted.",
    ),
    "disable": (
        (State.ABSENT, State.REGISTERED, State.VERIFIED, State.UNHEALTHY, State.DRIFTED, State.REFUSED),
        State.DISABLED,
        "reconciling",
        "Somebody disabled it at the forge. It stays disabled, unless CC_CI_WEBHOOK_REENABLE is set.",
    ),
    "refuse": (
        (State.ABSENT, State.REGISTERED, State.UNHEALTHY, State.DRIFTED, State.DISABLED),
        State.REFUSED,
        "reconciling",
        "The token may not manage hooks there, or the forge does not accept one. One that delivers stays verified.",
    ),
    "rotate": (
        (State.ABSENT, State.REGISTERED, State.VERIFIED, State.UNHEALTHY, State.DRIFTED, State.DISABLED, State.REFUSED),
        State.ROTATING,
        "a person, reconciling",
        "Another hook with a new secret replaces it. Both secrets are valid for a while; then it is deleted.",
    ),
}

_HOOKS = Transitions(WebhookConfig, MOVES)


def move(hook: WebhookConfig, event: str, reason: str = "", **fields: Any) -> bool:
    """Make a transition and set `fields` with it; refreshes `hook`. Returns whether the transition was made."""
    target = MOVES[event][1]
    moved = _HOOKS.move(hook, event, {"state_at": timezone.now(), "reason": reason[:2000], **fields})
    if moved:
        bad = target in (State.UNHEALTHY, State.DRIFTED, State.DISABLED, State.REFUSED)
        words = f": {reason}" if reason else ""
        log.log(logging.WARNING if bad else logging.INFO, "webhook of %s is now %s%s", hook.place, target.value, words)
    return moved
