"""Tells people, through Apprise (Matrix, mail, anything) at the addresses of CC_CI_ALERTS: each thing once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from controlplane.untrusted import plain
from infra.models import AlertSent, InfraApp

log = logging.getLogger(__name__)
#: Characters of a line of an alert.
LONGEST_LINE = 2000
_TITLES = {
    "held": "A version waits",
    "contested": "Contested",
    "failed": "An upgrade failed",
    "rolled_back": "Rolled back",
    "rollback_failed": "A ROLLBACK FAILED",
    "quarantined": "Quarantined",
    "nightly": "The night's upgrades",
}


def tell(kind: str, app: InfraApp | None, text: str | Sequence[str], *, key: str = "") -> bool:
    """Tell people of one thing, once: the same kind and key (else the text) are not told again. Whether it was told now.

    A text is one line; several are given one by one. So what an app said, or a recipe's author wrote, cannot begin a line of its
    own that looks like one of ours; and none of it is a mention, a link or a command where the alert arrives.

    Never raises for an address that does not answer: what went wrong is kept with the row, and `retry` tries again.
    """
    text = "\n".join(plain(line, LONGEST_LINE, at_forge=False) for line in ([text] if isinstance(text, str) else text))
    name = f"{kind}:{app.name if app else ''}:{key or text}"[:300]
    try:
        with transaction.atomic():
            row = AlertSent.objects.create(key=name, kind=kind, app=app, text=text, at=timezone.now())
    except IntegrityError:
        return False
    _send(row)
    return True


def retry() -> int:
    """Send again what did not reach every address. Gives how many did now. For at most a day."""
    since = timezone.now() - timedelta(days=1)
    waiting = AlertSent.objects.filter(delivered=False, at__gt=since).exclude(problem="")[:10]
    return sum(_send(row) for row in waiting)


def _send(row: AlertSent) -> bool:
    addresses = settings.CC_CI.alerts
    page = f"{settings.CC_CI.base_url}{row.app.get_absolute_url()}" if row.app else ""
    problem = _notify(addresses, _title(row), f"{row.text}\n{page}".strip()) if addresses else ""
    AlertSent.objects.filter(pk=row.pk).update(delivered=bool(addresses) and not problem, problem=problem)
    if problem:
        log.warning("Alert %s: %s", row.key, problem)
    return not problem


def _title(row: AlertSent) -> str:
    return f"cc-ci: {_TITLES.get(row.kind, row.kind)}{f': {row.app.name}' if row.app else ''}"


def _notify(addresses: list[str], title: str, text: str) -> str:
    """Why not every address took it; empty when each did. The addresses hold secrets, and stay out of it."""
    import apprise  # slow to import, and most processes tell nothing

    failed = 0
    for address in addresses:
        service = apprise.Apprise()
        failed += not (service.add(address) and service.notify(body=text, title=title, body_format=apprise.NotifyFormat.TEXT))
    return f"{failed} of {len(addresses)} addresses of CC_CI_ALERTS did not take it" if failed else ""
