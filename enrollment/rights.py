"""What the token may do, seen and not assumed: at each repository, at each organisation, and at the forge.

Nothing is written to find out. What can be asked is asked; the rest (comments, statuses) shows when cc-ci writes what it has to
write anyway, and is noted by `note_use`. Each row says when it was seen, and what the forge said.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models import Max, Q, QuerySet
from django.utils import timezone

from controlplane.registry import Finding, Level
from enrollment.forges.base import (
    CircuitOpen,
    Forbidden,
    ForgeClient,
    ForgeError,
    NotFound,
    OverBudget,
    RateLimited,
    Unauthorized,
)
from enrollment.hook_reconcile import is_wanted
from enrollment.models import Forge, Repository, Right

Held = Right.Held

#: A repository's rights are looked at again after so long, an organisation's and the forge's after a day.
REPOSITORY_EVERY = timedelta(days=7)
FORGE_EVERY = timedelta(days=1)


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


@dataclass(frozen=True)
class Seen:
    name: str
    held: Right.Held
    evidence: str


# --- asking


def of_repository(row: Repository, client: ForgeClient) -> Iterator[Seen]:
    """What the token may do at a repository, as far as can be asked. Raises ForgeError where the forge does not tell."""
    try:
        remote = client.repository_by_id(row.forge_repo_id)
    except (NotFound, Forbidden) as error:
        for name in ("read", "hooks", "push", "admin"):
            yield Seen(name, Held.NO, str(error))
        return
    yield _asked("read", lambda: list(client.repository_comments(remote.owner, remote.name, timezone.now())))
    for name in ("push", "admin"):
        held = Held.YES if name in remote.permissions else Held.NO
        yield Seen(name, held, f"permissions of {remote.full_name}: {', '.join(sorted(remote.permissions)) or 'none'}")
    yield _asked("hooks", lambda: list(client.hooks(remote.owner, remote.name)))


def of_owner(owner: str, bot_login: str, client: ForgeClient) -> Iterator[Seen]:
    """What it may see and do at an organisation; nothing about an owner that is none. Raises as `of_repository`."""
    hooks = _asked("org_hooks", lambda: list(client.hooks(owner, "")))
    member = client.is_member(owner, bot_login)
    if not member and hooks.evidence.startswith("GET") and ": 404" in hooks.evidence:
        return  # a person's own repositories, or an organisation that is hidden from us altogether
    said = "shows itself as a member" if member else "does not show itself as a member"
    yield Seen("membership", Held.YES if member else Held.NO, f"{bot_login} {said} of {owner}")
    yield hooks


def of_forge(client: ForgeClient) -> Iterator[Seen]:
    mighty = client.is_site_admin()
    held = Held.UNKNOWN if mighty is None else Held.YES if mighty else Held.NO
    yield Seen("site_admin", held, "the forge does not tell" if mighty is None else f"is_admin of /user is {str(mighty).lower()}")


def _asked(name: str, ask: object) -> Seen:
    assert callable(ask)
    try:
        ask()
    except (Forbidden, NotFound, Unauthorized) as error:
        return Seen(name, Held.NO, str(error))
    return Seen(name, Held.YES, "answered with 200")


# --- keeping


def refresh(forge: Forge, client: ForgeClient, *, everything: bool = False, seconds: float = 20) -> str:
    """Look at the rights that are due (or at all of them), oldest first; what is left after `seconds` waits. Returns words.

    Raises ForgeError for what concerns the whole forge.
    """
    deadline, now = time.monotonic() + seconds, timezone.now()
    looked = 0
    if everything or _due(Right.objects.filter(forge=forge, repository=None, owner=""), FORGE_EVERY):
        keep(forge, of_forge(client))
    rows = Repository.objects.watched().filter(forge=forge)
    for owner in sorted(set(rows.values_list("owner", flat=True))):
        if everything or _due(Right.objects.filter(forge=forge, repository=None, owner=owner), FORGE_EVERY):
            kept = keep(forge, of_owner(owner, forge.bot_login, client), owner=owner)
            if not kept:
                keep(forge, [Seen("membership", Held.UNKNOWN, f"{owner} is no organisation that the token can see")], owner=owner)
    Right.objects.filter(forge=forge, repository=None).exclude(owner="").exclude(owner__in=rows.values("owner")).delete()
    due = rows.annotate(seen=Max("rights__at", filter=Q(rights__name="read")))
    if not everything:
        due = due.filter(Q(seen=None) | Q(seen__lt=now - REPOSITORY_EVERY))
    for row in due.order_by("seen"):
        if time.monotonic() > deadline:
            break
        try:
            keep(forge, of_repository(row, client), repository=row)
        except (OverBudget, CircuitOpen, RateLimited):
            raise
        except ForgeError:
            continue  # no answer is no news; it stays due
        looked += 1
    return f"{forge.name}: rights at {looked} repositories looked at"


def _due(rows: QuerySet[Right], every: timedelta) -> bool:
    newest = rows.aggregate(at=Max("at"))["at"]
    return newest is None or newest < timezone.now() - every


def keep(forge: Forge, seen: Iterable[Seen], *, repository: Repository | None = None, owner: str = "") -> int:
    """Write down what was seen. A repository's next look is spread out a little, so that a thousand do not come at once."""
    at = timezone.now()
    if repository is not None:
        at -= REPOSITORY_EVERY * random.uniform(0, 0.2)  # noqa: S311
    count = 0
    for one in seen:
        values = {"held": one.held, "evidence": one.evidence[:500], "at": at}
        Right.objects.update_or_create(forge=forge, repository=repository, owner=owner, name=one.name, defaults=values)
        count += 1
    return count


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

    if spec.beyond:
        if not counts.get(Held.YES):
            return Line(name, spec.text, counts, evidence(Held.NO), "" if counts else "not seen yet", "ok")
        mine = {row.repository_id for row in rows if row.held == Held.YES}
        if name in ("push", "admin") and hooks_wanted and mine <= admins:
            return Line(name, spec.text, counts, evidence(Held.YES), "needed for the webhooks that cc-ci is to register", "ok")
        return Line(name, spec.text, counts, evidence(Held.YES), f"More than cc-ci needs. {spec.beyond}", "warning")
    if counts.get(Held.NO):
        matters = spec.needed or name == "membership" or (name == "hooks" and hooks_wanted)
        level = ("error" if name == "read" else "warning") if matters else "ok"
        return Line(name, spec.text, counts, evidence(Held.NO), spec.without, level)
    if not counts.get(Held.YES):
        return Line(
            name, spec.text, counts, "", "not seen yet" + (": the first write shows it" if name in SHOWN_BY else ""), "ok"
        )
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
