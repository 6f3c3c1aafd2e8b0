"""A realm for each run, on a fake of Keycloak's admin API."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
import requests

from runs.harness import oidc
from runs.harness.oidc import OidcError, Provider, environment
from tests.runs.harness.keycloak import Keycloak, keycloak

RUN = "0123456789abcdef0123456789abcdef"
REALM = "ccci-0123456789ab"
DOMAIN = "ccci-0123456789ab.ci.example.com"


@pytest.fixture
def there() -> Iterator[Keycloak]:
    with keycloak() as there:
        yield there


def provider(there: Keycloak, installation: str = "here", **changes: str) -> Provider:
    return Provider(**{"url": there.url, "user": there.user, "password": there.password, "installation": installation, **changes})


def login(realm: oidc.Realm, **changes: str) -> int:
    """Log in as the test's user does, at the issuer: the status."""
    form = {
        "grant_type": "password",
        "client_id": realm.client_id,
        "client_secret": realm.client_secret,
        "username": realm.user,
        "password": realm.password,
        **changes,
    }
    return requests.post(f"{realm.issuer}/protocol/openid-connect/token", data=form, timeout=240).status_code


def test_a_realm_is_made_used_and_deleted(there: Keycloak) -> None:
    realm = provider(there).create(RUN, DOMAIN)
    assert environment(realm) == {
        "OIDC_ISSUER": f"{there.url}/realms/{REALM}",
        "OIDC_CLIENT_ID": "cc-ci",
        "OIDC_CLIENT_SECRET": realm.client_secret,
        "OIDC_REALM": REALM,
        "OIDC_USER": "cc-ci-user",
        "OIDC_PASSWORD": realm.password,
    }
    assert login(realm) == 200
    assert login(realm, password="x") == login(realm, client_secret="x") == 401
    client = there.clients[REALM]["cc-ci"]
    assert client["redirectUris"] == [f"https://{DOMAIN}/*", f"http://{DOMAIN}/*"]
    assert client["publicClient"] is False
    assert there.realms[REALM]["attributes"] == {"cc-ci.installation": "here", "cc-ci.run": RUN}
    assert [call for call in there.asked if "/admin/" in call] == [
        "POST /admin/realms",
        f"POST /admin/realms/{REALM}/clients",
        f"POST /admin/realms/{REALM}/users",
    ]
    provider(there).delete(realm)
    assert set(there.realms) == {"master"}
    provider(there).delete(realm)  # it is gone, and that is fine
    assert login(realm) == 404


def test_secrets_differ_and_stand_in_no_text(there: Keycloak) -> None:
    one, two = provider(there).create(RUN, DOMAIN), provider(there).create(uuid.uuid4().hex, DOMAIN)
    assert len({*one.secrets, *two.secrets}) == 4
    assert all(len(secret) >= 20 for secret in one.secrets)
    assert not any(secret in f"{one!r} {one}" for secret in one.secrets)
    assert there.password not in repr(provider(there))


@pytest.mark.parametrize("status", [409, 400])
def test_what_an_earlier_attempt_left_is_replaced(status: int, there: Keycloak) -> None:
    there.taken = status
    before = provider(there).create(RUN, DOMAIN)
    realm = provider(there).create(RUN, DOMAIN)
    assert login(realm) == 200
    assert login(realm, password=before.password) == 401


def test_somebody_elses_realm_of_that_name_stays(there: Keycloak) -> None:
    theirs = provider(there, "elsewhere").create(RUN, DOMAIN)
    with pytest.raises(OidcError, match="that does not belong to this run"):
        provider(there).create(RUN, DOMAIN)
    assert login(theirs) == 200


def test_only_a_runs_realm_can_be_deleted(there: Keycloak) -> None:
    for name in ("master", "ccci-x", f"{REALM}/../master", "", f"{REALM}\n"):
        with pytest.raises(OidcError, match="not the realm of a run"):
            provider(there).delete(name)
    with pytest.raises(OidcError, match="too short"):
        provider(there).create("xyz", DOMAIN)
    assert there.asked == []


def test_the_sweep_takes_dead_runs_of_this_installation_only(there: Keycloak) -> None:
    dead, living, neighbours = (uuid.uuid4().hex for _ in range(3))
    for run, installation in ((dead, "here"), (living, "here"), (neighbours, "elsewhere")):
        provider(there, installation).create(run, DOMAIN)
    ours = {"cc-ci.installation": "here", "cc-ci.run": dead}
    there.realms["ccci-aaaaaaaaaaaa"] = {"realm": "ccci-aaaaaaaaaaaa"}
    there.realms["ccci-bbbbbbbbbbbb"] = {"realm": "ccci-bbbbbbbbbbbb", "attributes": ours}  # another's name, our marks
    there.realms["people"] = {"realm": "people", "attributes": ours}
    before = set(there.realms)
    assert provider(there).sweep(lambda run: run == living) == [f"ccci-{dead[:12]}"]
    assert set(there.realms) == before - {f"ccci-{dead[:12]}"}
    assert provider(there).sweep(lambda run: run == living) == []


def test_a_realm_that_is_made_by_half_is_removed(there: Keycloak) -> None:
    there.instead[f"POST /admin/realms/{REALM}/users"] = [(500, {"error": "unknown_error"})]
    with pytest.raises(OidcError, match=r"users with 500 \(unknown_error\)"):
        provider(there).create(RUN, DOMAIN)
    assert set(there.realms) == {"master"}


def test_a_token_that_has_run_out_is_replaced(there: Keycloak) -> None:
    there.instead["POST /admin/realms"] = [(401, {"error": "HTTP 401 Unauthorized"})]
    assert login(provider(there).create(RUN, DOMAIN)) == 200
    assert sum("master/protocol" in call for call in there.asked) == 2


def test_reads_are_tried_again_and_writes_are_not(there: Keycloak) -> None:
    there.instead["GET /admin/realms"] = [(503, {}), (0, None)]
    assert provider(there).sweep(lambda run: True) == []
    there.instead["GET /admin/realms"] = [(503, {})] * 3
    with pytest.raises(OidcError, match=r"answered with 503\. Check that it is running"):
        provider(there).sweep(lambda run: True)
    there.instead["POST /admin/realms"] = [(503, {})]
    with pytest.raises(OidcError, match="answered with 503"):
        provider(there).create(RUN, DOMAIN)
    assert there.asked.count("POST /admin/realms") == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"password": "wrong-password"}, "rejected the login of admin: 401 (Invalid user credentials)"),
        ({"url": "{url}/auth"}, "issued no token: 404"),
        ({"url": "http://127.0.0.1:9"}, "cannot be reached (ConnectionError)"),
        ({"url": "keycloak.example.com"}, "expected an http(s) URL"),
    ],
)
def test_errors_are_words_without_the_credential(given: dict[str, str], words: str, there: Keycloak) -> None:
    one = provider(there, **{key: value.format(url=there.url) for key, value in given.items()})
    with pytest.raises(OidcError) as caught:
        one.create(RUN, DOMAIN)
    assert words in str(caught.value)
    assert one.password not in str(caught.value)


def test_a_user_without_the_right_is_told_which(there: Keycloak) -> None:
    there.instead["POST /admin/realms"] = [(403, {"error": "HTTP 403 Forbidden"})]
    with pytest.raises(OidcError, match=r"does not allow admin to POST realms: give that user the role admin\."):
        provider(there).create(RUN, DOMAIN)


def test_a_redirection_takes_no_credential_along(there: Keycloak) -> None:
    there.instead["POST /realms/master/protocol/openid-connect/token"] = [(307, {})]
    with pytest.raises(OidcError, match="issued no token: 307"):
        provider(there).create(RUN, DOMAIN)
    assert len(there.asked) == 1
