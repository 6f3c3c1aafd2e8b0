"""The conversation with a forge's OAuth2 server. oauthlib knows the protocol; requests go through our own client.

A login is prepared as an `Attempt`, which the person's browser keeps while it is at the forge: it comes back with a code that
only this attempt (its state, and the verifier of its PKCE challenge) can exchange for a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
from django.conf import settings
from django.utils.crypto import get_random_string
from oauthlib.oauth2 import OAuth2Error, WebApplicationClient

from controlplane.secrets import reveal
from enrollment.forge_access.clients import kind_of, user_agent, visitors_limiter
from enrollment.forges.base import Ask, ForgeError, Garbage, SignIn
from enrollment.forges.http import Http, json_of
from enrollment.models import Forge

#: The longest time for which a token is used, whatever the forge says about it, and the time if it says nothing, in seconds.
MOST, USUAL = 12 * 3600, 3600
#: Characters of the longest token: each request that has a login reads it.
LONGEST = 4096


class NotLoggedIn(Exception):
    """The forge did not log the person in. The message is for them."""


@dataclass(frozen=True)
class Attempt:
    """One attempt to log in. `next` is the page to show after it."""

    forge: int
    state: str
    verifier: str
    next: str


@dataclass(frozen=True)
class Token:
    """A person's token, good for so many seconds."""

    secret: str
    seconds: int


def sign_in_of(forge: Forge) -> SignIn | None:
    """How people log in with this forge; None if that is off."""
    set_up = forge.enabled and forge.oauth_client_id and forge.oauth_client_secret
    return kind_of(forge).sign_in if set_up else None


def attempt(forge: Forge, next_page: str) -> Attempt:
    """A new attempt."""
    return Attempt(forge.pk, get_random_string(43), get_random_string(64), next_page)


def authorize_url(forge: Forge, sign_in: SignIn, made: Attempt, redirect: str) -> str:
    """Where the person's browser goes: the forge's page that asks for consent."""
    client = WebApplicationClient(forge.oauth_client_id)
    # oauthlib builds addresses for https only, but a forge in the same network may have none: its query is what we need.
    uri = client.prepare_request_uri(
        f"https://forge{sign_in.authorize}",
        redirect_uri=redirect,
        scope=sign_in.scope,
        state=made.state,
        code_challenge=client.create_code_challenge(made.verifier, "S256"),
        code_challenge_method="S256",
    )
    return f"{forge.url}{sign_in.authorize}?{urlsplit(uri).query}"


def exchange(forge: Forge, sign_in: SignIn, made: Attempt, redirect: str, answer: Mapping[str, str]) -> Token:
    """The token for the code in the forge's answer, the query with which the browser came back.

    Raises NotLoggedIn, ForgeError if the forge could not be asked, and SecretUnreadable.
    """
    client = WebApplicationClient(forge.oauth_client_id)
    try:
        code = client.parse_request_uri_response(f"https://here/?{urlencode(answer)}", state=made.state)["code"]
    except OAuth2Error as error:
        raise NotLoggedIn(_why(error)) from error
    body = {
        "grant_type": "authorization_code",
        "client_id": forge.oauth_client_id,
        "client_secret": reveal(forge.oauth_client_secret),
        "code": code,
        "redirect_uri": redirect,
        "code_verifier": made.verifier,
    }
    headers = {"Accept": "application/json", "User-Agent": user_agent()}
    limiter = visitors_limiter(forge.pk)
    http = Http(forge.url, "", headers, settings.CC_CI.http_timeout, limiter, lambda method, path: Ask("login"), _message)
    response = http.once("POST", sign_in.token, body=body)
    given = json_of(response)
    if not isinstance(given, dict) or not isinstance(given.get("access_token"), str) or not given["access_token"]:
        raise Garbage(f"POST {sign_in.token}: the response has no access token")
    if len(given["access_token"]) > LONGEST:
        raise Garbage(f"POST {sign_in.token}: the token has more than {LONGEST} characters")
    if str(given.get("token_type")).lower() != "bearer":
        raise Garbage(f"POST {sign_in.token}: the token is of an unknown type")
    seconds: Any = given.get("expires_in")
    known = isinstance(seconds, int) and not isinstance(seconds, bool) and seconds > 0
    return Token(given["access_token"], min(seconds, MOST) if known else USUAL)


def _why(error: OAuth2Error) -> str:
    if error.error == "access_denied":
        return "You did not allow it at the forge."
    if error.error == "mismatching_state":
        return "The answer does not belong to this login."
    return "The forge refused the login."


def _message(response: requests.Response) -> str | None:
    """What an error's response says; None if it is not an OAuth2 server's."""
    try:
        said: Any = json_of(response)
    except ForgeError:
        return None
    error = said.get("error") if isinstance(said, dict) else None
    return f"{error}: {said.get('error_description')}"[:200] if isinstance(error, str) else None
