"""What enrolments allow their recipes beyond what any recipe may have."""

from __future__ import annotations

from enrollment.models import Repository


def listed() -> dict[str, list[str]]:
    """The allowance lines by repository name, of watched repositories that have any."""
    rows = Repository.objects.filter(active=True).exclude(allowances=[]).order_by("owner", "name")
    return {row.full_name: [str(line) for line in row.allowances] for row in rows}
