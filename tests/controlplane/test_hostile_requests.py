"""Hostile requests: NUL and numbers that no database accepts, and headers that only our proxy may send.

On SQLite and on PostgreSQL, which are of different minds about NUL.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from controlplane.middleware import believe_proxies
from controlplane.wsgi import application
from runs.models import TestRun
from tests.factories import ArtefactFactory, InfraAppFactory, RepositoryFactory, UpgradeFactory

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases, pytest.mark.slow(0.1)]

HUGE = "9" * 40
NUL = ("%00", "a%00b")
#: Bytes that are no UTF-8, half a surrogate, and what is encoded twice.
ODD = ("%ff", "%ED%A0%80", "%C0%80", "%2500", "%F4%90%80%80", "%u0000", "x" * 3000)


@cache
def browser(who: str) -> Client:
    """One for all tests: each new one reads the whole folder of static files."""
    return Client(raise_request_exception=False)


@pytest.fixture
def operator() -> Client:
    browser("operator").force_login(User.objects.create_superuser("operator"))
    return browser("operator")


@pytest.fixture
def stranger() -> Client:
    browser("stranger").cookies.clear()
    return browser("stranger")


def public(patterns: list[Any] | None = None, prefix: str = "/") -> Iterator[str]:
    """Every address that is neither the admin's nor the API's, as `{name}` has it."""
    for pattern in get_resolver().url_patterns if patterns is None else patterns:
        if isinstance(pattern, URLResolver):
            if pattern.namespace != "admin" and str(pattern.pattern) != "api/":  # test_api.py has the API's
                yield from public(pattern.url_patterns, prefix + str(pattern.pattern))
        elif isinstance(pattern, URLPattern):
            yield prefix + str(pattern.pattern).removeprefix("^").replace("(?P<forge>[^/]+)/?$", "<str:forge>/").replace(
                "(?P<name>[^/]+)/hook/?$", "<str:name>/hook/"
            )


def filled(address: str, text: str, number: str) -> str:
    """The address with this in it; rows are there where nothing odd is asked for."""
    run = TestRun.objects.first() or ArtefactFactory(name="a.txt").run
    values = {
        "<uuid:run_id>": str(run.pk),
        "<str:name>": text or "a.txt",
        "<path:name>": text or "stages/",
        "<slug:name>": "adopt",
        "<str:forge>": text or "1",
        "<str:owner>": text or "recipes",
        "<int:number>": number,
        "<int:pk>": number,
        "<int:repository_id>": number,
    }
    for name, value in values.items():
        address = address.replace(name, value)
    assert "<" not in address
    return address


ADDRESSES = sorted(public())


def test_every_address_is_looked_at() -> None:
    assert {"/", "/runs/<uuid:run_id>/files/<str:name>", "/hooks/<str:forge>/", "/infra/do/<slug:name>/"} <= {*ADDRESSES}


@pytest.mark.on_postgresql  # SQLite takes a NUL as it is
@pytest.mark.parametrize("address", ADDRESSES)
def test_nul_and_what_is_no_text_is_no_fault_of_ours(stranger: Client, operator: Client, address: str) -> None:
    hook = address.startswith("/hooks/") or address.endswith("/hook/")
    row = RepositoryFactory()
    upgrade = UpgradeFactory(app=InfraAppFactory(name="web"))
    number = str(upgrade.pk if "upgrades" in address else row.pk)
    plain = filled(address, "", number)
    fields = ("state", "repository", "page", "recipe", "seen", "check", "next", "x")
    for client in (stranger, operator):
        for nul in NUL:
            asked = [plain + f"?{name}={nul}" for name in fields]
            asked += [plain + f"?{nul}=x"]
            if "<str:" in address:
                asked.append(filled(address, nul, number))
            for path in asked:
                for method in (client.get, client.post):
                    answer = method(path)
                    assert answer.status_code == (405 if hook and method == client.get else 415 if hook else 404), path
        for odd in ODD:
            query = f"?repository={odd}&recipe={odd}&state={odd}"
            for path in (filled(address, odd, number), plain + query):
                assert client.get(path).status_code < 500, path
        assert client.get(filled(address, "", HUGE) + f"?page={HUGE}").status_code < 500
    # A path that is nobody's is nobody's with a NUL as well, static files among them.
    assert hook or stranger.get(address.partition("<")[0] + "nowhere%00").status_code == 404
    assert stranger.get("/static/%00").status_code == 404


@pytest.mark.on_postgresql
@pytest.mark.parametrize("model", [pytest.param(model, id=model._meta.label) for model in admin.site._registry])
def test_the_admin_finds_nothing_with_nul(operator: Client, model: Any) -> None:
    page = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")
    for query in ("q=%00", "q=a%00b", "p=%00", "o=%00", f"{model._meta.pk.name}=%00", "%00=1"):
        assert operator.get(f"{page}?{query}").status_code == 404, query
    for key in (*NUL, "_00", HUGE):
        assert operator.get(f"{page}{key}/change/").status_code in (302, 404)
    for query in (f"p={HUGE}", f"{model._meta.pk.name}={HUGE}"):
        assert operator.get(f"{page}?{query}").status_code < 500
    answer = operator.post(page, {"action": "delete_selected", "_selected_action": ["\0"]})
    assert answer.status_code == 400 and "Invalid request" in answer.content.decode()


def test_a_form_with_nul_is_refused(stranger: Client) -> None:
    answer = stranger.post(reverse("admin:login"), {"username": "a\0b", "password": "x"})
    assert answer.status_code == 400


@pytest.mark.parametrize("charset", ["rot13", "hex", "idna", "undefined", "utf-16", "nonsense", '"', "x" * 1000])
@pytest.mark.parametrize("kind", ["text/html", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_whatever_encoding_a_client_names_it_is_ours(kind: str, charset: str) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n\xc3\xa9\r\n--x--\r\n' if "x" in kind[-1] else b"name=%C3%A9"
    )
    environ = RequestFactory().generic("POST", "/runs/?state=%C3%A9", body).environ
    request = application.request_class(environ | {"CONTENT_TYPE": f"{kind}; charset={charset}"})
    assert request.GET["state"] == "é"
    assert request.POST.get("name") == (None if kind == "text/html" else "é")


def test_a_cookie_with_nul_is_none(stranger: Client) -> None:
    for value in (r'sessionid="\000"', r'sessionid="a\000b"; csrftoken="\000"', r'"\000"=x; messages="\000"'):
        for path in ("/", "/runs/", "/nowhere/", reverse("admin:index"), f"/runs/{uuid.uuid4()}/"):
            assert stranger.get(path, headers={"cookie": value}).status_code in (200, 302, 404)


# --- proxies

PROXIES = ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"]


def seen(
    monkeypatch: pytest.MonkeyPatch, peer: str, proxies: list[str] | None = None, **headers: str
) -> tuple[str, bool, set[str]]:
    """The client's address, whether it came over https, and what is left of the headers, as views see it."""
    monkeypatch.setattr(settings.CC_CI, "proxies", PROXIES if proxies is None else proxies)
    found: list[HttpRequest] = []

    def view(request: HttpRequest) -> HttpResponse:
        found.append(request)
        return HttpResponse()

    given = {name.replace("_", "-"): value for name, value in headers.items()}
    believe_proxies(view)(RequestFactory().get("/", REMOTE_ADDR=peer, headers=given))
    request = found[0]
    left = {name for name in request.META if "FORWARD" in name or "REAL_IP" in name}
    return request.META["REMOTE_ADDR"], request.is_secure(), left


@pytest.mark.parametrize("peer", ["203.0.113.7", "127.0.0.1", "11.0.0.1", "2001:db9::1", "::1"])
def test_a_stranger_is_not_believed(monkeypatch: pytest.MonkeyPatch, peer: str) -> None:
    lies = {
        "X_Forwarded_Proto": "https",
        "X_Forwarded_For": "10.0.0.1",
        "X_Forwarded_Host": "evil.example",
        "X_Forwarded_Ssl": "on",
        "Forwarded": "for=10.0.0.1;proto=https",
        "X_Real_Ip": "10.0.0.1",
    }
    assert seen(monkeypatch, peer, **lies) == (peer, False, set())
    assert seen(monkeypatch, peer, [], **lies) == (peer, False, set())


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("10.1.2.3", "203.0.113.7", "203.0.113.7"),
        ("192.0.2.1", "203.0.113.7:4711", "203.0.113.7"),
        ("2001:db8::5", "2001:db9::7", "2001:db9::7"),
        ("::ffff:10.1.2.3", "[2001:db9::7]:4711", "2001:db9::7"),
        ("10.1.2.3", "1.1.1.1, 203.0.113.7", "203.0.113.7"),  # the client said that it came from 1.1.1.1
        ("10.1.2.3", "1.1.1.1, 203.0.113.7, 10.9.9.9, 192.0.2.1", "203.0.113.7"),  # through three of ours
        ("10.1.2.3", "10.9.9.9", "10.9.9.9"),  # a proxy itself
        ("10.1.2.3", "203.0.113.7, unknown", "10.1.2.3"),
        ("10.1.2.3", "203.0.113.7, _hidden, 10.9.9.9", "10.9.9.9"),
        ("10.1.2.3", "", "10.1.2.3"),
        ("10.1.2.3", ",,,", "10.1.2.3"),
    ],
)
def test_a_proxy_of_ours_is_believed(monkeypatch: pytest.MonkeyPatch, peer: str, forwarded_for: str, client: str) -> None:
    told = {"X_Forwarded_For": forwarded_for, "X_Forwarded_Proto": "https"}
    assert seen(monkeypatch, peer, **told)[:2] == (client, True)


@pytest.mark.parametrize(("proto", "secure"), [("https", True), ("http", False), ("https, http", False), ("http, https", True)])
def test_the_last_proxy_has_the_last_word_on_https(monkeypatch: pytest.MonkeyPatch, proto: str, secure: bool) -> None:
    assert seen(monkeypatch, "10.0.0.1", X_Forwarded_Proto=proto)[1] is secure


@pytest.mark.parametrize("path", ["/", "/nowhere/", "/healthz", "/static/controlplane/cc-ci.css", "/admin/login/"])
def test_https_for_good_where_people_come_over_https(client: Client, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(settings, "ALLOWED_HOSTS", ["ci.example.org", "127.0.0.1"])
    assert "Strict-Transport-Security" not in client.get(path, headers={"host": "ci.example.org"})
    monkeypatch.setattr(settings.CC_CI, "base_url", "https://ci.example.org")
    assert client.get(path, headers={"host": "ci.example.org"})["Strict-Transport-Security"] == "max-age=31536000"
    assert "Strict-Transport-Security" not in client.get(path, headers={"host": "127.0.0.1"})
