"""Desired hooks against actual hooks: a plan, with a reason for each line. Decides only; `reconcile` executes it.

A hook is ours if its URL is our receiver's or carries one of our keys. All others are foreign and never touched.
docs/webhooks.md has the forges' peculiarities: they list more events than were sent, a PATCH resets what it omits and cannot
change the secret, and duplicates are accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from urllib.parse import parse_qs, urlsplit

from enrollment.forges.base import Event, Hook

#: The name of the key in a hook's URL.
KEY = "hook"


class Do(Enum):
    """What to do about one hook."""

    CREATE = "create"
    UPDATE = "update"
    ROTATE = "rotate"
    DELETE = "delete"
    FORGET = "forget"  #: delete the row; the forge has no hook
    NOTHING = "nothing"
    DISABLED = "disabled"  #: shown, and left alone
    REFUSED = "refused"


#: In this order: new hooks exist before old ones are deleted.
ORDER = tuple(Do)
#: Those that write, at the forge or here.
WRITES = frozenset({Do.CREATE, Do.UPDATE, Do.ROTATE, Do.DELETE, Do.FORGET})


@dataclass(frozen=True)
class DesiredHook:
    """One of our rows, as far as a plan needs it."""

    key: str
    url: str
    remote_id: int | None = None  #: None if it never existed at the forge
    by_hand: bool = False
    refused: str = ""  #: why there is none, if known
    rotating: bool = False  #: another takes its place
    ended: bool = False  #: and its secret is no longer valid
    unreadable: bool = False  #: no key of ours decrypts its secret
    silent: bool = False  #: unhealthy for so long that its secret is in doubt


@dataclass(frozen=True)
class Action:
    """A line of the plan. `key` identifies the row, `hook` is the actual hook at the forge; each may be missing."""

    do: Do
    place: str
    reason: str
    key: str = ""
    hook: Hook | None = None

    def text(self) -> str:
        number = f" (hook {self.hook.id})" if self.hook else ""
        return f"{self.do.value:<8} {self.place}{number}: {self.reason}"


def key_in(url: str) -> str:
    """The key in a hook's URL, or an empty string."""
    try:
        return parse_qs(urlsplit(url).query).get(KEY, [""])[0]
    except ValueError:
        return ""


def is_ours(url: str, address: str, keys: Sequence[str]) -> bool:
    """Whether a hook's URL is our receiver's: at its current address or, with one of our keys, at an earlier one."""
    bare = url.partition("?")[0].rstrip("/")
    return bare == address.rstrip("/") or key_in(url) in keys


def differences(hook: Hook, url: str, events: Sequence[Event]) -> list[str]:
    """How a hook at the forge differs from the desired state. Additional events are left to the server."""
    found = []
    if hook.url != url:
        found.append(f"its URL is {hook.url}")
    if missing := [event.name for event in events if not event.is_in(hook.events)]:
        found.append(f"it lacks the event {' and '.join(missing)}")
    if hook.content_type != "json":
        found.append(f"its content type is {hook.content_type or 'not set'}, not json")
    if hook.branch_filter not in ("", "*"):
        found.append(f"it has the branch filter {hook.branch_filter}")
    return found


def plan(
    place: str,
    rows: Sequence[DesiredHook],
    found: Sequence[Hook],
    *,
    address: str,
    events: Sequence[Event],
    unwanted: str = "",
    reenable: bool = False,
) -> list[Action]:
    """What to do in one place, new hooks first. `unwanted` says why no hook is desired there; empty if one is."""
    keys = [row.key for row in rows]
    ours = [hook for hook in found if is_ours(hook.url, address, keys)]
    # A disabled hook stays disabled: no enabled one replaces it.
    old = {row.key for row in rows if row.rotating}
    others_off = not reenable and any(key_in(hook.url) in old and not hook.active for hook in ours)
    actions: list[Action] = []
    for row in rows:
        same = sorted(
            (hook for hook in ours if key_in(hook.url) == row.key), key=lambda hook: (hook.id != row.remote_id, hook.id)
        )
        actions.append(_one(place, row, same[0] if same else None, events, unwanted, reenable, others_off))
        actions += [Action(Do.DELETE, place, "a duplicate: it would report everything twice", hook=hook) for hook in same[1:]]
    actions += [
        Action(Do.DELETE, place, "a duplicate: it has our URL, but its secret is unknown here", hook=hook)
        for hook in ours
        if key_in(hook.url) not in keys
    ]
    return sorted(actions, key=lambda action: ORDER.index(action.do))


def _one(
    place: str, row: DesiredHook, hook: Hook | None, events: Sequence[Event], unwanted: str, reenable: bool, others_off: bool
) -> Action:
    def action(do: Do, reason: str) -> Action:
        return Action(do, place, reason, row.key, hook)

    if row.rotating and (row.ended or (unwanted and not row.by_hand)):
        return action(Do.DELETE if hook else Do.FORGET, "replaced by a hook with a new secret")
    if row.rotating:
        return action(Do.NOTHING, "being replaced; its secret is still valid")
    if unwanted and row.by_hand:
        return action(Do.NOTHING, "managed manually by a maintainer")
    if unwanted:
        return action(Do.DELETE if hook else Do.FORGET, unwanted)
    if others_off if hook is None else not (hook.active or reenable):
        return action(Do.DISABLED, "somebody disabled it at the forge; CC_CI_WEBHOOK_REENABLE=1 enables such hooks again")
    if row.unreadable:
        return action(Do.ROTATE, "its secret cannot be decrypted: no current key fits")
    if hook is None and row.by_hand:
        return action(Do.ROTATE, "nobody has added it manually, and the token may: it gets a secret that nobody has seen")
    if hook is None:
        before = f"; previously refused: {row.refused}" if row.refused else ""
        return action(Do.CREATE, ("none exists yet" if row.remote_id is None else "it was deleted at the forge") + before)
    wrong = differences(hook, row.url, events)
    if not hook.active:
        wrong = ["it was disabled at the forge", *wrong]
    if wrong:
        return action(Do.UPDATE, "; ".join(wrong))
    if row.silent:
        # A secret can be neither changed nor read: only a new one is certain.
        return action(Do.ROTATE, "it looks right but delivers nothing: the forge may have another secret")
    return action(Do.NOTHING, "in sync")


def is_desired(setting: bool, forge: str, repository: str = "") -> bool:
    """Whether a hook is desired: the repository's value takes precedence over its forge's, and that over the setting."""
    return setting if not (word := repository or forge) else word == "on"
