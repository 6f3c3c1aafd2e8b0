"""What the token may do, seen and not assumed: at each repository, at each organisation, and at the forge.

Nothing is written to find out. What can be asked is asked; the rest (comments, statuses) shows when cc-ci writes what it has to
write anyway, and is noted by `note_use`. Each row says when it was seen, and what the forge said.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models import Max, Q, QuerySet
from django.utils import timezone

from controlplane.registry import Finding, Level
from enrollment import abilities
from enrollment.forges.base import (
    CircuitOpen,
    Forbidden,
    ForgeClient,
    ForgeError,
    NotFound,
    RateLimited,
    Unauthorized,
)
from enrollment.hook_reconcile import is_wanted
from enrollment.models import Forge, Repository, Right

Held = Right.Held

#: A repository's rights are looked at again after so long, an organisation's and the forge's after a day.
REPOSITORY_EVERY = timedelta(days=7)
FORGE_EVERY = timedelta(days=1)
#: After so long where something was not answered.
AGAIN_AFTER = timedelta(hours=1)

#: What concerns the whole forge, or the token as a whole: nothing more is asked then.
HALTS = (RateLimited, CircuitOpen, Unauthorized)


@dataclass(frozen=True)
class Spec:
    """A right: what it is for. `without` is what works less well; for one that cc-ci never needs, `beyond` says what it risks."""

    text: str
    without: str = ""
    needed: bool = False
    beyond: str = ""
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
    "push": Spec("push to the repository", beyond="Who gets hold of the token can change the recipe."),
    "admin": Spec(
        "administer the repository", beyond="Who gets hold of the token can edit anybody's comments and take the repository."
    ),
    "site_admin": Spec(
        "administer the whole forge", beyond="Who gets hold of the token owns the forge: make a user of its own for cc-ci."
    ),
}

#: Kinds of requests (`forges.http.KINDS`) whose success or refusal shows a right.
SHOWN_BY = {"comment": "comment", "react": "react", "status": "status"}

OF_REPOSITORY = ("read", "comment", "react", "status", "hooks", "push", "admin")
OF_OWNER = ("membership", "org_hooks")
OF_FORGE = ("site_admin",)


#: A place is looked at again when this right was seen long ago.
DUE_BY = ("read", "membership", "site_admin")
#: How evidence begins where nothing was answered, and how it goes on where something was seen before.
FAILED, STILL = "no answer: ", "; asked again, no answer: "
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
    yield _asked("hooks", lambda: list(client.hooks(remote.owner, remote.name)))


def of_owner(owner: str, bot_login: str, client: ForgeClient) -> Iterator[Seen]:
    """What it may see and do at an organisation. About an owner that is none: that this is so."""
    hooks = _asked("org_hooks", lambda: list(client.hooks(owner, "")))
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


def _not_held(name: str, error: ForgeError) -> Seen:
    if isinstance(error, Forbidden | NotFound):
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
    if everything or _due(Right.objects.filter(forge=forge, repository=None, owner=""), FORGE_EVERY):
        silent += _failed(keep(forge, of_forge(client)))
    rows = Repository.objects.watched().filter(forge=forge)
    for owner in sorted(set(rows.values_list("owner", flat=True))):
        if everything or _due(Right.objects.filter(forge=forge, repository=None, owner=owner), FORGE_EVERY):
            silent += _failed(keep(forge, of_owner(owner, forge.bot_login, client), owner=owner))
    Right.objects.filter(forge=forge, repository=None).exclude(owner="").exclude(owner__in=rows.values("owner")).delete()
    due = rows.annotate(seen=Max("rights__at", filter=Q(rights__name="read")))
    if not everything:
        due = due.filter(Q(seen=None) | Q(seen__lt=now - REPOSITORY_EVERY))
    for row in due.order_by("seen"):
        if time.monotonic() > deadline:
            break
        silent += _failed(keep(forge, of_repository(row, client), repository=row))
        looked += 1
    words = f"{forge.name}: rights at {looked} repositories looked at"
    return f"{words}, {silent} questions without an answer" if silent else words


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
    if before is None or before.held == Held.UNKNOWN or not one.failed:
        return one.held, one.evidence[:500]
    known = before.evidence.partition(STILL)[0][:250]
    return before.held, f"{known}{STILL}{one.evidence.removeprefix(FAILED)}"[:500]


def note_use(forge_id: int, full_name: str, name: str, allowed: bool, refusal: str) -> None:
    """cc-ci wrote something, or was refused: that shows a right. Called by the client's gate (`enrollment.budget`)."""
    owner, _, repository_name = full_name.partition("/")
    row = Repository.objects.filter(forge=forge_id, owner__iexact=owner, name__iexact=repository_name).first()
    if row is None:
        return
    evidence = "was done" if allowed else refusal
    try:
        with transaction.atomic():
            Right.objects.update_or_create(
                forge_id=forge_id,
                repository=row,
                owner="",
                name=name,
                defaults={
                    "held": Held.YES if allowed else Held.NO,
                    "evidence": evidence[:500],
                    "at": timezone.now(),
                },
            )
    except IntegrityError:
        pass  # another process saw the same in this very moment


# --- telling


@dataclass(frozen=True)
class Line:
    """A row of the table for people: a right, where it is held and where not, and what that means."""

    name: str
    text: str
    counts: dict[str, int]
    evidence: str
    meaning: str
    level: str  #: ok, warning or error


def table(rows: Iterable[Right], *, hooks_wanted: bool) -> list[Line]:
    """The rights that were seen, as a table. Pure. `hooks_wanted`: then admin is no more than needed."""
    seen = list(rows)
    admins = {row.repository_id for row in seen if row.name == "admin" and row.held == Held.YES}
    lines = []
    for name, spec in RIGHTS.items():
        mine = [row for row in seen if row.name == name]
        counts = Counter(row.held for row in mine)
        lines.append(_line(name, spec, mine, dict(counts), hooks_wanted, admins))
    return lines


def _line(name: str, spec: Spec, rows: list[Right], counts: dict[str, int], hooks_wanted: bool, admins: set[int | None]) -> Line:
    def evidence(held: str) -> str:
        return next((f"{row.place}: {row.evidence}" for row in rows if row.held == held), "")

    unanswered = [row for row in rows if row.evidence.startswith(FAILED) or STILL in row.evidence]
    told = f"{unanswered[0].place}: {unanswered[0].evidence}" if unanswered else ""
    silent = Line(name, spec.text, counts, told, "The forge gives no answer to that.", "warning")
    if spec.beyond:
        if unanswered and not counts.get(Held.YES):
            return silent
        if not counts.get(Held.YES):
            seen = evidence(Held.NO) or evidence(Held.UNKNOWN)
            return Line(name, spec.text, counts, seen, "" if counts.get(Held.NO) else "not seen yet", "ok")
        mine = {row.repository_id for row in rows if row.held == Held.YES}
        if name in ("push", "admin") and hooks_wanted and mine <= admins:
            return Line(name, spec.text, counts, evidence(Held.YES), "needed for the webhooks that cc-ci is to register", "ok")
        return Line(name, spec.text, counts, evidence(Held.YES), f"More than cc-ci needs. {spec.beyond}", "warning")
    if counts.get(Held.NO):
        matters = spec.needed or name == "membership" or (name == "hooks" and hooks_wanted)
        level = ("error" if name == "read" else "warning") if matters else "ok"
        return Line(name, spec.text, counts, evidence(Held.NO), spec.without, level)
    if unanswered:
        return silent
    if not counts.get(Held.YES):
        seen_by = ": the first write shows it" if name in SHOWN_BY else ""
        return Line(name, spec.text, counts, evidence(Held.UNKNOWN), f"not seen yet{seen_by}", "ok")
    return Line(name, spec.text, counts, evidence(Held.YES), "", "ok")


def lines_of(forge: Forge, repository: Repository | None = None) -> list[Line]:
    """The table of a forge, or of one repository there (with its organisation's rights)."""
    rows = Right.objects.filter(forge=forge).select_related("repository", "forge")
    watched = Repository.objects.watched().filter(forge=forge).select_related("forge")
    if repository is not None:
        rows = rows.filter(Q(repository=repository) | Q(repository=None, owner__in=("", repository.owner)))
        watched = watched.filter(pk=repository.pk)
    else:
        rows = rows.filter(Q(repository=None) | Q(repository__active=True))
    return table(rows, hooks_wanted=any(is_wanted(row) for row in watched))


def findings(forge: Forge) -> Iterator[Finding]:
    """doctor's lines: one that sums up, and one for each right that is missing and matters, or is too much."""
    lines = lines_of(forge)
    if not any(line.counts for line in lines):
        return  # not looked at yet
    name = f"forge {forge.name} rights"
    for line in lines:
        if line.level != "ok":
            level: Level = "error" if line.level == "error" else "warning"
            fix = f"see the table: cc-ci rights --forge {forge.url}"
            yield Finding(name, level, f"{line.text}: {counts(line)}. {line.meaning} ({line.evidence})", fix)
    held = ", ".join(f"{line.name} {counts(line)}" for line in lines if line.counts)
    yield Finding(name, "ok", f"seen: {held}")


def counts(line: Line) -> str:
    """Where a right is held and where not, in words."""
    words = {Held.YES.value: "yes", Held.NO.value: "no", Held.UNKNOWN.value: "not seen"}
    found = {words[held]: count for held, count in sorted(line.counts.items())}
    if len(found) == 1 and sum(found.values()) == 1:
        return next(iter(found))
    return ", ".join(f"{count} {word}" for word, count in found.items()) or "not seen"
