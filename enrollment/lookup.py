"""Find a forge or a repository by what a person typed."""

from __future__ import annotations

from difflib import get_close_matches

from django.core.management.base import CommandError
from django.db.models import QuerySet

from enrollment.models import Forge, Repository

NO_FORGE = "No forge is configured yet. Run: cc-ci forge add --url https://git.example.org --token-env VARIABLE"


class NotNamed(CommandError):
    """The input matches nothing, or more than one thing. The message says what to type."""


def find_forge(typed: str) -> Forge:
    """The forge with this URL or name; if nothing was typed, the only forge."""
    forges = list(Forge.objects.all())
    if not forges:
        raise NotNamed(NO_FORGE)
    if not typed:
        if len(forges) > 1:
            raise NotNamed(f"There are several forges; add --forge with one of: {', '.join(forge.url for forge in forges)}")
        return forges[0]
    for forge in forges:
        if typed.rstrip("/") in (forge.url, forge.name):
            return forge
    raise NotNamed(f"There is no forge {typed!r}. Known forges: {', '.join(forge.url for forge in forges)}")


def find_forges(typed: str = "") -> list[Forge]:
    """The forge with this URL or name; if nothing was typed, all enabled ones, at least one."""
    forges = [find_forge(typed)] if typed else list(Forge.objects.filter(enabled=True))
    if not forges:
        raise NotNamed(NO_FORGE)
    return forges


def split_name(typed: str) -> tuple[str, str]:
    """Split `OWNER/REPO`."""
    owner, _, name = typed.strip().strip("/").removesuffix(".git").partition("/")
    if not owner or not name or "/" in name:
        raise NotNamed(f"Invalid repository {typed!r}: expected OWNER/REPO.")
    return owner, name


def find_repository(typed: str, forge: Forge) -> Repository:
    """The enrolled repository of this name. Raises NotNamed with the nearest names."""
    owner, name = split_name(typed)
    rows = Repository.objects.filter(forge=forge)
    row = rows.filter(owner__iexact=owner, name__iexact=name).first()
    if row is None:
        names = [row.full_name for row in rows]
        near = get_close_matches(f"{owner}/{name}", names, 3)
        raise NotNamed(f"{owner}/{name} is not enrolled." + (f" Did you mean {' or '.join(near)}?" if near else ""))
    return row


#: Repositories that one text may mean.
MOST = 200


def like(text: str, repositories: QuerySet[Repository]) -> list[int]:
    """The keys of those with this in their names; with an owner before it (OWNER/NAME), of this owner only."""
    owner, _, name = text.rpartition("/")
    rows = repositories.filter(name__icontains=name, **({"owner__iexact": owner} if owner else {}))
    return list(rows.values_list("pk", flat=True)[:MOST])
