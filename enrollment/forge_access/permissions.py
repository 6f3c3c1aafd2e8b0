"""What the token may do, observed rather than assumed: at each repository, at each organisation, and at the forge.

Nothing is written to find out. What can be asked is asked; the rest (comments, statuses, webhooks) shows when cc-ci writes
anyway, and is recorded by `note_use` and `note_hook_write`. Each row has the time of the observation and the forge's response.

The permissions that a forge reports are the account's. A token with scopes may do less, which no forge reports: it shows in
refused requests.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.db import IntegrityError, transaction
from django.db.models import F, Max, Q, QuerySet
from django.utils import timezone

from enrollment.forge_access import capabilities
from enrollment.forges.base import (
    HALTS,
    Forbidden,
    ForgeClient,
    ForgeError,
    Found,
    Hook,
    NotFound,
    User,
)
from enrollment.forges.kinds import KINDS
from enrollment.models import Forge, Repository, Right

Held = Right.Held

#: How often permissions are checked: of a repository, and of an organisation and the forge.
REPOSITORY_EVERY = timedelta(days=7)
FORGE_EVERY = timedelta(days=1)
#: The same if something got no answer.
AGAIN_AFTER = timedelta(hours=1)


@dataclass(frozen=True)
class Spec:
    """A permission. `without` says what is missing without it; for one that cc-ci never needs, `beyond` says what it risks."""

    text: str
    without: str = ""
    needed: bool = False
    beyond: str = ""
    refused: str = ""  #: what it means if the forge refuses to answer, where that is worse than `without`


PERMISSIONS: dict[str, Spec] = {
    "read": Spec("read repository, pull requests and comments", "Nothing works there.", needed=True),
    "comment": Spec("write comments", "Runs happen, but no answer is posted.", needed=True),
    "react": Spec("react to comments", "No 👀 on the comment that asked; the answer still comes."),
    "status": Spec("set commit statuses", "There is no status, only the comment."),
    "membership": Spec(
        "see all members of the organisation",
        "Only public members are recognised; others are treated as outsiders.",
        refused="Nobody is recognised as a member or as in a team; whoever asks gets a reply that cc-ci cannot see it.",
    ),
    "hooks": Spec(
        "webhooks of the repository", "cc-ci registers no webhook; comments are found by polling, within half a minute."
    ),
    "org_hooks": Spec("webhooks of the organisation", "One webhook for each repository instead of one for all."),
    "push": Spec("push to the repository", beyond="Whoever gets hold of the token can change the recipe."),
    "admin": Spec(
        "administer the repository",
        beyond="Whoever gets hold of the token can edit anybody's comments and take over the repository.",
    ),
    "site_admin": Spec(
        "administer the whole forge", beyond="Whoever gets hold of the token owns the forge: create a separate user for cc-ci."
    ),
}

#: Kinds of requests (`forges.base.Ask`) whose success or refusal shows a permission.
SHOWN_BY = {"comment": "comment", "react": "react", "status": "status"}
#: Webhooks of a repository and of an organisation: a token may be able to list them without being able to write any.
OF_HOOKS = ("hooks", "org_hooks")
SHOWN_BY_WRITING = frozenset({*SHOWN_BY.values(), *OF_HOOKS})

#: A place is due again when its row of this permission is old.
DUE_BY = ("read", "membership", "site_admin")
#: How stored evidence begins if there was no answer, and continues if something was observed before.
FAILED, STILL = "no answer: ", "; asked again, no answer: "
#: How stored evidence begins after a write, and after a refused one.
DONE, REFUSED = "done when it was tried", "refused when it was tried: "
FORBIDDEN = "refused: "  #: when it was asked
LISTED = "the list is answered; whether the token may write there shows when it does"
#: How stored evidence ends for an owner that is a person, or an organisation hidden from us.
NO_ORGANISATION = "is no organisation that the token can see"


#: By the value found.
HELD: dict[object, Right.Held] = {True: Held.YES, False: Held.NO, None: Held.UNKNOWN}


# --- asking: each question is independent of the others' failures. What is in HALTS is raised.


def of_repository(row: Repository, client: ForgeClient) -> Iterator[Found]:
    """What the token may do at a repository, as far as can be asked."""
    try:
        remote = client.repository_by_id(row.forge_repo_id)
    except HALTS:
        raise
    except ForgeError as error:
        for name in ("read", "hooks", "push", "admin"):
            yield _not_held(name, error)
        return
    yield _asked("read", lambda: list(client.repository_comments(remote.owner, remote.name, timezone.now())))
    for name in ("push", "admin"):
        evidence = f"permissions of {remote.full_name}: {', '.join(sorted(remote.permissions)) or 'none'}"
        yield Found(name, name in remote.permissions, evidence)
    yield _listed("hooks", lambda: list(client.hooks(remote.owner, remote.name)))


def of_owner(owner: str, bot_login: str, client: ForgeClient) -> Iterator[Found]:
    """What the token may see and do at an organisation. If the owner is not an organisation, says so."""
    hooks = _listed("org_hooks", lambda: list(client.hooks(owner, "")))
    membership = _asked("membership", lambda: client.is_member(owner, bot_login))
    if membership.value is True:
        yield replace(membership, evidence=f"{bot_login} shows itself as a member of {owner}")
    elif membership.evidence:
        yield membership
    elif hooks.value is False and ": 404" in hooks.evidence:
        # A person, or an organisation that is hidden from us.
        yield Found("membership", None, f"{owner} {NO_ORGANISATION}")
        return
    else:
        yield replace(membership, evidence=f"{bot_login} does not show itself as a member of {owner}")
    yield hooks


def of_forge(client: ForgeClient) -> Iterator[Found]:
    found = _asked("site_admin", client.is_site_admin)
    says: dict[object, str] = {True: "the forge says that the account administers it", False: "the forge says that it does not"}
    yield found if found.evidence else replace(found, evidence=says.get(found.value, "the forge does not say"))


def _asked(name: str, ask: Callable[[], object]) -> Found:
    """Ask. The answer is yes, no, None if the forge does not say, or anything else that came with a 200."""
    try:
        answer = ask()
    except HALTS:
        raise
    except ForgeError as error:
        return _not_held(name, error)
    return Found(name, answer, "") if answer is None or isinstance(answer, bool) else Found(name, True, "answered with 200")


def _listed(name: str, ask: Callable[[], list[Hook]]) -> Found:
    found = _asked(name, ask)
    return Found(name, None, LISTED) if found.value is True else found


def _not_held(name: str, error: ForgeError) -> Found:
    if isinstance(error, Forbidden | NotFound):
        return Found(name, False, f"{FORBIDDEN if isinstance(error, Forbidden) else ''}{error}")
    return Found(name, None, f"{FAILED}{error}", failed=True)


# --- keeping


def refresh_all(forge: Forge, client: ForgeClient, *, everything: bool = False, seconds: float = 20) -> list[str]:
    """Check the forge's capabilities and the token's permissions there, as far as that is due. Returns messages.

    A failure of one does not hide the other. Raises what is in HALTS.
    """
    try:
        message = capabilities.refresh(forge, client, force=everything)
    except HALTS:
        raise
    except ForgeError as error:
        message = f"{forge.name}: could not check capabilities: {error}"
    return [message, refresh(forge, client, everything=everything, seconds=seconds)]


def refresh(forge: Forge, client: ForgeClient, *, everything: bool = False, seconds: float = 20) -> str:
    """Check the permissions that are due (or all), oldest first; what is left after `seconds` waits.

    Returns a message. Raises what is in HALTS.
    """
    deadline, now = time.monotonic() + seconds, timezone.now()
    refreshed, silent = 0, 0
    login, trouble = _who(forge, client)
    if everything or _due(Right.objects.filter(forge=forge, repository=None, owner="")):
        silent += _failed(keep(forge, of_forge(client)))
    rows = Repository.objects.watched().filter(forge=forge)
    for owner in sorted(set(rows.values_list("owner", flat=True))):
        if everything or _due(Right.objects.filter(forge=forge, repository=None, owner=owner)):
            silent += _failed(keep(forge, of_owner(owner, login, client), owner=owner))
    Right.objects.filter(forge=forge, repository=None).exclude(owner="").exclude(owner__in=rows.values("owner")).delete()
    due = rows.annotate(due_at=Max("rights__due_at", filter=Q(rights__name="read")))
    if not everything:
        due = due.filter(Q(due_at=None) | Q(due_at__lt=now))
    for row in due.order_by(F("due_at").asc(nulls_first=True)):
        if time.monotonic() > deadline:
            break
        silent += _failed(keep(forge, of_repository(row, client), repository=row))
        refreshed += 1
    message = f"{forge.name}: {trouble}checked permissions at {refreshed} repositories"
    return f"{message}, {silent} questions without an answer" if silent else message


def _who(forge: Forge, client: ForgeClient) -> tuple[str, str]:
    """The current login of the token's account, and what is wrong with it. An account is identified by id and may be renamed."""
    try:
        me = client.whoami()
    except HALTS:
        raise
    except ForgeError as error:
        return forge.bot_login, f"could not ask whose token it is ({error}); "
    if message := stranger(forge, me):
        return me.login, f"{message}; "
    if me.login != forge.bot_login:
        forge.bot_login = me.login[:255]
        Forge.objects.filter(pk=forge.pk, bot_id=me.id).update(bot_login=forge.bot_login)
    return me.login, ""


def stranger(forge: Forge, me: User) -> str:
    """A message if the token belongs to another account than the one cc-ci is known by; empty otherwise."""
    if forge.bot_id in (None, me.id):
        return ""
    return f"the token now belongs to {me.login} (user {me.id}), but cc-ci is known as user {forge.bot_id}"


def _due(rows: QuerySet[Right]) -> bool:
    due_at = rows.filter(name__in=DUE_BY).aggregate(at=Max("due_at"))["at"]
    return due_at is None or due_at < timezone.now()


def _failed(seen: Iterable[Found]) -> int:
    return sum(one.failed for one in seen)


def keep(forge: Forge, seen: Iterable[Found], *, repository: Repository | None = None, owner: str = "") -> list[Found]:
    """Store what was observed, and return it. A repository's next check is spread out a little, so that a thousand are not due
    at once. If something got no answer, the next check comes sooner and the earlier observation stays.
    """
    found, now = list(seen), timezone.now()
    every = FORGE_EVERY if repository is None else REPOSITORY_EVERY * random.uniform(0.8, 1)  # noqa: S311
    due_at = now + (AGAIN_AFTER if _failed(found) else every)
    known = {row.name: row for row in Right.objects.filter(forge=forge, repository=repository, owner=owner)}
    for one in found:
        held, evidence, at = _joined(one, known.get(one.name), now)
        values = {"held": held, "evidence": evidence, "at": at, "due_at": due_at if one.name in DUE_BY else None}
        Right.objects.update_or_create(forge=forge, repository=repository, owner=owner, name=one.name, defaults=values)
    return found


def _joined(one: Found, before: Right | None, now: datetime) -> tuple[str, str, datetime]:
    """What to store, and when that was observed, given the new observation and the previous row."""
    known = "" if before is None else before.evidence.partition(STILL)[0][:250]
    if before is not None and one.evidence == LISTED and known.startswith((DONE, REFUSED)):
        return before.held, before.evidence.partition(STILL)[0], before.at  # a write attempt says more
    if before is None or before.held == Held.UNKNOWN or not one.failed:
        return HELD[one.value], one.evidence[:500], now
    return before.held, f"{known}{STILL}{one.evidence.removeprefix(FAILED)}"[:500], before.at


def note_use(forge_id: int, full_name: str, name: str, allowed: bool, refusal: str) -> None:
    """Record that cc-ci wrote something, or was refused, which shows a permission. Called by the rate limiter (`rate_limit`)."""
    owner, _, repository_name = full_name.partition("/")
    rows = Repository.objects.filter(forge=forge_id, owner__iexact=owner, name__iexact=repository_name)
    row = rows.select_related("forge").first()
    if row is not None and (allowed or not KINDS[row.forge.kind].is_locked(refusal)):
        _note(forge_id, row, "", name, allowed, refusal)


def note_hook_write(forge: Forge, owner: str, repository: Repository | None, refusal: str = "") -> None:
    """Record that a webhook was written at a repository, or (without one) at an organisation, or was refused with this
    message.
    """
    if repository is None:
        _note(forge.pk, None, owner, "org_hooks", not refusal, refusal)
    else:
        _note(forge.pk, repository, "", "hooks", not refusal, refusal)


def _note(forge_id: int, repository: Repository | None, owner: str, name: str, allowed: bool, refusal: str) -> None:
    held, evidence = (Held.YES, DONE) if allowed else (Held.NO, f"{REFUSED}{refusal}"[:500])
    values = {"held": held, "evidence": evidence, "at": timezone.now()}
    try:
        with transaction.atomic():
            Right.objects.update_or_create(forge_id=forge_id, repository=repository, owner=owner, name=name, defaults=values)
    except IntegrityError:
        pass  # another process stored the same at the same time


def forget_tried(forge: Forge) -> None:
    """Forget what the previous token was refused or did: it says nothing about the new one."""
    Right.objects.filter(Q(evidence__startswith=DONE) | Q(evidence__startswith=REFUSED), forge=forge).delete()
