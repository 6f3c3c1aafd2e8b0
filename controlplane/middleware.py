"""Our middleware: trusted proxies, HSTS, requests with NUL, logins, and content security policy."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

Get = Callable[[HttpRequest], HttpResponse]

PUBLIC = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# The admin theme has inline styles and scripts (Alpine evaluates expressions).
ADMIN = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: Headers in which a proxy describes the client.
_OF_PROXIES = ("HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_X_FORWARDED", "HTTP_FRONT_END_HTTPS", "HTTP_X_URL_SCHEME")
#: A year.
_STRICT = f"max-age={365 * 86400}"


def believe_proxies(get_response: Get) -> Get:
    """Trust a client's reported address and https only if one of CC_CI_PROXIES reports them. Otherwise, remove those headers
    before anything reads them.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        meta = request.META
        told = {name: meta.pop(name) for name in [*meta] if name.startswith(_OF_PROXIES)}
        if told and _is_proxy(_address(meta.get("REMOTE_ADDR", ""))):
            if client := _client(told.get("HTTP_X_FORWARDED_FOR", "")):
                meta["REMOTE_ADDR"] = meta["REMOTE_HOST"] = client
            # The last word is from the proxy in front of us; earlier ones may be from the client.
            meta["HTTP_X_FORWARDED_PROTO"] = told.get("HTTP_X_FORWARDED_PROTO", "").rpartition(",")[2].strip()
        return get_response(request)

    return middleware


def _client(forwarded_for: str) -> str:
    """The client: the last address in the list that is not one of our proxies. Those before it are the client's claims."""
    client = ""
    for word in reversed(forwarded_for.split(",")):
        address = _address(word.strip())
        if address is None:
            break
        client = str(address)
        if not _is_proxy(address):
            break
    return client


def _address(word: str) -> IPv4Address | IPv6Address | None:
    if word.startswith("["):  # [::1]:1234
        word = word[1:].partition("]")[0]
    elif word.count(":") == 1:  # 192.0.2.1:1234
        word = word.partition(":")[0]
    try:
        address = ip_address(word)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_proxy(address: IPv4Address | IPv6Address | None) -> bool:
    return address is not None and any(address in network for network in settings.CC_CI.proxy_networks)


def strict_transport(get_response: Get) -> Get:
    """Send HSTS for a year if people use https. That is known from CC_CI_BASE_URL, since a proxy terminates TLS; requests for
    another host name, such as a local monitor's, get no such header.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        base = urlsplit(settings.CC_CI.base_url)
        if base.scheme == "https" and request.META.get("HTTP_HOST", "").lower() == base.netloc.lower():
            response.setdefault("Strict-Transport-Security", _STRICT)
        return response

    return middleware


class NoNul:
    """Reject NUL, which no real text contains and PostgreSQL cannot store: there it would be a server error, and on SQLite a row
    that is not found. An address with one gets 404, a form 400, and a cookie is ignored.
    """

    def __init__(self, get_response: Get) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if any("\0" in name + value for name, value in request.COOKIES.items()):
            request.COOKIES = {name: value for name, value in request.COOKIES.items() if "\0" not in name + value}
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Callable[..., HttpResponse], args: object, kwargs: object) -> None:
        if getattr(view, "csrf_exempt", False):
            return  # for programs: the delivery receiver has its own error responses
        if "\0" in request.path or _holds_nul(request.GET.lists()):
            raise Http404("The address contains NUL.")
        if request.method == "POST" and _holds_nul(request.POST.lists()):
            raise BadRequest("The form contains NUL.")


def _holds_nul(fields: object) -> bool:
    return any("\0" in text for name, values in fields for text in (name, *values))  # type: ignore[attr-defined]


class LoginUnlessPublic(LoginRequiredMiddleware):
    """With `CC_CI_PUBLIC=0` every page requires a login, unless it says itself that it does not.

    What is for programs (deliveries, the API) is exempt from CSRF for the same reason: it knows its callers by a signature or
    a token.
    """

    def process_view(  # type: ignore[override]
        self, request: HttpRequest, view: Callable[..., HttpResponse], args: Any, kwargs: Any
    ) -> HttpResponseBase | None:
        if settings.CC_CI.public or getattr(view, "csrf_exempt", False):
            return None
        return super().process_view(request, view, args, kwargs)


def content_security_policy(get_response: Get) -> Get:
    """Content security policy: pages load nothing from other sites, not even if hostile text is injected."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.setdefault("Content-Security-Policy", ADMIN if request.path.startswith("/admin/") else PUBLIC)
        return response

    return middleware
