"""Logging in elsewhere with the fake forge: OAuth2 with the paths, parameters and errors of Gitea.

As on its pages, nobody logs in here: whoever is asked chooses who they are. A code is for one exchange.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from urllib.parse import parse_qsl, urlencode, urlsplit

from enrollment.fakeforge import pages
from enrollment.fakeforge.faults import Request, Response
from enrollment.fakeforge.render import encode
from enrollment.fakeforge.store import Forge

AUTHORIZE, TOKEN = "/login/oauth/authorize", "/login/oauth/access_token"
#: How long a code is good for, and an access token said to be, in seconds.
CODE, ACCESS = timedelta(minutes=10), 3600


@dataclass(frozen=True)
class Code:
    client_id: str
    redirect_uri: str
    user_id: int
    scope: str
    challenge: str
    until: datetime


def handle(forge: Forge, request: Request) -> Response | None:
    """Respond to a request of OAuth2; None for any other."""
    with forge.lock:
        if request.path == AUTHORIZE:
            return _authorize(forge, request)
        return _exchange(forge, request) if request.path == TOKEN and request.method == "POST" else None


def _authorize(forge: Forge, request: Request) -> Response:
    """The page that asks for consent, and what follows from it."""
    page = pages.Page(forge, request)
    given = request.parameters
    application = forge.application(given.get("client_id", ""))
    target = given.get("redirect_uri", "")
    if application is None or target not in application.redirect_uris:
        why = "Unregistered Redirect URI" if application else "Client ID not registered"
        return page.show("Authorization failed", f"<h1>Authorization failed</h1><p>{why}</p>", status=400)
    state = {"state": given.get("state", "")}
    if given.get("response_type") != "code":
        return _back(
            target, error="unsupported_response_type", error_description="Only code response type is supported.", **state
        )
    if given.get("code_challenge_method", "S256") != "S256":
        return _back(target, error="invalid_request", error_description="unsupported code challenge method", **state)
    if request.method != "POST":
        shown = page.show("Authorize", _form(forge, request))
        there = urlsplit(target)
        policy = shown.headers["Content-Security-Policy"]
        to_there = f"form-action 'self' {there.scheme}://{there.netloc}"
        shown.headers["Content-Security-Policy"] = policy.replace("form-action 'self'", to_there)
        return shown
    # There are no sessions to exploit, but other sites must still not consent through the visitor's browser.
    origin = urlsplit(request.header("Origin")).netloc
    if not origin or origin != request.header("Host"):
        return page.show("Refused", "<h1>Forbidden</h1><p>Consent is given on this page only.</p>", status=403)
    form = dict(parse_qsl(request.body.decode(errors="replace")))
    if "granted" not in form:
        return _back(target, error="access_denied", error_description="the request is denied", **state)
    user = forge.user(form.get("user", ""))
    code = secrets.token_urlsafe(24)
    until = forge.now() + CODE
    forge.codes[code] = Code(
        application.client_id, target, user.id, given.get("scope", ""), given.get("code_challenge", ""), until
    )
    return _back(target, code=code, **state)


def _form(forge: Forge, request: Request) -> str:
    people = "".join(f"<option>{escape(user.login)}</option>" for user in forge.tables.users.values() if not user.is_org)
    where = escape(urlsplit(request.parameters["redirect_uri"]).netloc)
    return f"""<h1>Authorize {where}</h1><form class="card write" method="post" action="{escape(request.target)}">
<div class="body"><p>It will see: {escape(request.parameters.get("scope", "") or "everything")}</p>
<div class="buttons"><label>You are<select name="user">{people}</select></label>
<button name="granted" value="true">Authorize</button> <button>Cancel</button></div></div></form>"""


def _back(target: str, **answer: str) -> Response:
    return Response(303, b"", {"Location": f"{target}?{urlencode(answer)}"})


def _exchange(forge: Forge, request: Request) -> Response:
    """A code for an access token."""
    try:
        json_sent = request.header("Content-Type").startswith("application/json")
        given = json.loads(request.body) if json_sent else dict(parse_qsl(request.body.decode()))
    except ValueError:
        return _refuse("invalid_request", "the body cannot be read")
    application = forge.application(str(given.get("client_id")))
    if application is None:
        return _refuse("invalid_client", f"cannot load client with client id: {given.get('client_id')!r}")
    if forge.application(application.client_id, str(given.get("client_secret"))) is None:
        return _refuse("unauthorized_client", "invalid client secret")
    if given.get("grant_type") != "authorization_code":
        return _refuse("unsupported_grant_type", "Only refresh_token or authorization_code grant type is supported")
    code: Code | None = forge.codes.get(str(given.get("code")))
    if code is None or code.client_id != application.client_id or code.until < forge.now():
        return _refuse("unauthorized_client", "client is not authorized")
    digest = hashlib.sha256(str(given.get("code_verifier", "")).encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    if code.challenge and not hmac.compare_digest(challenge, code.challenge):
        return _refuse("unauthorized_client", "failed PKCE code challenge")
    if given.get("redirect_uri") != code.redirect_uri:
        return _refuse("unauthorized_client", "unexpected redirect URI")
    del forge.codes[str(given.get("code"))]
    token = forge.add_token(forge.tables.users[code.user_id], *code.scope.split())
    body = {"access_token": token, "token_type": "bearer", "expires_in": ACCESS, "refresh_token": secrets.token_hex(20)}
    return Response(200, encode(body), {"Content-Type": "application/json;charset=utf-8", "Cache-Control": "no-store"})


def _refuse(error: str, text: str) -> Response:
    body = encode({"error": error, "error_description": text})
    return Response(400, body, {"Content-Type": "application/json;charset=utf-8"})
