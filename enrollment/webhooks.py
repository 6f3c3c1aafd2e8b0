"""Wanted hooks against real hooks: a plan, with a reason for each line. Decisions only; `hook_reconcile` does what they say.

A hook is ours when its URL is our receiver's, or carries a key of ours. All others are foreign, and never touched. What
surprises at the far side is in docs/webhooks.md: the list of events reads back longer than it was written, a PATCH resets
what it does not name, a PATCH cannot change the secret, and nothing there stops duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from urllib.parse import parse_qs, urlsplit

from enrollment.forges.base import Hook

#: Comments on pull requests are the second; a hook for the first alone never tells of them.
EVENTS = ("issue_comment", "pull_request_comment")
#: The name of the key in a hook's URL.
KEY = "hook"


class Do(Enum):
    """What is to be done about one hook."""

    CREATE = "create"
    UPDATE = "update"
    ROTATE = "rotate"
    DELETE = "delete"
    FORGET = "forget"  #: the row goes; there is nothing at the forge
    NOTHING = "nothing"
    DISABLED = "disabled"  #: shown, and left alone
    REFUSED = "refused"


#: In this order: what is new stands before what is old goes.
ORDER = tuple(Do)
#: Those that write at the forge, or here.
WRITES = frozenset({Do.CREATE, Do.UPDATE, Do.ROTATE, Do.DELETE, Do.FORGET})


@dataclass(frozen=True)
class Wanted:
    """A row of ours, as far as a plan needs it."""

    key: str
    url: str
    remote_id: int | None = None
    seen: bool = False  #: it has stood at the forge before
    by_hand: bool = False
    refused: str = ""  #: why there is none, as far as it was told
    rotating: bool = False  #: another takes its place
    ended: bool = False  #: and the time in which both count is over
    unreadable: bool = False  #: no key of ours opens its secret
    silent: bool = False  #: unhealthy for so long that its secret is in doubt


@dataclass(frozen=True)
class Action:
    """A line of the plan. `key` names the row, `hook` is what stands at the forge; each may be missing."""

    do: Do
    place: str
    reason: str
    key: str = ""
    hook: Hook | None = None

    def words(self) -> str:
        number = f" (hook {self.hook.id})" if self.hook else ""
        return f"{self.do.value:<8} {self.place}{number}: {self.reason}"


def key_in(url: str) -> str:
    """The key in a hook's URL, or an empty string."""
    try:
        return parse_qs(urlsplit(url).query).get(KEY, [""])[0]
    except ValueError:
        return ""


def is_ours(url: str, address: str, keys: Sequence[str]) -> bool:
    """Whether a hook's URL is our receiver's, at its present address or, with a key of ours, at an earlier one."""
    bare = url.partition("?")[0].rstrip("/")
    return bare == address.rstrip("/") or key_in(url) in keys


def differences(hook: Hook, url: str) -> list[str]:
    """In what a hook at the forge is not as it should be. More events than asked for are the server's own affair."""
    found = []
    if hook.url != url:
        found.append(f"its URL is {hook.url}")
    if missing := [name for name in EVENTS if name not in hook.events]:
        found.append(f"it lacks the event {' and '.join(missing)}")
    if hook.content_type != "json":
        found.append(f"its content type is {hook.content_type or 'not set'}, not json")
    if hook.branch_filter not in ("", "*"):
        found.append(f"it has the branch filter {hook.branch_filter}")
    return found


def plan(
    place: str,
    rows: Sequence[Wanted],
    found: Sequence[Hook],
    *,
    address: str,
    unwanted: str = "",
    reenable: bool = False,
) -> list[Action]:
    """What to do at one place, new things first. `unwanted` says why no hook is wanted there, and is empty when one is."""
    keys = [row.key for row in rows]
    ours = [hook for hook in found if is_ours(hook.url, address, keys)]
    # One that was switched off stays so: no other takes its place, which would be on.
    old = {row.key for row in rows if row.rotating}
    others_off = not reenable and any(key_in(hook.url) in old and not hook.active for hook in ours)
    actions: list[Action] = []
    for row in rows:
        same = sorted(
            (hook for hook in ours if key_in(hook.url) == row.key), key=lambda hook: (hook.id != row.remote_id, hook.id)
        )
        actions.append(_one(place, row, same[0] if same else None, unwanted, reenable, others_off))
        actions += [Action(Do.DELETE, place, "a duplicate: it would tell everything twice", hook=hook) for hook in same[1:]]
    actions += [
        Action(Do.DELETE, place, "a duplicate: its URL is ours, and its secret is not known here", hook=hook)
        for hook in ours
        if key_in(hook.url) not in keys
    ]
    return sorted(actions, key=lambda action: ORDER.index(action.do))


def _one(place: str, row: Wanted, hook: Hook | None, unwanted: str, reenable: bool, others_off: bool) -> Action:
    def action(do: Do, reason: str) -> Action:
        return Action(do, place, reason, row.key, hook)

    if row.rotating and (row.ended or (unwanted and not row.by_hand)):
        return action(Do.DELETE if hook else Do.FORGET, "another with a new secret has taken its place")
    if row.rotating:
        return action(Do.NOTHING, "its secret still counts while another takes its place")
    if unwanted and row.by_hand:
        return action(Do.NOTHING, "a maintainer sees to it by hand")
    if unwanted:
        return action(Do.DELETE if hook else Do.FORGET, unwanted)
    if others_off if hook is None else not (hook.active or reenable):
        return action(Do.DISABLED, "somebody switched it off at the forge; CC_CI_WEBHOOK_REENABLE=1 switches it on again")
    if row.unreadable:
        return action(Do.ROTATE, "no key opens its secret any more")
    if hook is None and row.by_hand:
        return action(Do.ROTATE, "nobody has added it by hand, and the token may: it gets a secret that people do not know")
    if hook is None:
        before = f"; before this: {row.refused}" if row.refused else ""
        return action(Do.CREATE, ("it was deleted at the forge" if row.seen else "there is none yet") + before)
    wrong = differences(hook, row.url)
    if not hook.active:
        wrong = ["it was switched off at the forge", *wrong]
    if wrong:
        return action(Do.UPDATE, "; ".join(wrong))
    if row.silent:
        # It cannot be changed, nor read: a new one is the only way to be sure of it.
        return action(Do.ROTATE, "it looks right and tells nothing: perhaps another secret stands there")
    return action(Do.NOTHING, "in sync")


def wanted(setting: bool, forge: str, repository: str = "") -> bool:
    """Whether a hook is wanted: the repository's word counts before its forge's, and that before the setting."""
    return setting if not (word := repository or forge) else word == "on"
