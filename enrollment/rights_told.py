"""The rights that were seen, told to people: the table of the admin and of `cc-ci rights`, and doctor's lines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from django.db.models import Q

from controlplane.registry import Finding, Level
from enrollment.hook_reconcile import is_wanted
from enrollment.models import Forge, Repository, Right
from enrollment.policies import policy_of
from enrollment.rights import (
    FAILED,
    FORBIDDEN,
    RIGHTS,
    SHOWN_BY_WRITING,
    STILL,
    Held,
    Spec,
)

#: What a forge lists when it refuses something, such as [read:user].
_BRACKETS = re.compile(r"\[([^]]*)")
#: What stands below the table.
NOT_THE_SCOPES = (
    "Permissions are those of the account. A token with scopes may do less, and no forge tells it: the scope that a right needs "
    "stands beside it, and that it is missing shows when it is used."
)


@dataclass(frozen=True)
class Line:
    """A row of the table for people: a right, where it is held and where not, and what that means."""

    name: str
    text: str
    counts: dict[str, int]
    evidence: str
    meaning: str
    level: str  #: ok, warning or error
    scope: str = ""  #: that a token needs for it, where tokens have scopes


def table(rows: Iterable[Right], *, hooks_wanted: bool, members_wanted: bool = True) -> list[Line]:
    """The rights that were seen, as a table. Pure. `hooks_wanted`: then admin is no more than needed. `members_wanted`: whether
    a policy lets members, or a team, ask."""
    seen = list(rows)
    admins = {row.repository_id for row in seen if row.name == "admin" and row.held == Held.YES}
    lacks = lacking(seen)
    lines = []
    for name, spec in RIGHTS.items():
        mine = [row for row in seen if row.name == name]
        matters = spec.needed or (name == "hooks" and hooks_wanted) or (name == "membership" and members_wanted)
        line = _beyond(name, spec, mine, hooks_wanted, admins, lacks) if spec.beyond else _needed(name, spec, mine, matters)
        lines.append(replace(line, scope=spec.scope))
    return lines


def lacking(rows: Iterable[Right]) -> frozenset[str]:
    """The scopes that the token is seen to lack: the forge named them when it refused something. Pure."""
    words = [row.evidence for row in rows if row.held == Held.NO]
    scopes = {scope for spec in RIGHTS.values() for scope in spec.scope.split(", ")}
    lists = [listed for said in words for listed in _BRACKETS.findall(said.partition("scope")[2])]
    return frozenset(scope for scope in scopes if any(re.search(rf"\b{scope}\b", listed) for listed in lists))


def _evidence(rows: list[Right], held: str) -> str:
    return next((f"{row.place}: {row.evidence}" for row in rows if row.held == held), "")


def _silent(name: str, spec: Spec, rows: list[Right], counts: dict[str, int]) -> Line | None:
    """Where something got no answer when it was asked last."""
    for row in rows:
        if row.evidence.startswith(FAILED) or STILL in row.evidence:
            told = f"{row.place}: {row.evidence}"
            return Line(name, spec.text, counts, told, "The forge gives no answer to that.", "warning")
    return None


def _beyond(name: str, spec: Spec, rows: list[Right], hooks_wanted: bool, admins: set[int | None], lacks: frozenset[str]) -> Line:
    """About a right that is more than cc-ci needs."""
    counts = dict(Counter(row.held for row in rows))
    if not counts.get(Held.YES):
        seen = _evidence(rows, Held.NO) or _evidence(rows, Held.UNKNOWN)
        line = Line(name, spec.text, counts, seen, "" if counts.get(Held.NO) else "not seen yet", "ok")
        return _silent(name, spec, rows, counts) or line
    told = _evidence(rows, Held.YES)
    if spec.scope in lacks:
        meaning = f"The account may; the token may not: it was seen to lack the scope {spec.scope}."
        return Line(name, spec.text, counts, told, meaning, "ok")
    mine = {row.repository_id for row in rows if row.held == Held.YES}
    if name in ("push", "admin") and hooks_wanted and mine <= admins:
        return Line(name, spec.text, counts, told, "needed for the webhooks that cc-ci is to register", "ok")
    meaning = f"More than cc-ci needs (the account may; a token without the scope {spec.scope} may not). {spec.beyond}"
    return Line(name, spec.text, counts, told, meaning, "warning")


def _needed(name: str, spec: Spec, rows: list[Right], matters: bool) -> Line:
    """About a right that cc-ci can use. `matters`: that it is missing is trouble."""
    counts = dict(Counter(row.held for row in rows))
    if counts.get(Held.NO):
        # To be refused is worse than to be no member: those who are members for all to see are not recognised either.
        refused = [row for row in rows if row.held == Held.NO and row.evidence.startswith(FORBIDDEN)] if spec.refused else []
        level = ("error" if name == "read" or refused else "warning") if matters else "ok"
        meaning = spec.refused if refused else spec.without
        return Line(name, spec.text, counts, _evidence(refused or rows, Held.NO), meaning, level)
    if silent := _silent(name, spec, rows, counts):
        return silent
    if not counts.get(Held.YES):
        seen_by = ": the first write shows it" if name in SHOWN_BY_WRITING else ""
        return Line(name, spec.text, counts, _evidence(rows, Held.UNKNOWN), f"not seen yet{seen_by}", "ok")
    return Line(name, spec.text, counts, _evidence(rows, Held.YES), "", "ok")


def lines_of(forge: Forge, repository: Repository | None = None) -> list[Line]:
    """The table of a forge, or of one repository there (with its organisation's rights)."""
    rows = Right.objects.filter(forge=forge).select_related("repository", "forge")
    watched = Repository.objects.watched().filter(forge=forge).select_related("forge")
    if repository is not None:
        rows = rows.filter(Q(repository=repository) | Q(repository=None, owner__in=("", repository.owner)))
        watched = watched.filter(pk=repository.pk)
    else:
        rows = rows.filter(Q(repository=None) | Q(repository__active=True))
    policies = [policy_of(row) for row in watched]
    return table(
        rows,
        hooks_wanted=any(is_wanted(row) for row in watched),
        members_wanted=any(policy.members or policy.team for policy in policies),
    )


def findings(forge: Forge) -> Iterator[Finding]:
    """doctor's lines: one that sums up, and one for each right that is missing and matters, or is too much."""
    lines = lines_of(forge)
    name = f"forge {forge.name} rights"
    if not any(line.counts for line in lines):
        text = "what the token may do was not asked yet; a worker asks within a quarter of an hour"
        yield Finding(name, "ok", text, f"to ask now: cc-ci rights --refresh --forge {forge.url}")
        return
    for line in lines:
        if line.level != "ok":
            level: Level = "error" if line.level == "error" else "warning"
            yield Finding(name, level, f"{line.text}: {counts(line)}. {line.meaning} ({line.evidence})", _fix(forge, line))
    held = ", ".join(f"{line.name} {counts(line)}" for line in lines if line.counts)
    head = ("right", "seen", "scope of a token", "what it means")
    rows = [(line.text, counts(line), line.scope, line.meaning) for line in lines]
    yield Finding(name, "ok", f"seen: {held}. {NOT_THE_SCOPES}", rows=(head, *rows))


def _fix(forge: Forge, line: Line) -> str:
    """What to do about a line that is not well."""
    if line.counts.get(Held.NO) and "scope" in line.evidence and line.scope:
        return (
            f"make a token with the scope {line.scope} at {forge.url}/user/settings/applications, and give it: "
            f"cc-ci forge add --url {forge.url} --token-env VARIABLE"
        )
    return f"see the table: cc-ci rights --forge {forge.url}"


def counts(line: Line) -> str:
    """Where a right is held and where not, in words."""
    words = {Held.YES.value: "yes", Held.NO.value: "no", Held.UNKNOWN.value: "not seen"}
    found = {words[held]: count for held, count in sorted(line.counts.items())}
    if len(found) == 1 and sum(found.values()) == 1:
        return next(iter(found))
    return ", ".join(f"{count} {word}" for word, count in found.items()) or "not seen"
