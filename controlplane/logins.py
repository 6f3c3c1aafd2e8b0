"""Guesses at passwords are slowed down: who logs in wrongly too often has to wait. django-axes counts, in the database.

Counted is by address, so that nobody locks another out by knowing a name. Where all people seem to come from one address (a proxy
that is not in CC_CI_PROXIES, or this machine itself), an address says nothing, and it is counted by address and name.
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
    """The address that counts: in IPv6 the network of which one person has all addresses."""
    try:
        address = ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped.compressed if address.ipv4_mapped else str(ip_network((int(address), 64), strict=False)[0])
    return str(address)


def name(request: HttpRequest, credentials: dict[str, Any] | None = None) -> str | None:
    """The name that somebody gave, as much of it as axes has room for."""
    given = (credentials or request.POST).get("username")
    return None if given is None else str(given)[:255]


def tells_apart(address: str | None) -> bool:
    """Whether an address is one person's, as far as one can know, or that of a proxy through which all of them come."""
    cc_ci = settings.CC_CI
    if address is None or (urlsplit(cc_ci.base_url).scheme == "https" and not cc_ci.proxies):
        return False
    found = ip_address(address)
    return not found.is_loopback and not any(found in network for network in cc_ci.proxy_networks)


def parameters(request_or_attempt: Any, credentials: dict[str, Any] | None = None) -> list[Any]:
    """What axes counts by."""
    of_request = isinstance(request_or_attempt, HttpRequest)
    address = client_address(request_or_attempt) if of_request else request_or_attempt.ip_address
    return ["ip_address"] if tells_apart(address) else [["username", "ip_address"]]


@dataclass(frozen=True)
class Locked:
    """Who has to wait, and until when. `name` is empty where it holds for all names."""

    address: str
    name: str
    wrong: int
    until: datetime

    def __str__(self) -> str:
        return f"{f'{plain(self.name, 50)} from ' if self.name else ''}{self.address}"


def locked() -> list[Locked]:
    """Who has to wait now."""
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
    """The page that says how long to wait."""
    address, name = client_address(request), str((credentials or {}).get("username") or "")
    mine = [one.until for one in locked() if one.address == str(address or "?") and one.name in ("", name)]
    until = max(mine, default=timezone.now() + settings.AXES_COOLOFF_TIME)
    seconds = max(1, int((until - timezone.now()).total_seconds()) + 1)
    context = {"until": until, "minutes": -(-seconds // 60), "most": settings.AXES_FAILURE_LIMIT}
    answer = render(request, "controlplane/locked.html", context, status=429)
    answer["Retry-After"] = str(seconds)
    return answer


def watch() -> None:
    """Have logins written into the log."""
    from axes.signals import user_locked_out

    user_logged_in.connect(_logged_in, dispatch_uid="controlplane.logins")
    user_login_failed.connect(_failed, dispatch_uid="controlplane.logins")
    user_locked_out.connect(_locked, dispatch_uid="controlplane.logins")


def _logged_in(sender: object, request: HttpRequest | None, user: Any, **more: object) -> None:
    log.info("Login: %s from %s", plain(user.get_username(), 150), _from(request))


def _failed(sender: object, credentials: dict[str, Any], request: HttpRequest | None = None, **more: object) -> None:
    if not getattr(request, "axes_locked_out", False):
        log.warning("Wrong login: %s from %s", plain(str(credentials.get("username")), 150), _from(request))


def _locked(sender: object, request: HttpRequest, username: str | None, **more: object) -> None:
    log.warning("Too many wrong logins, no more are taken: %s from %s", plain(str(username), 150), _from(request))


def _from(request: HttpRequest | None) -> str:
    return (client_address(request) if request is not None else None) or "an unknown address"
