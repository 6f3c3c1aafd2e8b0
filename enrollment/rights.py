"""What the token may do, seen and not assumed: at each repository, at each organisation, and at the forge.

Nothing is written to find out. What can be asked is asked; the rest (comments, statuses, webhooks) shows when cc-ci writes what
it has to write anyway, and is noted by `note_use` and `note_hook_write`. Each row says when it was seen, and what the forge said.

Permissions that the forge tells are the account's. A token that carries scopes may do less, which no forge tells: it shows by
what is refused.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models import Max, Q, QuerySet
from django.utils import timezone

from enrollment import abilities
from enrollment.forges.base import (
    HALTS,
    Forbidden,
    ForgeClient,
    ForgeError,
    Hook,
    NotFound,
    User,
)
from enrollment.models import Forge, Repository, Right

Held = Right.Held

#: A repository's rights are looked at again after so long, an organisation's and the forge's after a day.
REPOSITORY_EVERY = timedelta(days=7)
FORGE_EVERY = timedelta(days=1)
#: After so long where something was not answered.
AGAIN_AFTER = timedelta(hours=1)


@dataclass(frozen=True)
class Spec:
    """A right: what it is for. `without` is what works less well; for one that cc-ci never needs, `beyond` says what it risks."""

    text: str
    without: str = ""
    needed: bool = False
    beyond: str = ""
    refused: str = ""  #: what it means where the forge refuses to tell, if that is worse than `without`
    scope: str = ""  #: of tokens that have scopes


RIGHTS: dict[str, Spec] = {
    "read": Spec(
        "read repository, pull requests and comments",
        "Nothing works there.",
        needed=True,
        scope="read:repository, read:issue",
    ),
    "comment": Spec("write comments", "Runs happen, and no answer is posted.", needed=True, scope="write:issue"),
    "react": Spec("react to comments", "No eyes on the comment that asked; the answer comes all the same.", scope="write:issue"),
    "status": Spec(
        "set commit statuses", "The pull request shows no status; the comment is all there is.", scope="write:repository"
    ),
    "membership": Spec(
        "see all members of the organisation",
        "Only public members are recognised; others are treated as outsiders.",
        refused="Nobody is recognised as a member, or as in a team; who asks is told that cc-ci cannot see it.",
        scope="read:organization",
    ),
    "hooks": Spec(
        "webhooks of the repository",
        "cc-ci registers no webhook; comments are found by polling, within half a minute.",
        scope="write:repository",
    ),
    "org_hooks": Spec(
        "webhooks of the organisation",
        "One webhook for each repository instead of one for all.",
        scope="write:organization",
    ),
    "push": Spec("push to the repository", beyond="Who gets hold of the token can change the recipe.", scope="write:repository"),
    "admin": Spec(
        "administer the repository",
        beyond="Who gets hold of the token can edit anybody's comments and take the repository.",
        scope="write:repository",
    ),
    "site_admin": Spec(
        "administer the whole forge",
        beyond="Who gets hold of the token owns the forge: make a user of its own for cc-ci.",
        scope="write:admin",
    ),
}

#: Kinds of requests (`forges.http.KINDS`) whose success or refusal shows a right.
SHOWN_BY = {"comment": "comment", "react": "react", "status": "status"}
#: Rights to webhooks, of a repository and of an organisation: their lists may be read by a token that may write none.
OF_HOOKS = ("hooks", "org_hooks")
SHOWN_BY_WRITING = frozenset({*SHOWN_BY.values(), *OF_HOOKS})

OF_REPOSITORY = ("read", "comment", "react", "status", "hooks", "push", "admin")
OF_OWNER = ("membership", "org_hooks")
OF_FORGE = ("site_admin",)


#: A place is looked at again when this right was seen long ago.
DUE_BY = ("read", "membership", "site_admin")
#: How evidence begins where nothing was answered, and how it goes on where something was seen before.
FAILED, STILL = "no answer: ", "; asked again, no answer: "
#: How evidence begins where it was written, or not allowed.
DONE, REFUSED = "done when it was tried", "refused when it was tried: "
FORBIDDEN = "refused: "  #: when it was asked
LISTED = "the list is answered; whether the token may write there shows when it does"
#: What a forge says where one conversation is locked, to a comment and to a reaction: no right of the repository is missing.
OF_ONE_CONVERSATION = re.compile(r"\blocked\b|no permission to change reaction", re.IGNORECASE)
#: Evidence about an owner that is a person, or hidden from us altogether.
NO_ORGANISATION = "is no organisation that the token can see"


@dataclass(frozen=True)
class Seen:
    name: str
    held: Right.Held
    evidence: str
    failed: bool = False  #: there was no answer; what was seen before still holds


# --- asking: each right stands alone, and one that fails hides no other. What is in HALTS is raised.


def of_repository(row: Repository, client: ForgeClient) -> Iterator[Seen]:
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
        held = Held.YES if name in remote.permissions else Held.NO
        yield Seen(name, held, f"permissions of {remote.full_name}: {', '.join(sorted(remote.permissions)) or 'none'}")
    yield _listed("hooks", lambda: list(client.hooks(remote.owner, remote.name)))


def of_owner(owner: str, bot_login: str, client: ForgeClient) -> Iterator[Seen]:
    """What it may see and do at an organisation. About an owner that is none: that this is so."""
    hooks = _listed("org_hooks", lambda: list(client.hooks(owner, "")))
    membership = _asked("membership", lambda: client.is_member(owner, bot_login))
    if membership.held == Held.YES:
        yield replace(membership, evidence=f"{bot_login} shows itself as a member of {owner}")
    elif membership.evidence:
        yield membership
    elif hooks.held == Held.NO and ": 404" in hooks.evidence:
        # A person's own repositories, or an organisation that is hidden from us altogether.
        yield Seen("membership", Held.UNKNOWN, f"{owner} {NO_ORGANISATION}")
        return
    else:
        yield replace(membership, evidence=f"{bot_login} does not show itself as a member of {owner}")
    yield hooks


def of_forge(client: ForgeClient) -> Iterator[Seen]:
    seen = _asked("site_admin", client.is_site_admin)
    if not seen.failed:
        words = {Held.YES: "is_admin of /user is true", Held.NO: "is_admin of /user is false"}
        seen = replace(seen, evidence=seen.evidence or words.get(seen.held, "the forge does not tell"))
    yield seen


def _asked(name: str, ask: Callable[[], object]) -> Seen:
    """Ask; the answer is yes, no or None for what is not told, or anything else that came with a 200."""
    try:
        answer = ask()
    except HALTS:
        raise
    except ForgeError as error:
        return _not_held(name, error)
    if answer is None:
        return Seen(name, Held.UNKNOWN, "")
    if isinstance(answer, bool):
        return Seen(name, Held.YES if answer else Held.NO, "")
    return Seen(name, Held.YES, "answered with 200")


def _listed(name: str, ask: Callable[[], list[Hook]]) -> Seen:
    seen = _asked(name, ask)
    return seen if seen.held != Held.YES else Seen(name, Held.UNKNOWN, LISTED)


def _not_held(name: str, error: ForgeError) -> Seen:
    if isinstance(error, Forbidden):
        return Seen(name, Held.NO, f"{FORBIDDEN}{error}")
    if isinstance(error, NotFound):
        return Seen(name, Held.NO, str(error))
    return Seen(name, Held.UNKNOWN, f"{FAILED}{error}", failed=True)


# --- keeping


def look(forge: Forge, client: ForgeClient, *, everything: bool = False, seconds: float = 20) -> list[str]:
    """See what the forge can do and what the token may do there, as far as that is due. Returns words.

    Trouble with the one hides nothing of the other. Raises what is in HALTS.
    """
    try:
        words = abilities.refresh(forge, client, force=everything)
    except HALTS:
        raise
    except ForgeError as error:
        words = f"{forge.name}: abilities not found: {error}"
    return [words, refresh(forge, client, everything=everything, seconds=seconds)]


def refresh(forge: Forge, client: ForgeClient, *, everything: bool = False, seconds: float = 20) -> str:
    """Look at the rights that are due (or at all of them), oldest first; what is left after `seconds` waits. Returns words.

    Raises what is in HALTS.
    """
    deadline, now = time.monotonic() + seconds, timezone.now()
    looked, silent = 0, 0
    login, trouble = _who(forge, client)
    if everything or _due(Right.objects.filter(forge=forge, repository=None, owner=""), FORGE_EVERY):
        silent += _failed(keep(forge, of_forge(client)))
    rows = Repository.objects.watched().filter(forge=forge)
    for owner in sorted(set(rows.values_list("owner", flat=True))):
        if everything or _due(Right.objects.filter(forge=forge, repository=None, owner=owner), FORGE_EVERY):
            silent += _failed(keep(forge, of_owner(owner, login, client), owner=owner))
    Right.objects.filter(forge=forge, repository=None).exclude(owner="").exclude(owner__in=rows.values("owner")).delete()
    due = rows.annotate(seen=Max("rights__at", filter=Q(rights__name="read")))
    if not everything:
        due = due.filter(Q(seen=None) | Q(seen__lt=now - REPOSITORY_EVERY))
    for row in due.order_by("seen"):
        if time.monotonic() > deadline:
            break
        silent += _failed(keep(forge, of_repository(row, client), repository=row))
        looked += 1
    words = f"{forge.name}: {trouble}rights at {looked} repositories looked at"
    return f"{words}, {silent} questions without an answer" if silent else words


def _who(forge: Forge, client: ForgeClient) -> tuple[str, str]:
    """The name of the token's account now, and what is wrong with that. An account is known by its id, and may be renamed."""
    try:
        me = client.whoami()
    except HALTS:
        raise
    except ForgeError as error:
        return forge.bot_login, f"whose the token is could not be asked ({error}); "
    if words := stranger(forge, me):
        return me.login, f"{words}; "
    if me.login != forge.bot_login:
        forge.bot_login = me.login[:255]
        Forge.objects.filter(pk=forge.pk, bot_id=me.id).update(bot_login=forge.bot_login)
    return me.login, ""


def stranger(forge: Forge, me: User) -> str:
    """In words that the token belongs to another account than the one that cc-ci takes for itself; empty when all is well."""
    if forge.bot_id in (None, me.id):
        return ""
    return f"the token is that of {me.login} (user {me.id}) by now; cc-ci takes user {forge.bot_id} for itself"


def _due(rows: QuerySet[Right], every: timedelta) -> bool:
    newest = rows.filter(name__in=DUE_BY).aggregate(at=Max("at"))["at"]
    return newest is None or newest < timezone.now() - every


def _failed(seen: Iterable[Seen]) -> int:
    return sum(one.failed for one in seen)


def keep(forge: Forge, seen: Iterable[Seen], *, repository: Repository | None = None, owner: str = "") -> list[Seen]:
    """Write down what was seen, and give it back. A repository's next look is spread out a little, so that a thousand do not
    come at once. Where something was not answered, it comes sooner, and what was seen before stays."""
    found = list(seen)
    at, every = timezone.now(), FORGE_EVERY if repository is None else REPOSITORY_EVERY
    if repository is not None:
        at -= every * random.uniform(0, 0.2)  # noqa: S311
    soon = timezone.now() - every + AGAIN_AFTER
    known = {row.name: row for row in Right.objects.filter(forge=forge, repository=repository, owner=owner)}
    for one in found:
        when = soon if one.name in DUE_BY and _failed(found) else at
        held, evidence = _joined(one, known.get(one.name))
        values = {"held": held, "evidence": evidence, "at": when}
        Right.objects.update_or_create(forge=forge, repository=repository, owner=owner, name=one.name, defaults=values)
    return found


def _joined(one: Seen, before: Right | None) -> tuple[str, str]:
    """What is written down: of what was seen now, and of what was known."""
    known = "" if before is None else before.evidence.partition(STILL)[0][:250]
    if before is not None and one.evidence == LISTED and known.startswith((DONE, REFUSED)):
        return before.held, before.evidence.partition(STILL)[0]  # what was tried says more
    if before is None or before.held == Held.UNKNOWN or not one.failed:
        return one.held, one.evidence[:500]
    return before.held, f"{known}{STILL}{one.evidence.removeprefix(FAILED)}"[:500]


def note_use(forge_id: int, full_name: str, name: str, allowed: bool, refusal: str) -> None:
    """cc-ci wrote something, or was refused: that shows a right. Called by the client's gate (`enrollment.budget`)."""
    if not allowed and OF_ONE_CONVERSATION.search(refusal):
        return
    owner, _, repository_name = full_name.partition("/")
    row = Repository.objects.filter(forge=forge_id, owner__iexact=owner, name__iexact=repository_name).first()
    if row is not None:
        _note(forge_id, row, "", name, allowed, refusal)


def note_hook_write(forge: Forge, owner: str, repository: Repository | None, refusal: str = "") -> None:
    """A webhook was written at a repository, or (without one) at an organisation, or was refused in these words."""
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
        pass  # another process saw the same in this very moment


def forget_tried(forge: Forge) -> None:
    """The token is another one: what the old one was refused, or did, says nothing about it."""
    Right.objects.filter(Q(evidence__startswith=DONE) | Q(evidence__startswith=REFUSED), forge=forge).delete()
