"""The way to a forge's login and back: a form of the login page, the forge's page, and the address that it leads back to."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.cache import add_never_cache_headers
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST, require_safe

from controlplane import logins
from controlplane.secrets import SecretUnreadable
from enrollment.forge_access.clients import client_of
from enrollment.forge_login.oauth import Attempt, NotLoggedIn, attempt, authorize_url, exchange, sign_in_of
from enrollment.forge_login.visitors import IsOperator, log_in
from enrollment.forges.base import ForgeError, Rejected, SignIn
from enrollment.models import Forge

log = logging.getLogger("controlplane.logins")

#: The browser keeps the attempt in this cookie, signed, for so many seconds: no row is made for strangers.
COOKIE, SECONDS = "forge_login", 600


def offers() -> list[Forge]:
    """The forges with which people can log in, for the login page."""
    return [forge for forge in Forge.objects.exclude(oauth_client_id="") if sign_in_of(forge)]


def redirect_url(forge: Forge) -> str:
    """Where the forge leads back to: to be entered there."""
    return f"{settings.CC_CI.base_url.rstrip('/')}{reverse('forge-login-back', args=[forge.pk])}"


def _forge(pk: int) -> tuple[Forge, SignIn]:
    forge = get_object_or_404(Forge, pk=pk)
    sign_in = sign_in_of(forge)
    if sign_in is None:
        raise Http404("Nobody logs in with this forge.")
    return forge, sign_in


@login_not_required
@require_POST
def begin(request: HttpRequest, pk: int) -> HttpResponse:
    """Send the browser to the forge. With a page between: a form's redirection to elsewhere is what our policy forbids."""
    forge, sign_in = _forge(pk)
    if logins.wait(request, _name(forge)):
        return _locked(request, forge)
    made = attempt(forge, _own_page(request, request.POST.get("next", "")))
    context = {"forge": forge, "target": authorize_url(forge, sign_in, made, redirect_url(forge))}
    response = render(request, "enrollment/to_forge.html", context)
    add_never_cache_headers(response)
    response.set_cookie(
        COOKIE,
        signing.dumps(asdict(made), salt=COOKIE),
        max_age=SECONDS,
        path="/login/",
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",  # the forge's redirection to us has to carry it
    )
    return response


@login_not_required
@require_safe
def back(request: HttpRequest, pk: int) -> HttpResponse:
    """The forge has led back: exchange the code, ask who it is, and log in."""
    forge, sign_in = _forge(pk)
    made = _attempt_of(request)
    if made is None or made.forge != forge.pk:
        at = f"{settings.CC_CI.base_url.rstrip('/')}{reverse('login')}"
        text = "This login was not begun in this browser, or more than ten minutes ago. Begin again at"
        return _refuse(request, forge, f"{text} {at}")
    if logins.wait(request, _name(forge)):
        return _locked(request, forge)
    try:
        token = exchange(forge, sign_in, made, redirect_url(forge), request.GET.dict())
        somebody = client_of(forge, token.secret).whoami()
        if somebody.id <= 0:
            raise NotLoggedIn("The forge does not say who you are.")
        log_in(request, forge, somebody, token)
    except NotLoggedIn as error:
        return _refuse(request, forge, str(error), counts=True)
    except Rejected as error:
        log.warning("%s refused a login: %s", forge, error)
        text = "The forge refused the login. If that happens again, tell the operator: its client ID or secret here may be wrong."
        return _refuse(request, forge, text, counts=True)
    except IsOperator:
        return _refuse(request, forge, "Your account here was deactivated, or is an operator's, who logs in with a password.")
    except (ForgeError, SecretUnreadable) as error:
        log.warning("a login with %s failed: %s", forge, error)
        return _refuse(request, forge, "The forge could not be asked who you are. Try again in a moment.", status=503)
    return _clean(HttpResponseRedirect(made.next))


def _own_page(request: HttpRequest, asked: str) -> str:
    """The page to show after the login: one of ours, whatever was asked for."""
    fine = len(asked) <= 1000 and url_has_allowed_host_and_scheme(asked, {request.get_host()}, require_https=request.is_secure())
    return asked if fine else reverse(settings.LOGIN_REDIRECT_URL)


def _attempt_of(request: HttpRequest) -> Attempt | None:
    try:
        kept: Any = signing.loads(request.COOKIES.get(COOKIE, ""), salt=COOKIE, max_age=SECONDS)
        return Attempt(**kept)
    except (signing.BadSignature, TypeError):
        return None


def _name(forge: Forge) -> str:
    """What failed logins are counted by where addresses do not tell people apart."""
    return f"login with forge {forge.pk}"


def _locked(request: HttpRequest, forge: Forge) -> HttpResponse:
    return _clean(logins.locked_out(request, credentials={"username": _name(forge)}))


def _refuse(request: HttpRequest, forge: Forge, text: str, *, counts: bool = False, status: int = 403) -> HttpResponse:
    """The page that says why not. `counts`: as a failed login, since each costs the forge a request."""
    if counts:
        logins.failed(request, _name(forge))
    return _clean(render(request, "enrollment/not_logged_in.html", {"forge": forge, "text": text}, status=status))


def _clean(response: HttpResponse) -> HttpResponse:
    """An attempt is for one answer."""
    response.delete_cookie(COOKIE, path="/login/", samesite="Lax")
    add_never_cache_headers(response)
    return response
