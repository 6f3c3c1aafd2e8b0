"""Rate limit for password guessing: too many failed logins lock out for a while. django-axes counts, in the database.

It counts by address, so that nobody can lock out others by knowing their name. If all people seem to come from one address (a
proxy missing from CC_CI_PROXIES, or this host itself), it counts by address and name.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.db.models import Max, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone

from controlplane.untrusted import plain

log = logging.getLogger("controlplane.logins")


def client_address(request: HttpRequest) -> str | None:
    """The address to count by: for IPv6 the network, since one person has all of its addresses."""
    try:
        address = ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped.compressed if address.ipv4_mapped else str(ip_network((int(address), 64), strict=False)[0])
    return str(address)


def name(request: HttpRequest, credentials: dict[str, Any] | None = None) -> str | None:
    """The user name entered, cut to what axes can store."""
    given = (credentials or request.POST).get("username")
    return None if given is None else str(given)[:255]


def tells_apart(address: str | None) -> bool:
    """Whether an address belongs to one person, as far as can be known, rather than to a proxy that everybody comes through."""
    cc_ci = settings.CC_CI
    if address is None or (urlsplit(cc_ci.base_url).scheme == "https" and not cc_ci.proxies):
        return False
    found = ip_address(address)
    return not found.is_loopback and not any(found in network for network in cc_ci.proxy_networks)


def parameters(request_or_attempt: Any, credentials: dict[str, Any] | None = None) -> list[Any]:
    """The key that axes counts by."""
    of_request = isinstance(request_or_attempt, HttpRequest)
    address = client_address(request_or_attempt) if of_request else request_or_attempt.ip_address
    return ["ip_address"] if tells_apart(address) else [["username", "ip_address"]]


@dataclass(frozen=True)
class Locked:
    """Who is locked out, and until when. `name` is empty if it applies to all names."""

    address: str
    name: str
    wrong: int
    until: datetime

    def __str__(self) -> str:
        return f"{f'{plain(self.name, 50)} from ' if self.name else ''}{self.address}"


def locked() -> list[Locked]:
    """Who is locked out now."""
    from axes.models import AccessAttempt

    recent = AccessAttempt.objects.filter(attempt_time__gt=timezone.now() - settings.AXES_COOLOFF_TIME).order_by()
    found = []
    for by in (["ip_address"], ["ip_address", "username"]):
        rows = recent.values(*by).annotate(wrong=Sum("failures_since_start"), last=Max("attempt_time"))
        for row in rows.filter(wrong__gte=settings.AXES_FAILURE_LIMIT):
            if tells_apart(row["ip_address"]) == (len(by) == 1):
                name = row.get("username") or ""
                found.append(Locked(str(row["ip_address"] or "?"), name, row["wrong"], row["last"] + settings.AXES_COOLOFF_TIME))
    return sorted(found, key=lambda one: one.until)


def locked_out(request: HttpRequest, response: HttpResponse | None = None, credentials: Any = None) -> HttpResponse:
    """The page that shows how long to wait."""
    until, seconds = _until(request, str((credentials or {}).get("username") or ""))
    context = {"until": until, "minutes": -(-seconds // 60), "most": settings.AXES_FAILURE_LIMIT}
    answer = render(request, "controlplane/locked.html", context, status=429)
    answer["Retry-After"] = str(seconds)
    return answer


def _until(request: HttpRequest, name: str) -> tuple[datetime, int]:
    """Until when this client is locked out, and for how many seconds."""
    address = client_address(request)
    mine = [one.until for one in locked() if one.address == str(address or "?") and one.name in ("", name)]
    until = max(mine, default=timezone.now() + settings.AXES_COOLOFF_TIME)
    return until, max(1, int((until - timezone.now()).total_seconds()) + 1)


def wait(request: HttpRequest, name: str) -> int:
    """For how many seconds this client is locked out, for logins outside of the form; 0 if it is not."""
    from axes.handlers.proxy import AxesProxyHandler

    return 0 if AxesProxyHandler.is_allowed(request, {"username": name}) else _until(request, name)[1]


def failed(request: HttpRequest, name: str) -> None:
    """Count a failed login outside of the form."""
    user_login_failed.send(sender="controlplane.logins", request=request, credentials={"username": name})
    request.axes_locked_out = False  # type: ignore[attr-defined] # or the answer would become the page for people


def watch() -> None:
    """Log all logins."""
    from axes.signals import user_locked_out

    user_logged_in.connect(_logged_in, dispatch_uid="controlplane.logins")
    user_login_failed.connect(_failed, dispatch_uid="controlplane.logins")
    user_locked_out.connect(_locked, dispatch_uid="controlplane.logins")


def _logged_in(sender: object, request: HttpRequest | None, user: Any, **more: object) -> None:
    log.info("Login: %s from %s", plain(user.get_username(), 150), _from(request))


def _failed(sender: object, credentials: dict[str, Any], request: HttpRequest | None = None, **more: object) -> None:
    if not getattr(request, "axes_locked_out", False):
        log.warning("Failed login: %s from %s", plain(str(credentials.get("username")), 150), _from(request))


def _locked(sender: object, request: HttpRequest, username: str | None, **more: object) -> None:
    log.warning("Too many failed logins, locked out: %s from %s", plain(str(username), 150), _from(request))


def _from(request: HttpRequest | None) -> str:
    return (client_address(request) if request is not None else None) or "an unknown address"
