"""Finding a forge or a repository by what a person typed."""

from __future__ import annotations

from difflib import get_close_matches

from enrollment.models import Forge, Repository


class NotNamed(Exception):
    """What was typed names nothing, or more than one thing. The message says what to type."""


def find_forge(typed: str) -> Forge:
    """The forge with this address or name; the only one there is when nothing was typed."""
    forges = list(Forge.objects.all())
    if not forges:
        raise NotNamed("No forge is known yet. Type: cc-ci forge add --url https://git.example.org --token-env VARIABLE")
    if not typed:
        if len(forges) > 1:
            raise NotNamed(f"There are several forges; add --forge with one of: {', '.join(forge.url for forge in forges)}")
        return forges[0]
    for forge in forges:
        if typed.rstrip("/") in (forge.url, forge.name):
            return forge
    raise NotNamed(f"There is no forge {typed!r}. There are: {', '.join(forge.url for forge in forges)}")


def split_name(typed: str) -> tuple[str, str]:
    """`OWNER/REPO` in its two parts."""
    owner, _, name = typed.strip().strip("/").removesuffix(".git").partition("/")
    if not owner or not name or "/" in name:
        raise NotNamed(f"{typed!r} is no repository: write OWNER/REPO.")
    return owner, name


def find_repository(typed: str, forge: Forge) -> Repository:
    """The enrolled repository of this name, or NotNamed with the nearest ones."""
    owner, name = split_name(typed)
    rows = Repository.objects.filter(forge=forge)
    row = rows.filter(owner__iexact=owner, name__iexact=name).first()
    if row is None:
        names = [row.full_name for row in rows]
        near = get_close_matches(f"{owner}/{name}", names, 3)
        raise NotNamed(f"{owner}/{name} is not enrolled." + (f" Did you mean {' or '.join(near)}?" if near else ""))
    return row
