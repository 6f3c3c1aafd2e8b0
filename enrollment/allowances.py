"""What enrolments allow to their recipes beyond what any recipe may have."""

from __future__ import annotations

from enrollment.models import Repository


def listed() -> dict[str, list[str]]:
    """The lines by the repository's name, of those that are watched and allow anything."""
    rows = Repository.objects.filter(active=True).exclude(allowances=[]).order_by("owner", "name")
    return {row.full_name: [str(line) for line in row.allowances] for row in rows}
