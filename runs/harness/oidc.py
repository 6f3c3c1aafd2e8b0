"""A realm for one run on the warm OIDC provider, a Keycloak, through its admin REST API.

Formats: https://www.keycloak.org/docs-api/latest/rest-api/ (RealmRepresentation, ClientRepresentation, UserRepresentation).
Error messages contain no credentials.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import requests
import tenacity

from infra.deployers.context import stack_name

CLIENT_ID = "cc-ci"
USER = "cc-ci-user"
_INSTALLATION, _RUN = "cc-ci.installation", "cc-ci.run"
_NAME = re.compile(r"ccci-[0-9a-f]{12}")
_TIMEOUT = (5.0, 30.0)  # connect, read: Keycloak takes seconds to create a realm
_AGAIN = (502, 503, 504)


class OidcError(Exception):
    """A request to the provider failed. The message says what happened and what to do."""


@dataclass(frozen=True)
class Realm:
    """A run's realm, with a client and a user. Secrets are not part of its repr."""

    name: str
    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    user: str
    password: str = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What has to be kept out of every log."""
        return self.client_secret, self.password


def environment(realm: Realm) -> dict[str, str]:
    """Variables for the recipe's `.env` and its tests."""
    return {
        "OIDC_ISSUER": realm.issuer,
        "OIDC_CLIENT_ID": realm.client_id,
        "OIDC_CLIENT_SECRET": realm.client_secret,
        "OIDC_REALM": realm.name,
        "OIDC_USER": realm.user,
        "OIDC_PASSWORD": realm.password,
    }


@dataclass(frozen=True)
class Provider:
    """The warm Keycloak: its address (with `/auth` if it is an old one), an admin of the realm master, our installation's id.

    All calls raise OidcError.
    """

    url: str
    user: str
    password: str = field(repr=False)
    installation: str

    def create(self, run_id: str, domain: str) -> Realm:
        """Create a realm for the run, whose client may redirect only to `domain`. Replaces one left by an earlier attempt."""
        name = stack_name(run_id)
        if not _NAME.fullmatch(name):
            raise OidcError(f"The run id {run_id[:40]!r} is too short for a realm's name.")
        admin = _Admin(self)
        given = {"realm": name, "enabled": True, "attributes": {_INSTALLATION: self.installation, _RUN: run_id}}
        if self._taken(admin.call("POST", "realms", given, expect=(201, 400, 409)), name):
            self._replace(admin, name, run_id)
            admin.call("POST", "realms", given)
        try:
            client_secret, password = secrets.token_urlsafe(24), secrets.token_urlsafe(18)
            admin.call("POST", f"realms/{name}/clients", _client(domain, client_secret))
            admin.call("POST", f"realms/{name}/users", _user(password))
            issuer = admin.issuer(name)
        except OidcError:
            with suppress(OidcError):  # the sweep finds it
                admin.call("DELETE", f"realms/{name}", expect=(204, 404))
            raise
        return Realm(name, issuer, CLIENT_ID, client_secret, USER, password)

    @staticmethod
    def _taken(answer: requests.Response, name: str) -> bool:
        """Whether the name was taken: status 409, or 400 from Keycloak 26.2.4."""
        if answer.status_code == 201:
            return False
        if answer.status_code == 409 or "already exists" in answer.text:
            return True
        raise OidcError(f"The OIDC provider rejected the realm {name}: {_message(answer)}.")

    def _replace(self, admin: _Admin, name: str, run_id: str) -> None:
        found = admin.call("GET", f"realms/{name}", expect=(200, 404))
        if found.status_code == 404:
            return
        attributes = _json(found).get("attributes") or {}
        if (attributes.get(_INSTALLATION), attributes.get(_RUN)) != (self.installation, run_id):
            raise OidcError(
                f"The OIDC provider has a realm {name} that does not belong to this run. Remove it there if nobody needs it."
            )
        admin.call("DELETE", f"realms/{name}", expect=(204, 404))

    def delete(self, realm: Realm | str) -> None:
        """Remove a run's realm with everything in it. Does nothing if it is gone."""
        name = realm if isinstance(realm, str) else realm.name
        if not _NAME.fullmatch(name):
            raise OidcError(f"{name!r} is not the realm of a run.")
        _Admin(self).call("DELETE", f"realms/{name}", expect=(204, 404))

    def sweep(self, alive: Callable[[str], bool]) -> list[str]:
        """Remove the realms of this installation's dead runs, and return their names.

        A realm is ours if its name *and* our installation's id in its attributes say so. `alive` is called after listing them.
        """
        admin = _Admin(self)
        removed = []
        for realm in _list(admin.call("GET", "realms?briefRepresentation=false")):
            name, attributes = str(realm.get("realm")), realm.get("attributes") or {}
            run_id = str(attributes.get(_RUN) or "")
            ours = _NAME.fullmatch(name) and attributes.get(_INSTALLATION) == self.installation and stack_name(run_id) == name
            if ours and not alive(run_id):
                admin.call("DELETE", f"realms/{name}", expect=(204, 404))
                removed.append(name)
        return removed


def _client(domain: str, secret: str) -> dict[str, Any]:
    origins = [f"https://{domain}", f"http://{domain}"]
    return {
        "clientId": CLIENT_ID,
        "enabled": True,
        "protocol": "openid-connect",
        "publicClient": False,
        "secret": secret,
        "standardFlowEnabled": True,
        "directAccessGrantsEnabled": True,  # a test can log in without a browser
        "redirectUris": [f"{origin}/*" for origin in origins],
        "webOrigins": origins,
        "attributes": {"post.logout.redirect.uris": "+"},  # the same as for the login
    }


def _user(password: str) -> dict[str, Any]:
    # Without names Keycloak 24 and newer asks the user to complete the profile first.
    return {
        "username": USER,
        "enabled": True,
        "email": f"{USER}@example.com",
        "emailVerified": True,
        "firstName": "Test",
        "lastName": "User",
        "credentials": [{"type": "password", "value": password, "temporary": False}],
    }


class _Unavailable(Exception):
    """No answer, or one that asks to retry later."""


class _Admin:
    """The admin API, with one token for a few calls: it is valid for a minute."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._base = provider.url.rstrip("/")
        if urlsplit(self._base).scheme not in ("http", "https"):
            raise OidcError(f"Invalid OIDC provider address {self._base!r}: expected an http(s) URL. Correct it in the settings.")
        self._session = requests.Session()
        self._session.trust_env = False
        self._login()

    def _login(self) -> None:
        form = {
            "grant_type": "password",
            "client_id": "admin-cli",
            "username": self._provider.user,
            "password": self._provider.password,
        }
        path = f"{self._base}/realms/master/protocol/openid-connect/token"
        answer = self._read("POST", path, data=form)
        if answer.status_code in (400, 401):
            raise OidcError(
                f"The OIDC provider rejected the login of {self._provider.user}: {_message(answer)}. Correct the user "
                "and password."
            )
        if answer.status_code != 200 or not (token := str(_json(answer).get("access_token") or "")):
            raise OidcError(
                f"The OIDC provider at {self._base} issued no token: {_message(answer)}. Is it a Keycloak, and is its "
                "path (/auth) complete?"
            )
        self._session.headers["Authorization"] = f"Bearer {token}"

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, expect: tuple[int, ...] = (200, 201, 204)
    ) -> requests.Response:
        """Make one call, with a new token if the old one has expired."""
        url = f"{self._base}/admin/{path}"
        # Reads and deletions can be retried; a creation could happen twice.
        send = self._once if method == "POST" else self._read
        answer = send(method, url, json=body)
        if answer.status_code == 401:
            self._login()
            answer = send(method, url, json=body)
        if answer.status_code == 403:
            raise OidcError(
                f"The OIDC provider does not allow {self._provider.user} to {method} {path}: give that user the role admin."
            )
        if answer.status_code not in expect:
            raise OidcError(f"The OIDC provider answered {method} {path} with {_message(answer)}.")
        return answer

    def issuer(self, realm: str) -> str:
        """The realm's own issuer, which clients check; behind some proxies it differs from our address."""
        answer = self._read("GET", f"{self._base}/realms/{quote(realm)}/.well-known/openid-configuration")
        issuer = str(_json(answer).get("issuer") or "") if answer.status_code == 200 else ""
        if not issuer:
            raise OidcError(f"The OIDC provider does not serve the new realm {realm}: {_message(answer)}.")
        return issuer

    def _once(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            return self._send(method, url, **options)
        except _Unavailable as error:
            raise OidcError(f"The OIDC provider at {self._base} {error}. Check that it is running.") from error

    def _read(self, method: str, url: str, **options: Any) -> requests.Response:
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unavailable),
            stop=tenacity.stop_after_attempt(3),
            wait=tenacity.wait_exponential(multiplier=0.2, max=2),
            reraise=True,
        )
        try:
            return again(self._send, method, url, **options)
        except _Unavailable as error:
            raise OidcError(f"The OIDC provider at {self._base} {error}. Check that it is running.") from error

    def _send(self, method: str, url: str, **options: Any) -> requests.Response:
        try:
            # A redirect would send the credential elsewhere.
            answer = self._session.request(method, url, timeout=_TIMEOUT, allow_redirects=False, **options)
        except requests.Timeout:
            raise _Unavailable("did not answer in time") from None
        except requests.RequestException as error:  # its text may contain the whole request: report only its type
            raise _Unavailable(f"cannot be reached ({type(error).__name__})") from None
        if answer.status_code in _AGAIN:
            raise _Unavailable(f"answered with {answer.status_code}")
        return answer


def _json(answer: requests.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _list(answer: requests.Response) -> list[dict[str, Any]]:
    try:
        body = answer.json()
    except ValueError as error:
        raise OidcError("Cannot read the OIDC provider's list of realms. Is it a Keycloak?") from error
    return [item for item in body if isinstance(item, dict)] if isinstance(body, list) else []


def _message(answer: requests.Response) -> str:
    """The status and Keycloak's error message: never the raw body, which may repeat what was sent."""
    body = _json(answer)
    text = body.get("errorMessage") or body.get("error_description") or body.get("error")
    return f"{answer.status_code} ({str(text)[:200]})" if isinstance(text, str) and text else str(answer.status_code)
