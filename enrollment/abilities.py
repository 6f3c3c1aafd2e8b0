"""What each forge can do, as it was found by asking it (`ForgeClient.probe`), and when to ask again.

It is asked when nothing is known, when its version string changes, when an answer contradicts what is known, and every week;
what nothing was there to try on is tried again a day later, what was not answered after an hour. What is found stands on the
forge's row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.utils import timezone

from enrollment.forges.base import ForgeClient, Found, Sample
from enrollment.models import Comment, Forge, PullRequest, Repository, Right

EVERY = timedelta(days=7)
#: For what could not be tried: a forge without a comment has one tomorrow.
UNKNOWN_EVERY = timedelta(days=1)
#: For what the forge did not answer.
FAILED_EVERY = timedelta(hours=1)


@dataclass(frozen=True)
class Spec:
    """An ability: what it is, and what cc-ci does where it is missing. docs/trust.md and the admin show this table."""

    text: str
    otherwise: str


ABILITIES: dict[str, Spec] = {
    "page_limit": Spec("How many rows a list has at most", "50 are asked for."),
    "owner_filter": Spec("The search honours an owner", "It is asked once for all owners; whose each row is, is looked at."),
    "timeline": Spec(
        "Pull requests have a timeline",
        "For a stranger's code, and for any push without a branch (AGit), a maintainer has to name the commit.",
    ),
    "repository_comments_paged": Spec("A repository's comments come in pages", "All come in one answer."),
    "pull_comments_paged": Spec("A pull request's comments come in pages", "All come in one answer."),
    "since_inclusive": Spec("`since` includes its own second", "Windows overlap by two minutes, so nothing depends on it."),
    "reactions": Spec("Comments take reactions", "No eyes on the comment that asked; the answer comes all the same."),
    "org_hooks": Spec("Organisations have webhooks", "Each repository gets one of its own."),
    "status_by_reader": Spec("A commit status needs no right to write", "No status without that right, only the comment."),
}


def is_due(forge: Forge) -> bool:
    """Whether its abilities are to be found out now. `version` is the one last read."""
    if forge.abilities_at is None or forge.abilities_version != forge.version or contradicted(forge):
        return True
    unknown = any(found.get("value") is None for name, found in forge.abilities.items() if name != "status_by_reader")
    failed = any(found.get("failed") for found in forge.abilities.values())
    every = FAILED_EVERY if failed else UNKNOWN_EVERY if unknown or not forge.abilities else EVERY
    return timezone.now() - forge.abilities_at > every


def contradicted(forge: Forge) -> bool:
    """Whether polling has seen another behaviour of the search than was found."""
    found = forge.abilities.get("owner_filter", {}).get("value")
    seen = {Forge.OwnerFilter.WORKS: True, Forge.OwnerFilter.IGNORED: False}.get(Forge.OwnerFilter(forge.search))
    # "works" means no more than that nothing spoke against it, so only the other one contradicts.
    return found is True and seen is False


def refresh(forge: Forge, client: ForgeClient, *, force: bool = False) -> str:
    """Read the version, and find out what it can do if that is due. Returns words.

    What the forge does not answer stays as it was. Raises ForgeError for what concerns all of it; then nothing is changed.
    """
    version = client.version()[:100]
    if version != forge.version:
        forge.version = version
        Forge.objects.filter(pk=forge.pk).update(version=version)
    if not force and not is_due(forge):
        return f"{forge.name}: abilities known"
    before, now = forge.abilities, timezone.now()
    found = {one.name: _kept(one, before.get(one.name, {})) for one in client.probe(sample_of(forge))}
    found["status_by_reader"] = _status_by_reader(forge)
    fields: dict[str, Any] = {"abilities": found, "abilities_version": version, "abilities_at": now}
    if contradicted(forge):
        fields["search"] = Forge.OwnerFilter.UNKNOWN  # polling finds out by itself what it believes
    Forge.objects.filter(pk=forge.pk).update(**fields)
    for name, value in fields.items():
        setattr(forge, name, value)
    changed = [name for name in found if before and before.get(name, {}).get("value") != found[name]["value"]]
    return f"{forge.name}: abilities found" + (f", changed: {', '.join(changed)}" if changed else "")


def _kept(one: Found, before: dict[str, Any]) -> dict[str, Any]:
    """What is written down about one of them."""
    if one.failed:
        return {"value": before.get("value"), "evidence": one.evidence[:300], "failed": True}
    return {"value": one.value, "evidence": one.evidence[:300]}


def sample_of(forge: Forge) -> Sample:
    """Something at the forge to try things on: best a pull request with a comment."""
    rows = Repository.objects.watched().filter(forge=forge)
    organisation = rows.values_list("owner", flat=True).first() or ""
    comment = Comment.objects.filter(forge=forge, pull_request__repository__in=rows).select_related("pull_request__repository")
    pull = PullRequest.objects.filter(repository__in=rows).select_related("repository").order_by("-pk").first()
    if told := comment.order_by("-pk").first():
        pull = told.pull_request
    row = pull.repository if pull else rows.first()
    if row is None:
        return Sample()
    return Sample((row.owner, row.name), pull.number if pull else None, row.owner if pull else organisation)


def _status_by_reader(forge: Forge) -> dict[str, Any]:
    """Cannot be asked without writing one: it shows where cc-ci set a status, or was refused, without a right to push."""
    readers = Repository.objects.filter(forge=forge, rights__name="push", rights__held=Right.Held.NO)
    rights = Right.objects.filter(Q(repository__in=readers), name="status").exclude(held=Right.Held.UNKNOWN)
    seen = rights.order_by("-at").first()
    if seen is None:
        return {"value": None, "evidence": "no status was set yet without a right to push"}
    return {"value": seen.held == Right.Held.YES, "evidence": f"{seen.place}: {seen.evidence}"[:300]}


@dataclass(frozen=True)
class Line:
    """A row of the table for people."""

    name: str
    text: str
    value: str
    evidence: str
    otherwise: str


def lines_of(forge: Forge) -> list[Line]:
    words = {True: "yes", False: "no", None: "not known yet"}
    lines = []
    for name, spec in ABILITIES.items():
        found = forge.abilities.get(name, {})
        value = found.get("value")
        text = words[value] if value is None or isinstance(value, bool) else str(value)
        lines.append(Line(name, spec.text, text, found.get("evidence", ""), "" if value is True else spec.otherwise))
    return lines
