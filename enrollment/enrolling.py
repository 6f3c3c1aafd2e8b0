"""Adding forges, and enrolling repositories: by hand, and by topic."""

from __future__ import annotations

import random
from datetime import timedelta
from urllib.parse import urlsplit

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from enrollment import rights
from enrollment.clients import client_for
from enrollment.clocks import server_now
from enrollment.forges.base import ForgeClient, NotFound, Repo
from enrollment.models import Forge, Repository

#: Hours between two full listings of a repository: the net under the search.
NET_HOURS = 6
#: What a forge says of a repository, and may change.
FACTS = ("owner", "owner_id", "name", "private", "default_branch", "clone_url", "html_url")


def add_forge(url: str, token: str, name: str = "") -> tuple[Forge, bool]:
    """Add a forge or give it a new token, after asking it who we are. Returns the row and whether it is new.

    Raises ValueError for an address that is none, and ForgeError when the forge or the token is no good; then nothing is saved.
    """
    url = bare(url)
    forge = Forge.objects.filter(url=url).first() or Forge(url=url, name=name or urlsplit(url).netloc)
    if name:
        forge.name = name
    forge.token = token
    refresh_identity(forge, client_for(forge))
    made = forge.pk is None
    forge.enabled = True
    forge.failures, forge.backoff_until, forge.last_error = 0, None, ""
    forge.search, forge.search_probed_at = Forge.OwnerFilter.UNKNOWN, None
    forge.save()
    if not made:
        rights.forget_tried(forge)
    return forge, made


def bare(url: str) -> str:
    """A forge's address as it is kept, however it was typed. Raises ValueError when it is none."""
    url = url.strip().rstrip("/").removesuffix("/api/v1")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is no address of a forge: it must look like https://git.example.org")
    return parts._replace(netloc=parts.netloc.lower()).geturl()


def refresh_identity(forge: Forge, client: ForgeClient) -> None:
    """Ask the forge what it is and who we are there. Sets fields, saves nothing."""
    forge.version = client.version()[:100]
    me = client.whoami()
    forge.bot_id, forge.bot_login = me.id, me.login


def enroll(forge: Forge, remote: Repo, source: str, client: ForgeClient) -> tuple[Repository, bool]:
    """Watch a repository from now on, by the forge's clock. Returns the row and whether anything changed."""
    now = server_now(client)
    with transaction.atomic():
        row = Repository.objects.select_for_update().filter(forge=forge, forge_repo_id=remote.id).first()
        if row is None:
            row = Repository(forge=forge, forge_repo_id=remote.id, enrolled_at=now, active=False)
        changed = not row.active
        if changed:
            # Also when it comes back: what was said while it was not watched starts nothing.
            row.active, row.source, row.enrolled_at = True, source, now
            row.net_cursor = now
            # Spread out, so that a thousand repositories enrolled at once are not listed at once.
            row.net_due_at = timezone.now() + timedelta(hours=NET_HOURS * random.random())  # noqa: S311
        elif source == Repository.Source.HAND:
            row.source = source  # stays when the topic goes
        copy_facts(row, remote)
        row.save()
    return row, changed


def copy_facts(row: Repository, remote: Repo) -> bool:
    """Take over what may change at the forge: names, privacy, addresses. Returns whether something did; saves nothing."""
    changed = [field for field in FACTS if getattr(row, field) != getattr(remote, field)]
    for field in changed:
        setattr(row, field, getattr(remote, field))
    return bool(changed)


def update_facts(row: Repository, client: ForgeClient) -> bool:
    """Ask for a repository by its id and take over what the forge says of it now: names are others' by tomorrow. Returns whether
    something is new. Raises ForgeError."""
    changed = copy_facts(row, client.repository_by_id(row.forge_repo_id))
    if changed:
        row.save(update_fields=FACTS)
    return changed


def refresh_repository(row: Repository, client: ForgeClient) -> bool:
    """Ask for the repository by its id: finds its new name. Returns whether it is there. Raises other ForgeErrors."""
    try:
        remote = client.repository_by_id(row.forge_repo_id)
    except NotFound as error:
        row.last_error, row.last_error_at = f"{error}. {error.advice}", timezone.now()
        row.save(update_fields=["last_error", "last_error_at"])
        return False
    copy_facts(row, remote)
    row.last_error = ""
    row.save(update_fields=[*FACTS, "last_error"])
    return True


def enroll_by_topic(forge: Forge, client: ForgeClient) -> list[str]:
    """Enrol what carries the topic at the watched owners, and let go what was enrolled so and carries it no longer.

    Returns lines that say what changed. Raises ForgeError; then nothing is let go.
    """
    words: list[str] = []
    for owner in list(forge.watched_owners):
        found = list(client.repositories_with_topic(str(owner), settings.CC_CI.topic))
        for remote in found:
            # Unenrolled by hand stays so: the row is there, inactive, with the source "by hand".
            kept = Repository.objects.filter(forge=forge, forge_repo_id=remote.id, source=Repository.Source.HAND).first()
            if kept is None:
                row, changed = enroll(forge, remote, Repository.Source.TOPIC, client)
                if changed:
                    words.append(f"enrolled {row.full_name}")
        mine = Repository.objects.filter(forge=forge, source=Repository.Source.TOPIC, active=True, owner__iexact=str(owner))
        for row in mine.exclude(forge_repo_id__in=[remote.id for remote in found]):
            owner_id = row.owner_id
            if refresh_repository(row, client) and row.owner_id == owner_id and row.owner.lower() != str(owner).lower():
                words.append(_follow(forge, str(owner), row.owner))
                break
            Repository.objects.filter(pk=row.pk).update(active=False)
            words.append(f"let go {row.full_name}: it carries the topic no longer")
    return words


def _follow(forge: Forge, old: str, new: str) -> str:
    """The owner has another name now: look for the topic under that from the next time on."""
    forge.watched_owners = [new if name == old else name for name in forge.watched_owners]
    forge.save(update_fields=["watched_owners"])
    return f"{old} is now called {new}"


def unenroll(row: Repository) -> None:
    """Watch it no longer, also if it carries the topic. Its runs stay."""
    Repository.objects.filter(pk=row.pk).update(active=False, source=Repository.Source.HAND)
