"""What a request to the provider may be: in the run's own realm, by the methods of a browser, with its headers."""

from __future__ import annotations

import pytest

from runs.harness.doors import Origin
from runs.harness.relay import Forbidden, Head
from runs.harness.signin import to_provider

REALM = "/realms/ccci-0123456789ab"
PROVIDER = Origin("https", "sso.example.org", 443, REALM)
OLD = Origin("https", "sso.example.org", 443, f"/auth{REALM}")


def asked(line: str, provider: Origin = PROVIDER, **fields: str) -> list[tuple[str, str]]:
    given = [(name.encode(), value.encode()) for name, value in fields.items()]
    head = to_provider(Head(f"{line} HTTP/1.1".encode(), given), provider)
    assert head.line == f"{line} HTTP/1.1".encode()
    return [(name.decode(), value.decode()) for name, value in head.fields]


@pytest.mark.parametrize(
    ("provider", "line"),
    [
        # What Keycloak's own pages and a client of OpenID Connect ask for.
        (PROVIDER, f"GET {REALM}/.well-known/openid-configuration"),
        (PROVIDER, f"GET {REALM}/protocol/openid-connect/auth?client_id=x&redirect_uri=https%3A%2F%2Fa.example.com%2F../%2e%2e"),
        (PROVIDER, f"POST {REALM}/login-actions/authenticate?session_code=a&tab_id=b"),
        (PROVIDER, f"POST {REALM}/protocol/openid-connect/token"),
        (PROVIDER, f"OPTIONS {REALM}/protocol/openid-connect/token"),
        (PROVIDER, f"HEAD {REALM}"),
        (PROVIDER, f"GET {REALM}/account/"),
        (PROVIDER, "GET /resources/m3j5k/login/keycloak.v2/css/styles.css"),
        (PROVIDER, "GET /resources/m3j5k/common/keycloak/node_modules/@patternfly/patternfly/patternfly.min.css"),
        (PROVIDER, "GET /js/keycloak.js?version=24"),
        (OLD, f"GET /auth{REALM}/protocol/openid-connect/certs"),
        (OLD, "GET /auth/resources/m3j5k/login/keycloak/img/favicon.ico"),
        (Origin("https", "sso.example.org", 443), "GET /.well-known/openid-configuration"),  # an issuer that is all of its host
    ],
)
def test_what_signing_in_takes_goes_there(provider: Origin, line: str) -> None:
    assert asked(line, provider) == [("Host", "sso.example.org")]


@pytest.mark.parametrize(
    "line",
    [
        "GET /",
        "GET /admin/realms",
        "GET /admin/master/console/",
        "GET /realms/master/protocol/openid-connect/token",
        "POST /realms/master/protocol/openid-connect/token",
        f"GET {REALM}0/account",
        f"GET {REALM}/../master/account",
        f"GET {REALM}/..",
        f"GET {REALM}/./x",
        f"GET {REALM}/%2e%2e/master",
        f"GET {REALM}/..%2fmaster",
        f"GET {REALM}/..;/master",
        f"GET {REALM}/x;a=b",
        f"GET {REALM}//x",
        f"GET {REALM}/x\\y",
        f"GET /{REALM}/x",
        f"GET {REALM}#/../../x",
        "GET /resources/../admin/",
        "GET /resources",
        "POST /resources/x",
        "GET /metrics",
        "OPTIONS *",
        f"PUT {REALM}/clients-registrations/default/x",
        f"DELETE {REALM}/x",
        f"PATCH {REALM}/x",
        f"TRACE {REALM}/x",
        f"CONNECT {REALM}/x",
        f"get {REALM}/x",
    ],
)
def test_nothing_else_does(line: str) -> None:
    with pytest.raises(Forbidden, match="the provider"):
        asked(line)


def test_under_an_old_keycloaks_path_its_root_is_not_reached() -> None:
    for path in ("/resources/x", REALM, "/auth/admin/"):
        with pytest.raises(Forbidden):
            asked(f"GET {path}", OLD)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *((name, True) for name in ("Accept", "accept-language", "Cookie", "Authorization", "Content-Type", "Content-Length")),
        *((name, True) for name in ("If-None-Match", "Origin", "Referer", "User-Agent", "Sec-Fetch-Mode", "X-Requested-With")),
        *((name, False) for name in ("Host", "Forwarded", "X-Forwarded-For", "X-Forwarded-Tls-Client-Cert", "X_Forwarded_Host")),
        *(
            (name, False)
            for name in ("X-Real-IP", "X-Original-URL", "Ssl-Client-Cert", "X-HTTP-Method-Override", "Via", "Expect")
        ),
        *(
            (name, False)
            for name in ("Connection", "Keep-Alive", "TE", "Trailer", "Upgrade", "HTTP2-Settings", "Proxy-Connection")
        ),
    ],
)
def test_only_what_browsers_and_clients_say_is_said(name: str, said: bool) -> None:
    assert asked(f"POST {REALM}/x", **{name: "x"}) == [("Host", "sso.example.org"), *([(name, "x")] if said else [])]
