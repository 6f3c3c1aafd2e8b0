"""Tokens for the API: made, recognised, limited and revoked.

A token is `ccci_<key>_<secret>`. The key finds the row, of the secret only a hash is stored. A token is worth what its user is
worth at the time of each request: with the user deactivated, or no longer staff, it is worth nothing.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import F, Q
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from controlplane import logins
from controlplane.models import ApiToken

DEFAULT_DAYS, MOST_DAYS = 90, 3650
MINUTE = timedelta(minutes=1)
_FORM = re.compile(r"ccci_([0-9a-f]{12})_([\w-]{43})", re.ASCII)


class Refused(Exception):
    """The request cannot be met, or its token is not accepted now. The message says why, and what to do."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after  #: seconds


def make(user: Any, name: str, scopes: Collection[str], days: int = DEFAULT_DAYS) -> tuple[ApiToken, str]:
    """Create a token. Returns its row and the token itself, which nothing can show again."""
    key, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    row = ApiToken.objects.create(
        user=user,
        name=name,
        key=key,
        digest=_digest(secret),
        scopes=[scope for scope in ApiToken.Scope.values if scope in scopes],
        expires_at=timezone.now() + timedelta(days=days),
    )
    return row, f"ccci_{key}_{secret}"


def revoke(rows: Any) -> int:
    """Revoke the tokens of a queryset for good. Returns how many were not revoked before."""
    return int(rows.filter(revoked_at=None).update(revoked_at=timezone.now()))


def status_of(row: ApiToken) -> str:
    """Why a token is not accepted, as a participle; "valid" if it is."""
    if row.revoked_at:
        return "revoked"
    if row.expires_at <= timezone.now():
        return "expired"
    return "valid" if row.user.is_active and row.user.is_staff else "suspended"


def recognise(request: HttpRequest, token: str) -> ApiToken:
    """The row of a token, with its user; counts the request. Raises Refused.

    Wrong tokens count as failed logins and lock out like them. Those that were right once do not: nobody guesses them.
    """
    found = _FORM.fullmatch(token)
    row = ApiToken.objects.select_related("user").filter(key=found[1]).first() if found else None
    name = f"API token {row.key}" if row else "API token"
    if seconds := logins.wait(request, name):
        raise Refused(429, "Too many failed logins from this address. Try again later.", seconds)
    if found is None or row is None or not constant_time_compare(row.digest, _digest(found[2])):
        logins.failed(request, name)
        raise Refused(401, "This token is unknown. Create one with `cc-ci token add`, or in the admin.")
    words = {
        "revoked": "This token was revoked. Create another one with `cc-ci token add`, or in the admin.",
        "expired": "This token has expired. Create another one with `cc-ci token add`, or in the admin.",
        "suspended": f"The user {row.user.get_username()} of this token is deactivated or no longer staff.",
    }
    if refusal := words.get(status_of(row)):
        raise Refused(401, refusal)
    _count(row)
    return row


def _count(row: ApiToken) -> None:
    """Count a request in the token's current minute, for all hosts together. Raises Refused beyond the limit."""
    now, most = timezone.now(), settings.CC_CI.api_requests_per_minute
    mine = ApiToken.objects.filter(pk=row.pk)
    # A minute in the future was begun by a host whose clock was wrong.
    current = Q(minute_at__gt=now - MINUTE, minute_at__lt=now + MINUTE)
    for _ in range(2):  # another request may begin the minute between the two updates
        if mine.filter(current, requests__lt=most).update(requests=F("requests") + 1, last_used_at=now):
            return
        if mine.exclude(current).update(requests=1, minute_at=now, last_used_at=now):
            return
    began: datetime = mine.values_list("minute_at", flat=True).first() or now
    seconds = max(1, math.ceil((began + MINUTE - now).total_seconds()))
    raise Refused(429, f"More than {most} requests with this token in a minute. Try again in {seconds} s.", seconds)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
