"""Adding forges, and enrolling repositories manually and by topic."""

from __future__ import annotations

import random
from datetime import timedelta
from urllib.parse import urlsplit

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from enrollment.forge_access import permissions
from enrollment.forge_access.clients import client_for
from enrollment.forge_access.clock_skew import server_now
from enrollment.forges.base import ForgeClient, Garbage, NoForge, NotFound, Pull, Repo, Unavailable, explain
from enrollment.forges.kinds import KINDS
from enrollment.models import Forge, PullRequest, Repository
from enrollment.signals import head_moved

#: Hours between two full resyncs of a repository, which find what the search missed.
RESYNC_HOURS = 6
#: Facts about a repository that may change at the forge.
FACTS = ("owner", "owner_id", "name", "private", "default_branch", "clone_url", "html_url")


def add_forge(url: str, token: str, name: str = "", kind: str = "") -> tuple[Forge, bool]:
    """Add a forge or replace its token, after asking it who we are. `kind`: one of KINDS, the first if empty; a known forge
    keeps its kind. Returns the row and whether it is new.

    Raises ValueError for an invalid URL, and ForgeError if the forge or the token does not work; then nothing is saved.
    """
    url = bare(url)
    forge = Forge.objects.filter(url=url).first() or Forge(url=url, kind=kind or next(iter(KINDS)))
    if forge.removal_at:
        raise ValueError(f"{forge.name} is being deleted here. Add it again when that is done.")
    forge.name = name or forge.name or urlsplit(url).netloc
    forge.token = token
    refresh_identity(forge, client_for(forge))
    made = forge.pk is None
    forge.enabled = True
    forge.failures, forge.backoff_until, forge.last_error = 0, None, ""
    forge.search, forge.search_probed_at = Forge.OwnerFilter.UNKNOWN, None
    forge.save()
    if not made:
        permissions.forget_tried(forge)
    return forge, made


def bare(url: str) -> str:
    """Normalise a forge's URL. Raises ValueError if it is invalid."""
    url = url.strip().rstrip("/")
    for kind in KINDS.values():
        url = url.removesuffix(kind.api)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"Invalid URL {url!r}: expected the forge's address, such as https://git.example.org")
    return parts._replace(netloc=parts.netloc.lower()).geturl()


def refresh_identity(forge: Forge, client: ForgeClient) -> None:
    """Ask the forge for its version and who we are there. Sets fields, saves nothing. Raises NoForge if none answers."""
    try:
        forge.version = client.version()[:100]
    except (Garbage, NotFound, Unavailable) as error:
        if isinstance(error, Unavailable) and error.status is not None:
            raise  # something answers, which is not well
        raise NoForge(f"No forge answers at {forge.url}; is the address right? ({error})") from error
    me = client.whoami()
    forge.bot_id, forge.bot_login = me.id, me.login


def enroll(forge: Forge, remote: Repo, source: str, client: ForgeClient) -> tuple[Repository, bool]:
    """Start watching a repository, as of the forge's current time. Returns the row and whether anything changed."""
    now = server_now(client)
    with transaction.atomic():
        row = Repository.objects.select_for_update().filter(forge=forge, forge_repo_id=remote.id).first()
        if row is None:
            row = Repository(forge=forge, forge_repo_id=remote.id, enrolled_at=now, active=False)
        if row.removal_at:
            return row, False  # it can be enrolled again when it is gone
        changed = not row.active
        if changed:
            # Also if it returns: comments from while it was not watched start nothing.
            row.active, row.source, row.enrolled_at = True, source, now
            row.net_cursor = now
            # Spread out, so that a thousand repositories enrolled at once are not listed at once.
            row.net_due_at = timezone.now() + timedelta(hours=RESYNC_HOURS * random.random())  # noqa: S311
        elif source == Repository.Source.HAND:
            row.source = source  # stays when the topic is removed
        copy_facts(row, remote)
        row.save()
    return row, changed


def keep_tests(forge: Forge, full_name: str, client: ForgeClient) -> Repository | None:
    """Use a repository of the forge, `OWNER/REPO`, for the tests kept on the server; none if the name is empty. It is
    identified by id from then on, and this does not enrol it. Raises ForgeError; then nothing changes.
    """
    row = None
    if full_name:
        owner, _, name = full_name.partition("/")
        remote = client.repository(owner, name)
        row = Repository.objects.filter(forge=forge, forge_repo_id=remote.id).first()
        if row is None:
            row = Repository(forge=forge, forge_repo_id=remote.id, enrolled_at=server_now(client), active=False)
        copy_facts(row, remote)
        row.save()
    forge.tests_repository = row
    forge.save(update_fields=["tests_repository"])
    return row


def copy_facts(row: Repository, remote: Repo) -> bool:
    """Copy what may change at the forge: names, privacy, URLs. Returns whether something did; saves nothing."""
    changed = [field for field in FACTS if getattr(row, field) != getattr(remote, field)]
    for field in changed:
        setattr(row, field, getattr(remote, field))
    return bool(changed)


def note_pull(row: PullRequest, pull: Pull) -> None:
    """Store what was just read about a pull request. A known head that moved is signalled in the same transaction."""
    facts = {
        "title": pull.title[:500],
        "state": pull.state[:20],
        "head_sha": pull.head_sha,
        "author_id": pull.author.id,
        "author_login": pull.author.login[:255],
        "html_url": pull.html_url[:500],
        "base_ref": pull.base_ref[:255],
    }
    rows = PullRequest.objects.filter(pk=row.pk)
    with transaction.atomic():
        moved = rows.exclude(head_sha__in=("", pull.head_sha)).update(head_sha=pull.head_sha)
        rows.update(**facts)
        for name, value in facts.items():
            setattr(row, name, value)
        if moved:
            head_moved.send(sender=PullRequest, pull=row)


def update_facts(row: Repository, client: ForgeClient) -> bool:
    """Look a repository up by its id and store the forge's current facts: names may change hands. Returns whether something is
    new. Raises ForgeError.
    """
    changed = copy_facts(row, client.repository_by_id(row.forge_repo_id))
    if changed:
        row.save(update_fields=FACTS)
    return changed


def refresh_repository(row: Repository, client: ForgeClient) -> bool:
    """Look the repository up by its id, which finds its new name. Returns whether it exists. Raises other ForgeErrors."""
    try:
        remote = client.repository_by_id(row.forge_repo_id)
    except NotFound as error:
        row.last_error, row.last_error_at = explain(error), timezone.now()
        row.save(update_fields=["last_error", "last_error_at"])
        return False
    copy_facts(row, remote)
    row.last_error = ""
    row.save(update_fields=[*FACTS, "last_error"])
    return True


def enroll_by_topic(forge: Forge, client: ForgeClient) -> list[str]:
    """Enrol what carries the topic at the watched owners, and unenrol what was enrolled that way and no longer carries it.

    Returns lines about what changed. Raises ForgeError; then nothing is unenrolled.
    """
    lines: list[str] = []
    for owner in list(forge.watched_owners):
        found = list(client.repositories_with_topic(str(owner), settings.CC_CI.topic))
        for remote in found:
            # What was unenrolled manually stays so: the row exists, inactive, with the source "manually".
            kept = Repository.objects.filter(forge=forge, forge_repo_id=remote.id, source=Repository.Source.HAND).first()
            if kept is None:
                row, changed = enroll(forge, remote, Repository.Source.TOPIC, client)
                if changed:
                    lines.append(f"enrolled {row.full_name}")
        mine = Repository.objects.filter(forge=forge, source=Repository.Source.TOPIC, active=True, owner__iexact=str(owner))
        for row in mine.exclude(forge_repo_id__in=[remote.id for remote in found]):
            owner_id = row.owner_id
            if refresh_repository(row, client) and row.owner_id == owner_id and row.owner.lower() != str(owner).lower():
                lines.append(_follow(forge, str(owner), row.owner))
                break
            Repository.objects.filter(pk=row.pk).update(active=False)
            lines.append(f"unenrolled {row.full_name}: it no longer carries the topic")
    return lines


def _follow(forge: Forge, old: str, new: str) -> str:
    """The owner was renamed: look for the topic under the new name from now on."""
    forge.watched_owners = [new if name == old else name for name in forge.watched_owners]
    forge.save(update_fields=["watched_owners"])
    return f"{old} was renamed to {new}"


def unenroll(row: Repository) -> None:
    """Stop watching a repository, even if it carries the topic. Its runs are kept."""
    Repository.objects.filter(pk=row.pk).update(active=False, source=Repository.Source.HAND)
