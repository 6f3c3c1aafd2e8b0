"""Discover an app's releases: its recipe's tags, with the notes in `release/<version>`.

A release is an annotated tag. Lightweight tags are kept and marked (the gate rejects them); tags that are not versions are
listed with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from infra import lifecycle
from infra.config import secret_refs
from infra.config.secret_refs import Unresolved
from infra.git.mirror import HEAD, Mirror, Tag
from infra.git.runner import GitError
from infra.models import InfraApp, InfraFile, InfraRelease
from infra.recipe_version import Unreadable, Version

LONGEST_NOTES = 64 << 10
ON_BRANCH = "As the notes stand on the default branch now:"


class NotDiscovered(Exception):
    """The releases could not be read; the message says why and what to do."""


@dataclass(frozen=True)
class Found:
    """A version named by a tag. `notes` is None if it has none."""

    version: Version
    commit: str
    annotated: bool
    tagged_at: datetime | None
    notes: str | None


@dataclass(frozen=True)
class Discovery:
    """The versions, lowest first, and unusable tags and notes, each with the reason."""

    found: Sequence[Found]
    unreadable: Sequence[dict[str, str]]


def read(mirror: Mirror) -> Discovery:
    """Read a mirror's current state. Raises GitError."""
    readable: list[tuple[Version, Tag]] = []
    unreadable: list[dict[str, str]] = []
    for tag in mirror.tags():
        try:
            version = Version.parse(tag.name)
        except Unreadable as error:
            unreadable.append({"tag": tag.name[:200], "reason": str(error)})
            continue
        if not tag.commit:
            unreadable.append({"tag": tag.name, "reason": "The tag does not point to a commit."})
            continue
        readable.append((version, tag))
    readable.sort(key=lambda pair: pair[0])
    places = {version: (f"{tag.commit}:release/{version}", f"{HEAD}:release/{version}") for version, tag in readable}
    files = mirror.files([place for pair in places.values() for place in pair], LONGEST_NOTES) if places else {}
    found = []
    for version, tag in readable:
        data = [files[place] for place in places[version] if place in files]
        if size := next((item for item in data if isinstance(item, int)), 0):
            reason = f"Its notes are {size >> 10} kB; the limit is {LONGEST_NOTES >> 10} kB. They count as missing."
            unreadable.append({"tag": f"release/{version}", "reason": reason})
            data = []
        at = datetime.fromtimestamp(tag.seconds, UTC) if 0 < tag.seconds < 1 << 35 else None
        found.append(Found(version, tag.commit, tag.annotated, at, _notes([item for item in data if isinstance(item, bytes)])))
    return Discovery(found, unreadable)


def _notes(texts: Sequence[bytes]) -> str | None:
    """The tag's notes, plus the default branch's if they differ: a warning may have been added later."""
    words = list(dict.fromkeys(text.decode(errors="replace").replace("\0", "").strip() for text in texts))
    words = [text for text in words if text]
    return f"\n\n{ON_BRANCH}\n\n".join(words) if words else None


def store(app: InfraApp, discovery: Discovery, now: datetime) -> list[InfraRelease]:
    """Update the app's rows to what was read. Returns the new releases.

    A moved tag is another release: its approval and test results are void.
    """
    with transaction.atomic():
        before = InfraApp.objects.select_for_update().get(pk=app.pk).discovered_at
        rows = {row.version: row for row in InfraRelease.objects.filter(app=app)}
        new = []
        for rank, found in enumerate(discovery.found, 1):
            row = rows.pop(str(found.version), None)
            values = {
                "rank": rank,
                "commit": found.commit,
                "annotated": found.annotated,
                "tagged_at": found.tagged_at,
                "notes": found.notes,
                "gone": False,
            }
            if row is None:
                published = _published(found, before, now)
                new.append(InfraRelease(app=app, version=str(found.version), published_at=published, **values))
                continue
            if row.commit != found.commit:
                moved = {"moved": {"from": row.commit, "at": now.isoformat()}}
                values |= {"approved_by": "", "approved_at": None, "lifted": [], "published_at": _published(found, before, now)}
                values["evidence"] = {**row.evidence, **moved}
            changed = {name: value for name, value in values.items() if getattr(row, name) != value}
            if changed:
                lifecycle.discovered(row, **changed)
        InfraRelease.objects.bulk_create(new)
        for row in rows.values():
            lifecycle.discovered(row, gone=True)
        lifecycle.discovered(app, discovered_at=now, discovery_error="", unreadable=list(discovery.unreadable))
    return new


def _published(found: Found, before: datetime | None, now: datetime) -> datetime:
    """The earliest time at which it can have been public. A tag may claim any date, but one that was missing at the last
    discovery is newer than that.
    """
    claimed = found.tagged_at or now
    return min(max(claimed, before or claimed), now)


def mirror_of(app: InfraApp) -> Mirror:
    """The app's mirror on this host. Raises NotDiscovered if its token is unavailable."""
    token = ""
    if app.credential:
        file = InfraFile.objects.first()
        try:
            token = secret_refs.resolve(app.credential, Path(file.path).parent if file else Path(settings.CC_CI.data_dir))
        except Unresolved as error:
            raise NotDiscovered(f"The token for {app.source} is missing: {error}.") from error
    return Mirror(Path(settings.CC_CI.data_dir) / "infra" / "mirrors", app.source, token)


def discover(app: InfraApp) -> list[InfraRelease]:
    """Read the app's repository now, and store the result. Returns the new releases. Raises NotDiscovered."""
    try:
        mirror = mirror_of(app)
        mirror.fetch()
        discovery = read(mirror)
    except (GitError, NotDiscovered, OSError) as error:
        text = str(error) if isinstance(error, NotDiscovered) else f"Cannot read the releases of {app.recipe}: {error}"
        lifecycle.discovered(app, discovery_error=text)
        raise NotDiscovered(text) from error
    return store(app, discovery, timezone.now())
