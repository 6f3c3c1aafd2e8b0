"""What each forge can do, found by asking it (`ForgeClient.probe`), and when to ask again.

A forge is asked when nothing is known, when its version string changes, when an answer contradicts what is known, and every
week; again a day later if there was nothing to try a capability on, and an hour later if it did not answer. Results are stored
in the forge's row.
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
#: For what could not be tried yet, such as at a forge without a comment.
UNKNOWN_EVERY = timedelta(days=1)
#: For what the forge did not answer.
FAILED_EVERY = timedelta(hours=1)


@dataclass(frozen=True)
class Spec:
    """A capability: what it is, and what cc-ci does without it. docs/trust.md and the admin show this table."""

    text: str
    otherwise: str


CAPABILITIES: dict[str, Spec] = {
    "page_limit": Spec("Maximum rows in a list", "50 are requested."),
    "owner_filter": Spec("The search filters by owner", "One search for all owners; cc-ci filters the rows."),
    "timeline": Spec(
        "Pull requests have a timeline",
        "For a stranger's code, and for any push without a branch (AGit), a maintainer must name the commit.",
    ),
    "repository_comments_paged": Spec("A repository's comments are paginated", "All come in one response."),
    "pull_comments_paged": Spec("A pull request's comments are paginated", "All come in one response."),
    "since_inclusive": Spec("`since` includes its own second", "Windows overlap by two minutes, so nothing depends on it."),
    "reactions": Spec("Comments support reactions", "No 👀 on the comment that asked; the answer still comes."),
    "org_hooks": Spec("Organisations have webhooks", "Each repository gets its own."),
    "status_by_reader": Spec(
        "A commit status needs no write permission", "Without that permission there is no status, only the comment."
    ),
}


def is_due(forge: Forge) -> bool:
    """Whether to probe the forge's capabilities now. `forge.version` is the one last read."""
    if forge.abilities_at is None or forge.abilities_version != forge.version or contradicted(forge):
        return True
    unknown = any(found.get("value") is None for name, found in forge.abilities.items() if name != "status_by_reader")
    failed = any(found.get("failed") for found in forge.abilities.values())
    every = FAILED_EVERY if failed else UNKNOWN_EVERY if unknown or not forge.abilities else EVERY
    return timezone.now() - forge.abilities_at > every


def contradicted(forge: Forge) -> bool:
    """Whether polling has seen the search behave differently from what the probe found."""
    found = forge.abilities.get("owner_filter", {}).get("value")
    seen = {Forge.OwnerFilter.WORKS: True, Forge.OwnerFilter.IGNORED: False}.get(Forge.OwnerFilter(forge.search))
    # "works" only means that nothing contradicted it, so only "ignored" counts.
    return found is True and seen is False


def refresh(forge: Forge, client: ForgeClient, *, force: bool = False) -> str:
    """Read the version, and probe the forge if that is due. Returns a message.

    What the forge does not answer stays as it was. Raises ForgeError if it cannot be probed at all; then nothing changes.
    """
    version = client.version()[:100]
    if version != forge.version:
        forge.version = version
        Forge.objects.filter(pk=forge.pk).update(version=version)
    if not force and not is_due(forge):
        return f"{forge.name}: capabilities are up to date"
    before, now = forge.abilities, timezone.now()
    found = {one.name: _kept(one, before.get(one.name, {})) for one in client.probe(sample_of(forge))}
    found["status_by_reader"] = _status_by_reader(forge)
    fields: dict[str, Any] = {"abilities": found, "abilities_version": version, "abilities_at": now}
    if contradicted(forge):
        fields["search"] = Forge.OwnerFilter.UNKNOWN  # polling finds out for itself
    Forge.objects.filter(pk=forge.pk).update(**fields)
    for name, value in fields.items():
        setattr(forge, name, value)
    changed = [name for name in found if before and before.get(name, {}).get("value") != found[name]["value"]]
    return f"{forge.name}: capabilities checked" + (f", changed: {', '.join(changed)}" if changed else "")


def _kept(one: Found, before: dict[str, Any]) -> dict[str, Any]:
    """What is stored about one capability."""
    if one.failed:
        return {"value": before.get("value"), "evidence": one.evidence[:300], "failed": True}
    return {"value": one.value, "evidence": one.evidence[:300]}


def sample_of(forge: Forge) -> Sample:
    """Something at the forge to probe with: preferably a pull request with a comment."""
    rows = Repository.objects.watched().filter(forge=forge)
    organisation = rows.values_list("owner", flat=True).first() or ""
    comment = Comment.objects.filter(forge=forge, pull_request__repository__in=rows).select_related("pull_request__repository")
    pull = PullRequest.objects.filter(repository__in=rows).select_related("repository").order_by("-pk").first()
    if newest := comment.order_by("-pk").first():
        pull = newest.pull_request
    row = pull.repository if pull else rows.first()
    if row is None:
        return Sample()
    return Sample((row.owner, row.name), pull.number if pull else None, row.owner if pull else organisation)


def _status_by_reader(forge: Forge) -> dict[str, Any]:
    """Cannot be asked without writing a status: known once cc-ci has set one, or was refused, where it may not push."""
    readers = Repository.objects.filter(forge=forge, rights__name="push", rights__held=Right.Held.NO)
    rights = Right.objects.filter(Q(repository__in=readers), name="status").exclude(held=Right.Held.UNKNOWN)
    seen = rights.order_by("-at").first()
    if seen is None:
        return {"value": None, "evidence": "no status has been set yet without push permission"}
    return {"value": seen.held == Right.Held.YES, "evidence": f"{seen.place}: {seen.evidence}"[:300]}


@dataclass(frozen=True)
class Line:
    """A row of the table, as people see it."""

    name: str
    text: str
    value: str
    evidence: str
    otherwise: str


def lines_of(forge: Forge) -> list[Line]:
    labels = {True: "yes", False: "no", None: "not known yet"}
    lines = []
    for name, spec in CAPABILITIES.items():
        found = forge.abilities.get(name, {})
        value = found.get("value")
        text = labels[value] if value is None or isinstance(value, bool) else str(value)
        lines.append(Line(name, spec.text, text, found.get("evidence", ""), "" if value is True else spec.otherwise))
    return lines
