"""The frame of the API: who gets in, how errors are told, how pages follow each other.

On both databases, for NUL and the conditional updates.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
import time_machine
from axes.models import AccessAttempt
from django.conf import settings
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from controlplane import api, tokens
from controlplane.models import ApiToken
from runs.models import TestRun
from tests.factories import TestRunFactory

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases, pytest.mark.slow(0.1)]

ALL = list(ApiToken.Scope.values)
HERE = "203.0.113.7"
THEN = datetime(2026, 11, 29, 12, tzinfo=UTC)


@cache
def browser() -> Client:
    """One for all: each new one reads the whole folder of static files."""
    return Client(raise_request_exception=False)


def ask(path: str, token: str = "", method: str = "GET", body: Any = None, **more: Any) -> Any:
    browser().cookies.clear()
    headers = {**({"authorization": f"Bearer {token}"} if token else {}), **more.pop("headers", {})}
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    more = {"content_type": "application/json", "REMOTE_ADDR": HERE, **more}
    answer = browser().generic(method, path, data, headers=headers, **more)
    assert answer.status_code < 500, answer.content
    if answer.status_code >= 400:
        assert set(answer.json()) == {"message"} and answer["Cache-Control"] == "no-store"
    return answer


@pytest.fixture
def user() -> User:
    return User.objects.create_superuser("alice", password="right")


def made(user: User, *scopes: str, days: int = 90) -> str:
    return tokens.make(user, "a test", scopes or ALL, days)[1]


# --- who gets in


def test_a_token_lets_in_and_is_stored_as_a_hash_only(user: User) -> None:
    token = made(user)
    assert ask("/api/runs", token).json() == {"items": [], "next": None}
    row = ApiToken.objects.get()
    secret = token.rpartition("_")[2]
    assert row.last_used_at and len(token) > 50
    assert not any(part in repr(list(ApiToken.objects.values())) for part in (token, token[18:], secret))


WRONG = [
    "",
    "x",
    "Bearer",
    "ccci_000000000000_" + 43 * "A",
    "ccci_000000000000_",
    "ccci__" + 43 * "A",
    "\u00e9" * 61,
    "ccci_" + "0" * 5000,
    "' OR 1=1 --",
]


@pytest.mark.parametrize("token", WRONG)
def test_what_is_no_token_does_not(user: User, token: str) -> None:
    made(user)
    assert ask("/api/runs", token).status_code == 401


@pytest.mark.parametrize("change", ["first", "last", "key", "space", "line", "prefix", "upper"])
def test_a_token_that_is_almost_right_does_not(user: User, change: str) -> None:
    token = made(user)
    head, key, secret = token.split("_", 2)
    other = "A" if secret[0] != "A" else "B"
    wrong = {
        "first": f"{head}_{key}_{other}{secret[1:]}",
        "last": token[:-1],
        "key": f"{head}_{'f' * 12}_{secret}",
        "space": f"{token} x",
        "line": f"{token}\t",
        "prefix": f"x{token}",
        "upper": f"CCCI_{key}_{secret}",
    }[change]
    assert ask("/api/runs", wrong).status_code == 401


def test_every_operation_asks_for_a_token_and_takes_no_cookie(user: User) -> None:
    operations = [(path, method) for path, methods in api.description()["paths"].items() for method in methods]
    assert len(operations) > 10
    for path, method in operations:
        path = path.replace("{run_id}", "0" * 32).replace("{recipe_id}", "1").replace("{app_id}", "1")
        browser().force_login(user)
        answer = browser().generic(method.upper(), path, b"{}", content_type="application/json", headers={"x-csrftoken": "x"})
        assert answer.status_code == 401 and answer["WWW-Authenticate"] == "Bearer", path
        assert not answer.cookies
        for scheme in ("Basic", "Token", "bearer2", "Bearer:"):
            assert ask(path, method=method.upper(), headers={"authorization": f"{scheme} {made(user)}"}).status_code == 401


@pytest.mark.parametrize("how", ["expired", "revoked", "inactive", "no staff", "deleted"])
def test_what_ends_a_token(user: User, how: str) -> None:
    token = made(user)
    if how == "expired":
        ApiToken.objects.update(expires_at=datetime.now(UTC))
    elif how == "revoked":
        assert (tokens.revoke(ApiToken.objects.all()), tokens.revoke(ApiToken.objects.all())) == (1, 0)
    elif how == "deleted":
        user.delete()
    else:
        User.objects.update(**{"is_active" if how == "inactive" else "is_staff": False})
    answer = ask("/api/runs", token)
    assert answer.status_code == 401
    word = {"expired": "expired", "revoked": "revoked", "inactive": "deactivated", "no staff": "staff", "deleted": "unknown"}[how]
    assert word in answer.json()["message"]
    # Who guesses is counted; whose token has ended is not, or a forgotten job would lock out its owner.
    assert AccessAttempt.objects.exists() == (how == "deleted")


def test_an_operation_needs_its_scope_and_no_other_will_do(user: User) -> None:
    run = TestRunFactory()
    needed = {
        ("GET", "/api/runs"): "read",
        ("GET", f"/api/runs/{run.pk}"): "read",
        ("GET", f"/api/runs/{run.pk}/log"): "read",
        ("GET", "/api/recipes"): "read",
        ("GET", f"/api/recipes/{run.repository_id}/tests"): "read",
        ("GET", "/api/deferred"): "read",
        ("GET", "/api/infra/apps"): "infra",
        ("GET", "/api/infra/apps/1"): "infra",
        ("GET", "/api/infra/upgrades"): "infra",
        ("POST", "/api/runs"): "run",
        ("POST", f"/api/runs/{run.pk}/again"): "run",
        ("POST", f"/api/runs/{run.pk}/cancel"): "run",
        ("POST", f"/api/runs/{run.pk}/approve"): "approve",
    }
    assert len(needed) == sum(len(methods) for methods in api.description()["paths"].values())
    for (method, path), scope in needed.items():
        answer = ask(path, made(user, *(other for other in ALL if other != scope)), method)
        assert answer.status_code == 403 and f"lacks the scope {scope}" in answer.json()["message"], path
    assert TestRun.objects.count() == 1
    assert ask("/api/runs", made(user, "nonsense")).status_code == 403


# --- limits


def test_more_than_so_many_requests_a_minute_have_to_wait(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "api_requests_per_minute", 3)
    token, other = made(user), made(user)
    with time_machine.travel(THEN, tick=False) as clock:
        assert [ask("/api/runs", token).status_code for _ in range(3)] == [200] * 3
        clock.shift(20)
        answer = ask("/api/runs", token)
        assert answer.status_code == 429 and answer["Retry-After"] == "40" and "in 40 s" in answer.json()["message"]
        assert ask("/api/runs", other).status_code == 200
        clock.shift(40)
        assert [ask("/api/runs", token).status_code for _ in range(4)] == [200] * 3 + [429]
        ApiToken.objects.update(minute_at=THEN + timedelta(days=1))  # by a host whose clock was wrong
        assert ask("/api/runs", token).status_code == 200


def test_guessing_is_slowed_down_as_wrong_passwords_are(user: User) -> None:
    token, wrong = made(user), WRONG[3]
    statuses = [ask("/api/runs", wrong).status_code for _ in range(settings.AXES_FAILURE_LIMIT)]
    assert statuses == [401] * settings.AXES_FAILURE_LIMIT
    answer = ask("/api/runs", token)
    assert answer.status_code == 429 and 0 < int(answer["Retry-After"]) <= settings.AXES_COOLOFF_TIME.total_seconds() + 1
    assert ask("/api/runs", token, REMOTE_ADDR="198.51.100.9").status_code == 200
    AccessAttempt.objects.all().delete()
    assert ask("/api/runs", token).status_code == 200


def test_where_all_come_from_one_address_guessing_locks_out_nobody_else(user: User) -> None:
    token, other = made(user), made(user)
    for guess in (WRONG[3], token[:-1] + ("A" if token[-1] != "A" else "B")):
        for _ in range(settings.AXES_FAILURE_LIMIT):
            ask("/api/runs", guess, REMOTE_ADDR="127.0.0.1")
        assert ask("/api/runs", guess, REMOTE_ADDR="127.0.0.1").status_code == 429
    assert ask("/api/runs", other, REMOTE_ADDR="127.0.0.1").status_code == 200
    assert ask("/api/runs", token, REMOTE_ADDR="127.0.0.1").status_code == 429


# --- what is sent


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "application/json", 422),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"null", "application/json", 422),
        (b"[]", "application/json", 422),
        (b'"x"', "application/json", 422),
        (b"[" * 15_000, "application/json", 400),
        (b"1" * 10_000, "application/json", 400),
        (b'{"repository": "a/b", "extra": 1}', "application/json", 422),
        (b'{"repository": "a\\u0000/b"}', "application/json", 422),
        (b'{"repository": "a/\\ud800"}', "application/json", 422),
        (b'{"repository": "a/b", "forge": "\\u0000"}', "application/json", 422),
        (b'{"repository": "a/b", "forge": "\\ud800"}', "application/json", 422),
        (b'{"repository": "a/b", "sha": "HEAD"}', "application/json", 422),
        (b'{"repository": "a/b\\n"}', "application/json", 422),
        (b'{"repository": {"a": NaN}}', "application/json", 422),
        (b'{"repository": "a/b"}', "application/json; charset=rot13", 404),
        (b'{"repository": "a/b"}', "text/plain", 415),
        (b"repository=a/b", "application/x-www-form-urlencoded", 415),
        (b"x", "multipart/form-data", 415),
        (b" " * (api.BODY_BYTES + 1), "application/json", 413),
        (b" " * 3_000_000, "application/json", 413),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_body_that_is_wrong_gets_words(user: User, body: bytes, kind: str, status: int) -> None:
    token = made(user)
    answer = ask("/api/runs", token, "POST", body, content_type=kind)
    assert answer.status_code == status and answer.json()["message"]
    assert ask("/api/runs", "", "POST", body, content_type=kind).status_code in (401, 413, 415)


def test_an_address_that_is_nobodys_and_a_method_that_is_not_taken(user: User) -> None:
    token = made(user)
    for path in ("/api/nowhere", "/api/runs/", "/api/runs/x/y/z", "/api/%00", "/api/runs%00", "/api/openapi.json", "/api/docs"):
        for method in ("GET", "POST", "DELETE"):
            assert ask(path, token, method).status_code == 404
    for method in ("PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "NONSENSE"):
        answer = browser().generic(method, "/api/runs", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 405 and {*answer["Allow"].split(", ")} == {"GET", "POST"}
    assert b"This address takes" in browser().put("/api/runs").content


@pytest.mark.parametrize("odd", ["%00", "a%00b", "%ff", "%ED%A0%80", "x" * 3000, "9" * 40, "-1", "1e9", "", "[]"])
def test_odd_text_anywhere_is_no_fault_of_ours(user: User, odd: str) -> None:
    token, run = made(user), TestRunFactory()
    for path, methods in api.description()["paths"].items():
        row = "1" if "infra" in path else str(run.repository_id)
        plain = path.replace("{run_id}", str(run.pk)).replace("{recipe_id}", row).replace("{app_id}", row)
        paths = [
            f"{plain}?{name}={odd}" for name in ("limit", "cursor", "state", "repository", "recipe", "stage", "name", "app", odd)
        ]
        if "{" in path and odd:
            paths.append(path.replace(path[path.index("{") : path.index("}") + 1], odd))
        for one in paths:
            for method in methods:
                assert ask(one, token, method.upper()).status_code < 500


def test_a_guess_at_an_odd_address_counts_and_is_no_fault_of_ours(user: User) -> None:
    assert ask("/api/runs/%00", WRONG[3]).status_code == 404
    assert ask(f"/api/runs?{'a&' * 1100}", WRONG[3]).status_code == 400
    assert not AccessAttempt.objects.exists()  # neither says whether the token is right
    assert ask("/api/runs/%0A", WRONG[3]).status_code == 401 and AccessAttempt.objects.exists()


def test_a_fault_of_ours_tells_nothing(user: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("runs.api.visible_runs", lambda request: 1 / 0)
    answer = browser().get("/api/runs", headers={"authorization": f"Bearer {made(user)}"})
    assert answer.status_code == 500 and answer.json() == {"message": "cc-ci failed to answer; its log says why."}
    assert "ZeroDivisionError" in caplog.text


# --- pages


def test_the_pages_of_a_listing_are_all_rows_once_and_newest_first(user: User) -> None:
    token = made(user)
    same = datetime(2026, 11, 1, tzinfo=UTC)
    rows = [TestRunFactory(created_at=same + timedelta(seconds=number // 3)) for number in range(8)]
    expected = [str(run.pk) for run in sorted(rows, key=lambda run: (run.created_at, run.pk), reverse=True)]
    for limit in (1, 2, 3, 7, 8, 100):
        seen, cursor = [], ""
        while True:
            page = ask(f"/api/runs?limit={limit}&cursor={cursor}", token).json()
            assert len(page["items"]) <= limit
            seen += [run["id"] for run in page["items"]]
            cursor = page["next"]
            if not cursor:
                break
            TestRunFactory()  # what comes meanwhile is above, and moves nothing
        TestRun.objects.exclude(pk__in=[run.pk for run in rows]).delete()
        assert seen == expected


def test_only_our_cursors_of_the_same_listing_are_taken(user: User) -> None:
    token = made(user)
    for _ in range(2):
        TestRunFactory()
    cursor = ask("/api/runs?limit=1", token).json()["next"]
    first = ask("/api/recipes?limit=1", token).json()["next"]
    assert ask(f"/api/runs?cursor={cursor}", token).status_code == 200
    forged = [first, cursor[:-1], cursor + "A", cursor.partition(":")[0], "WzFd", "WzFd:x", "0", ":", "%3A", "null"]
    for wrong in forged:
        answer = ask(f"/api/runs?cursor={wrong}", token)
        assert answer.status_code == 404 and "no such page" in answer.json()["message"], wrong
    unknown = ask("/api/runs?stat=passed", token)
    assert unknown.status_code == 422 and "'stat' is not a parameter. Parameters: state, active" in unknown.json()["message"]
    for limit in ("0", "-1", "101", "9" * 30, "x", "1.5", "NaN"):
        assert ask(f"/api/runs?limit={limit}", token).status_code == 422


def test_the_queries_of_a_listing_are_the_same_however_many_rows_there_are(user: User) -> None:
    token = made(user)
    paths = ["/api/runs", "/api/recipes", "/api/deferred", "/api/infra/apps", "/api/infra/upgrades"]
    counts = []
    for _ in range(2):
        for _ in range(3):
            TestRunFactory(passed=True)
        for path in paths:
            ask(path, token)
        with CaptureQueriesContext(connection) as queries:
            for path in paths:
                ask(path, token)
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 6 * len(paths)


# --- its description


def test_programs_get_openapi_and_browsers_a_page_that_loads_nothing_from_elsewhere() -> None:
    for accept in ("*/*", "application/json", ""):
        answer = browser().get("/api/", headers={"accept": accept} if accept else {})
        assert answer.json()["openapi"].startswith("3.") and "/api/runs" in answer.json()["paths"]
    chrome = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    page = browser().get("/api/", headers=chrome)
    text = page.content.decode()
    assert "GET /api/runs/{run_id}/log" in text and "//cdn" not in text
    assert all(source.startswith("/static/") for source in re.findall(r"<script[^>]*src=.([^\"']*)", text))
    assert "default-src 'none'" in page["Content-Security-Policy"]
    assert "openapi" in browser().get("/api/?format=json", headers=chrome).json()
    assert browser().post("/api/").status_code == 405


# --- made and revoked


def test_the_command_makes_lists_and_revokes(user: User, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("token", "add", "alice", "night job", "--scope", "read", "--scope", "run", "--days", "3")
    token = capsys.readouterr().out.strip()
    row = ApiToken.objects.get()
    assert row.scopes == ["read", "run"] and timedelta(days=2) < row.expires_at - datetime.now(UTC) <= timedelta(days=3)
    assert ask("/api/runs", token).status_code == 200
    call_command("token", "list")
    shown = capsys.readouterr().out
    assert f"{row.key}  alice  night job  read,run  valid" in shown and token[18:] not in shown
    call_command("token", "revoke", row.key)
    assert ask("/api/runs", token).status_code == 401
    User.objects.create_user("bob")
    for words in (["add", "bob", "x", "--scope", "read"], ["add", "nobody", "x", "--scope", "read"], ["revoke", "nothing"]):
        with pytest.raises(CommandError):
            call_command("token", *words)
    for days in ("0", "99999"):
        with pytest.raises(CommandError):
            call_command("token", "add", "alice", "x", "--scope", "read", "--days", days)


def test_in_the_admin_people_make_tokens_of_their_own_and_see_them_once(user: User) -> None:
    eve = User.objects.create_user("eve", is_staff=True)
    rights = Permission.objects.filter(content_type__app_label="controlplane", codename__endswith="_apitoken")
    eve.user_permissions.add(*rights)
    others = tokens.make(user, "alice's", ALL)[0]
    listing = reverse("admin:controlplane_apitoken_changelist")
    browser().force_login(eve)
    form = {"name": "mine", "scopes": ["read"], "days": "5", "user": user.pk}
    answer = browser().post(reverse("admin:controlplane_apitoken_add"), form)
    assert answer.status_code == 200 and "no-store" in answer["Cache-Control"]
    token = answer.content.decode().partition("<pre><code>")[2].partition("<")[0]
    row = ApiToken.objects.get(name="mine")
    assert row.user == eve and row.scopes == ["read"] and row.key in token
    page = browser().get(listing)
    assert "mine" in page.content.decode() and "alice&#x27;s" not in page.content.decode() and token not in page.content.decode()
    assert browser().get(reverse("admin:controlplane_apitoken_change", args=[others.pk])).status_code == 302
    shown = browser().get(reverse("admin:controlplane_apitoken_change", args=[row.pk])).content.decode()
    assert row.key in shown and row.digest not in shown
    browser().post(listing, {"action": "revoke", "_selected_action": [row.pk, others.pk], "sure": "yes"})
    assert ask("/api/runs", token).status_code == 401
    others.refresh_from_db()
    assert others.revoked_at is None
    for wrong in (
        {"scopes": ["root"]},
        {"scopes": []},
        {"days": "0"},
        {"days": "100000"},
        {"name": ""},
        {"name": "a\x1b]0;b"},
        {"name": "a\nb"},
    ):
        browser().force_login(eve)
        assert "error" in browser().post(reverse("admin:controlplane_apitoken_add"), form | wrong).content.decode()
    assert ApiToken.objects.count() == 2
    browser().cookies.clear()
