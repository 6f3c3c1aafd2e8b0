"""Sends each alert once, through Apprise (Matrix, mail, …), to the addresses in CC_CI_ALERTS."""

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
#: Most characters in a line of an alert.
LONGEST_LINE = 2000
#: The problem of an alert that is being sent, or whose sender died; after this time it is sent again.
_UNSENT, _SENDING = "not sent yet", timedelta(minutes=5)
_TITLES = {
    "held": "Version held",
    "contested": "App has drifted",
    "failed": "Upgrade failed",
    "rolled_back": "Rolled back",
    "rollback_failed": "ROLLBACK FAILED",
    "quarantined": "Quarantined",
    "nightly": "Maintenance run",
    "scheduled": "Scheduled run",
    "digest": "Scheduled runs of the week",
}


def tell(kind: str, app: InfraApp | None, text: str | Sequence[str], *, key: str = "", page: str = "") -> bool:
    """Send an alert once: not again for the same kind and key (default: the text). Returns whether it was sent now.

    Each item of `text` is one line, so an app's output or a recipe author's text cannot start a line that looks like one of ours;
    and none of it becomes a mention, a link or a command where the alert arrives.

    Never raises for an address that fails: the row keeps the problem, and `retry` tries again.
    """
    text = "\n".join(plain(line, LONGEST_LINE, at_forge=False) for line in ([text] if isinstance(text, str) else text))
    name = f"{kind}:{app.name if app else ''}:{key or text}"[:300]
    try:
        with transaction.atomic():
            row = AlertSent.objects.create(key=name, kind=kind, app=app, text=text, at=timezone.now(), page=page, problem=_UNSENT)
    except IntegrityError:
        return False
    _send(row)
    return True


def from_another_app(kind: str, text: str | Sequence[str], key: str, page: str = "") -> bool:
    """An alert that is not about one of the server's own apps, as `tell`. `page`: the URL of a page of ours."""
    return tell(kind, None, text, key=key, page=page)


def retry() -> int:
    """Retry alerts of the last day that did not reach every address. Returns how many did now."""
    since = timezone.now() - timedelta(days=1)
    waiting = AlertSent.objects.filter(delivered=False, at__gt=since).exclude(problem="")
    waiting = waiting.exclude(problem=_UNSENT, at__gt=timezone.now() - _SENDING)[:10]
    return sum(_send(row) for row in waiting)


def _send(row: AlertSent) -> bool:
    addresses = settings.CC_CI.alerts
    page = f"{settings.CC_CI.base_url}{row.app.get_absolute_url()}" if row.app else row.page
    problem = _notify(addresses, _title(row), f"{row.text}\n{page}".strip()) if addresses else ""
    AlertSent.objects.filter(pk=row.pk).update(delivered=bool(addresses) and not problem, problem=problem)
    if problem:
        log.warning("Alert %s: %s", row.key, problem)
    return not problem


def _title(row: AlertSent) -> str:
    return f"cc-ci: {_TITLES.get(row.kind, row.kind)}{f': {row.app.name}' if row.app else ''}"


def _notify(addresses: list[str], title: str, text: str) -> str:
    """Why some addresses failed; empty if none did. Leaves out the addresses: they contain secrets."""
    import apprise  # slow to import, and most processes send no alerts

    failed = 0
    for address in addresses:
        service = apprise.Apprise()
        failed += not (service.add(address) and service.notify(body=text, title=title, body_format=apprise.NotifyFormat.TEXT))
    return f"{failed} of {len(addresses)} addresses in CC_CI_ALERTS failed" if failed else ""
