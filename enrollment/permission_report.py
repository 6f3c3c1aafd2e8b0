"""The observed permissions as people see them: the table of the admin and of `cc-ci permissions`, and doctor's lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from django.db.models import Q

from controlplane.registry import Finding, Level
from enrollment.access.policy import policy_of
from enrollment.forge_access.clients import kind_of
from enrollment.forge_access.permissions import FAILED, FORBIDDEN, PERMISSIONS, SHOWN_BY_WRITING, STILL, Held, Spec
from enrollment.forges.base import ForgeKind
from enrollment.models import Forge, Repository, Right
from enrollment.webhooks.reconcile import is_hook_desired

#: Printed below the table.
NOT_THE_SCOPES = (
    "Permissions are those of the account. A token with scopes may do less, which no forge reports: the required "
    "scope is shown beside each permission, and a missing scope shows when the permission is used."
)


@dataclass(frozen=True)
class Line:
    """A row of the table: a permission, how often it was seen as held or not, and what that means."""

    name: str
    text: str
    counts: dict[str, int]
    evidence: str
    meaning: str
    level: str  #: ok, warning or error
    scope: str = ""  #: that a token needs for it, if tokens have scopes


def table(rows: Iterable[Right], kind: ForgeKind, *, hooks_wanted: bool, members_wanted: bool = True) -> list[Line]:
    """The observed permissions as a table. Pure. `hooks_wanted`: admin is then not more than needed. `members_wanted`: whether
    a policy lets members or a team ask.
    """
    seen = list(rows)
    admins = {row.repository_id for row in seen if row.name == "admin" and row.held == Held.YES}
    lacks = lacking(seen, kind)
    lines = []
    for name, spec in PERMISSIONS.items():
        mine = [row for row in seen if row.name == name]
        matters = spec.needed or (name == "hooks" and hooks_wanted) or (name == "membership" and members_wanted)
        scope, counts = kind.scopes.get(name, ""), dict(Counter(row.held for row in mine))
        beyond = _beyond(name, spec, mine, hooks_wanted, admins, scope, lacks) if spec.beyond else None
        evidence, meaning, level = beyond or _needed(name, spec, mine, matters)
        lines.append(Line(name, spec.text, counts, evidence, meaning, level, scope))
    return lines


def lacking(rows: Iterable[Right], kind: ForgeKind) -> frozenset[str]:
    """The scopes that the token is known to lack, because the forge named them in a refusal. Pure."""
    return frozenset().union(*(kind.lacked_scopes(row.evidence) for row in rows if row.held == Held.NO))


def _evidence(rows: list[Right], held: str) -> str:
    return next((f"{row.place}: {row.evidence}" for row in rows if row.held == held), "")


#: Evidence, what it means, and the level of a line.
Verdict = tuple[str, str, str]


def _silent(rows: list[Right]) -> Verdict | None:
    """The first permission whose last check got no answer."""
    for row in rows:
        if row.evidence.startswith(FAILED) or STILL in row.evidence:
            return f"{row.place}: {row.evidence}", "The forge did not answer this question.", "warning"
    return None


def _beyond(
    name: str, spec: Spec, rows: list[Right], hooks_wanted: bool, admins: set[int | None], scope: str, lacks: frozenset[str]
) -> Verdict:
    """A permission that exceeds what cc-ci needs."""
    if not (mine := {row.repository_id for row in rows if row.held == Held.YES}):
        refused = _evidence(rows, Held.NO)
        seen = refused or _evidence(rows, Held.UNKNOWN)
        return _silent(rows) or (seen, "" if refused else "not seen yet", "ok")
    evidence = _evidence(rows, Held.YES)
    if scope in lacks:
        return evidence, f"The account may; the token may not: it was seen to lack the scope {scope}.", "ok"
    if name in ("push", "admin") and hooks_wanted and mine <= admins:
        return evidence, "needed to register webhooks", "ok"
    limit = f" (the account may; a token without the scope {scope} may not)" if scope else ""
    return evidence, f"More than cc-ci needs{limit}. {spec.beyond}", "warning"


def _needed(name: str, spec: Spec, rows: list[Right], matters: bool) -> Verdict:
    """A permission that cc-ci can use. `matters`: whether a missing one causes a warning or an error."""
    if lost := [row for row in rows if row.held == Held.NO]:
        # A refusal is worse than not being a member: not even public members are recognised then.
        refused = [row for row in lost if row.evidence.startswith(FORBIDDEN)] if spec.refused else []
        level = ("error" if name == "read" or refused else "warning") if matters else "ok"
        return _evidence(refused or lost, Held.NO), spec.refused if refused else spec.without, level
    if silent := _silent(rows):
        return silent
    if evidence := _evidence(rows, Held.YES):
        return evidence, "", "ok"
    seen_by = ": the first write will show" if name in SHOWN_BY_WRITING else ""
    return _evidence(rows, Held.UNKNOWN), f"not seen yet{seen_by}", "ok"


def lines_of(forge: Forge, repository: Repository | None = None) -> list[Line]:
    """The table of a forge, or of one repository there (with its organisation's permissions)."""
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
        kind_of(forge),
        hooks_wanted=any(is_hook_desired(row) for row in watched),
        members_wanted=any(policy.members or policy.team for policy in policies),
    )


def findings(forge: Forge) -> Iterator[Finding]:
    """doctor's lines: a summary, and one for each permission that is missing and matters, or exceeds what is needed."""
    lines = lines_of(forge)
    name = f"forge {forge.name} permissions"
    if not any(line.counts for line in lines):
        text = "the token's permissions have not been checked yet; a worker does so within a quarter of an hour"
        yield Finding(name, "ok", text, f"to check now: cc-ci permissions --refresh --forge {forge.url}")
        return
    for line in lines:
        if line.level != "ok":
            level: Level = "error" if line.level == "error" else "warning"
            yield Finding(name, level, f"{line.text}: {counts(line)}. {line.meaning} ({line.evidence})", _fix(forge, line))
    held = ", ".join(f"{line.name} {counts(line)}" for line in lines if line.counts)
    head = ("permission", "seen", "scope of a token", "what it means")
    rows = [(line.text, counts(line), line.scope, line.meaning) for line in lines]
    yield Finding(name, "ok", f"seen: {held}. {NOT_THE_SCOPES}", rows=(head, *rows))


def _fix(forge: Forge, line: Line) -> str:
    """What to do about a line with a warning or an error."""
    kind = kind_of(forge)
    if line.counts.get(Held.NO) and kind.lacked_scopes(line.evidence) and line.scope:
        return (
            f"create a token with the scope {line.scope} at {kind.pages.tokens.format(forge=forge.url)} and enter it: "
            f"cc-ci forge add --url {forge.url} --token-env VARIABLE"
        )
    return f"see the table: cc-ci permissions --forge {forge.url}"


def counts(line: Line) -> str:
    """How often a permission was seen as held and not, as text."""
    labels = {Held.YES.value: "yes", Held.NO.value: "no", Held.UNKNOWN.value: "not seen"}
    found = {labels[held]: count for held, count in sorted(line.counts.items())}
    if len(found) == 1 and sum(found.values()) == 1:
        return next(iter(found))
    return ", ".join(f"{count} {word}" for word, count in found.items()) or "not seen"
