"""Logging in with a forge: who comes in as whom, for how long, and what of it a stranger can turn to their use."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
from axes.models import AccessAttempt
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from controlplane import logins
from enrollment import removal
from enrollment.fakeforge.faults import Fault, FaultPlan
from enrollment.models import Forge, ForgeAccount
from enrollment.repositories import add_forge
from tests.signing_in import consent, log_in, offer_logins, to_the_forge
from tests.world import World

pytestmark = pytest.mark.slow(4)

EXCHANGE = "/login/oauth/access_token"


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A forge with people, and no repositories: these tests need none."""
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path)
    world.connect()
    yield world
    world.close()


@pytest.fixture(autouse=True)
def offered(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(settings.CC_CI, "base_url", "http://testserver")
    offer_logins(world)
    yield
    cache.clear()


def back_to(world: World, query: str = "") -> str:
    return f"{reverse('forge-login-back', args=[world.forge.pk])}{query}"


def is_in(browser: Client) -> bool:
    return "Log out" in browser.get("/").content.decode()


def exchanged(body: bytes | str, status: int = 200) -> FaultPlan:
    """Let the forge answer so when a code is exchanged."""
    return lambda request: Fault(status, body) if request.path == EXCHANGE else None


def test_a_person_logs_in_and_comes_back_to_the_page(world: World) -> None:
    browser = log_in(world, "alice", then="/runs/?state=failed")
    account = ForgeAccount.objects.get()
    assert (account.forge, account.forge_user_id, account.login) == (world.forge, world.alice.id, "alice")
    user = account.user
    assert not (user.is_staff or user.is_superuser or user.has_usable_password() or user.groups.exists() or user.email)
    assert "alice" in browser.get("/").content.decode()
    (exchanged,) = [request for request in world.remote.requests if request.path == EXCHANGE]
    assert b"code_verifier" in exchanged.body
    log_in(world, "alice")
    assert ForgeAccount.objects.count() == 1


def test_the_login_page_offers_what_is_set_up_and_switched_on(world: World) -> None:
    text = Client().get("/login/?next=/runs/").content.decode()
    assert "Log in with sandbox" in text and 'name="next" value="/runs/"' in text and "Password" in text
    for change in ({"oauth_client_id": ""}, {"oauth_client_secret": ""}, {"enabled": False}):
        kept = {name: getattr(world.forge, name) for name in change}
        Forge.objects.filter(pk=world.forge.pk).update(**change)
        assert "Log in with sandbox" not in Client().get("/login/").content.decode()
        assert Client().post(reverse("forge-login", args=[world.forge.pk])).status_code == 404
        assert Client().get(back_to(world, "?code=x&state=y")).status_code == 404
        Forge.objects.filter(pk=world.forge.pk).update(**kept)


def test_without_public_pages_one_can_still_log_in(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "public", False)
    assert Client().get("/runs/")["Location"] == "/login/?next=/runs/"
    assert log_in(world, "alice", then="/runs/").get("/runs/").status_code == 200


ELSEWHERE = ("https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)", "\thttps://evil.example")


def test_no_login_leads_elsewhere(world: World) -> None:
    User.objects.create_user("operator", password="secret")
    for asked in (*ELSEWHERE, "/" * 1001):
        browser = Client()
        assert browser.get(consent(world, to_the_forge(browser, world, asked), "alice"))["Location"] == "/", asked
    for asked in ELSEWHERE:
        form = {"username": "operator", "password": "secret", "next": asked}
        assert Client().post("/login/", form)["Location"] == "/", asked


def test_a_login_is_begun_by_our_own_form_only(world: World) -> None:
    assert Client(enforce_csrf_checks=True).post(reverse("forge-login", args=[world.forge.pk])).status_code == 403
    assert Client().get(reverse("forge-login", args=[world.forge.pk])).status_code == 405


def test_the_request_has_a_state_and_a_challenge(world: World) -> None:
    first, second = (dict(parse_qsl(urlsplit(to_the_forge(Client(), world)).query)) for _ in range(2))
    assert first["code_challenge_method"] == "S256" and first["response_type"] == "code"
    assert first["redirect_uri"] == f"http://testserver{back_to(world)}" and first["scope"] == "read:user read:repository"
    for name in ("state", "code_challenge"):
        assert len(first[name]) >= 43 and first[name] != second[name]


def test_a_code_is_of_use_only_in_the_browser_that_asked_for_it(world: World) -> None:
    """Login CSRF: mallory sends alice the address that logs in as mallory. And a code that was stolen."""
    back = consent(world, to_the_forge(Client(), world), "mallory")
    nobody = Client()
    assert nobody.get(back).status_code == 403 and not is_in(nobody)
    victim = Client()
    to_the_forge(victim, world)  # has begun a login of her own
    assert victim.get(back).status_code == 403 and not is_in(victim)
    mine = consent(world, to_the_forge(victim, world), "alice")
    state = parse_qs(urlsplit(mine).query)["state"][0]
    for wrong in ("", f"&state={state[:-1]}"):
        to_the_forge(victim, world)
        answer = victim.get(mine.replace(f"&state={state}", wrong))
        assert answer.status_code == 403 and "does not belong" in answer.content.decode()
    # Even with her own state, it is not the code of her challenge.
    theirs = parse_qs(urlsplit(back).query)["code"][0]
    mine = parse_qs(urlsplit(to_the_forge(victim, world)).query)["state"][0]
    answer = victim.get(back_to(world, f"?{urlencode({'code': theirs, 'state': mine})}"))
    assert answer.status_code == 403 and not is_in(victim)
    assert not ForgeAccount.objects.exists()


def test_an_answer_counts_once_and_not_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = Client()
    back = consent(world, to_the_forge(browser, world), "alice")
    assert browser.get(back).status_code == 302
    assert browser.get(back).status_code == 403, "the attempt is over"
    late = Client()
    back = consent(world, to_the_forge(late, world), "alice")
    now = time.time()
    monkeypatch.setattr("django.core.signing.time.time", lambda: now + 601)
    assert late.get(back).status_code == 403


def test_an_attempt_that_somebody_wrote_themselves_is_none(world: World) -> None:
    browser = Client()
    browser.cookies["forge_login"] = "eyJmb3JnZSI6MX0:1tabcd:AAAA"
    assert browser.get(back_to(world, "?code=x&state=")).status_code == 403
    assert not [request for request in world.remote.requests if request.path == EXCHANGE]


def test_the_answer_of_one_forge_is_not_taken_for_another(world: World) -> None:
    other, _ = add_forge(world.server.url.replace("127.0.0.1", "localhost"), world.token, "other")
    other.oauth_client_id, other.oauth_client_secret = world.forge.oauth_client_id, "x"
    other.save()
    browser = Client()
    back = consent(world, to_the_forge(browser, world), "alice")
    moved = back.replace(back_to(world), reverse("forge-login-back", args=[other.pk]))
    assert browser.get(moved).status_code == 403 and not is_in(browser)
    assert EXCHANGE not in [request.path for request in world.remote.requests]


def test_who_refuses_at_the_forge_is_told_so(world: World) -> None:
    browser = Client()
    state = parse_qs(urlsplit(to_the_forge(browser, world)).query)["state"][0]
    answer = browser.get(back_to(world, f"?error=access_denied&state={state}"))
    assert answer.status_code == 403 and "You did not allow it" in answer.content.decode()


def test_an_answer_that_is_not_a_documented_one_logs_nobody_in(world: World) -> None:
    for status, body in (
        (200, "not json"),
        (200, "[]"),
        (200, "{}"),
        (200, '{"error": "server_error"}'),
        (200, '{"access_token": 7, "token_type": "bearer"}'),
        (200, '{"access_token": "", "token_type": "bearer"}'),
        (200, '{"access_token": "abc", "token_type": "mac"}'),
        (200, '{"access_token": "a b\\r\\nX: y", "token_type": "bearer"}'),
        (200, '{"access_token": "unknown", "token_type": "bearer"}'),
        (204, ""),
        (302, ""),
        (400, '{"error": "invalid_client", "error_description": "no"}'),
        (400, "<html>"),
        (401, '{"message": "no"}'),
        (500, ""),
        (503, "down"),
    ):
        AccessAttempt.objects.all().delete()
        browser = Client()
        back = consent(world, to_the_forge(browser, world), "alice")
        world.remote.faults = exchanged(body, status)
        answer = browser.get(back)
        assert answer.status_code in (403, 503) and not is_in(browser), (status, body)
        assert "abc" not in answer.content.decode() and not ForgeAccount.objects.exists()


def test_a_token_that_is_no_token_by_its_size_is_not_kept(world: World) -> None:
    """Each request reads the session that it would be in."""
    somebody = Fault(200, f'{{"id": {world.alice.id}, "login": "alice"}}')
    for size, comes_in in ((4096, True), (4097, False)):
        browser = Client()
        back = consent(world, to_the_forge(browser, world), "alice")
        body = json.dumps({"access_token": "a" * size, "token_type": "bearer"})
        world.remote.faults = lambda request, body=body: somebody if request.path == "/api/v1/user" else exchanged(body)(request)
        browser.get(back)
        assert is_in(browser) is comes_in, size


def test_nobody_comes_in_as_nobody(world: World) -> None:
    for who in (
        '{"id": -1, "login": "Ghost"}',
        '{"id": true, "login": "alice"}',
        '{"login": "alice"}',
        '{"id": 0, "login": "alice"}',
        '{"id": 3, "login": ""}',
    ):
        browser = Client()
        back = consent(world, to_the_forge(browser, world), "alice")
        world.remote.faults = lambda request, who=who: Fault(body=who) if request.path == "/api/v1/user" else None
        assert browser.get(back).status_code in (403, 503) and not is_in(browser), who


def test_a_login_lasts_as_long_as_its_token_at_most(world: World) -> None:
    for said, seconds in ((60, 60), (10**9, 12 * 3600), (-5, 3600), ("soon", 3600), (True, 3600), (None, 3600)):
        token = world.remote.add_token(world.alice)
        browser = Client()
        back = consent(world, to_the_forge(browser, world), "alice")
        world.remote.faults = exchanged(json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": said}))
        begun = timezone.now()
        browser.get(back)
        until = browser.session.get_expiry_date()
        assert begun + timedelta(seconds=seconds) <= until <= timezone.now() + timedelta(seconds=seconds), said


def test_tokens_are_kept_encrypted_in_the_session_alone_and_end_with_it(world: World) -> None:
    browser = log_in(world, "alice")
    kept = browser.session["forge_login"]
    granted = [row for row in world.remote.tables.tokens.values() if row.user_id == world.alice.id]
    assert len(granted) == 1 and set(kept) == {"account", "url", "token"}
    assert world.remote.token(kept["token"]) is None, "it is the token itself"
    browser.post(reverse("logout"))
    assert not Session.objects.exists() and not is_in(browser)


def test_a_session_from_before_is_not_the_one_after(world: World) -> None:
    browser = Client()
    browser.get("/login/")
    session = browser.session
    session["planted"] = "yes"
    session.save()
    browser.cookies[settings.SESSION_COOKIE_NAME] = planted = session.session_key
    browser.get(consent(world, to_the_forge(browser, world), "alice"))
    assert browser.session.session_key != planted and not Session.objects.filter(pk=planted).exists()


def test_an_operator_who_logs_in_with_a_forge_is_an_operator_no_longer(world: World) -> None:
    browser = Client()
    browser.force_login(User.objects.create_superuser("root"))
    browser.get(consent(world, to_the_forge(browser, world), "root"))
    assert browser.get(reverse("admin:index")).status_code == 302, "the forge's root is nobody here"
    assert browser.get("/infra/").status_code in (302, 403, 404)


def test_an_account_here_is_not_taken_over_by_its_name_or_address(world: World) -> None:
    operator = User.objects.create_superuser("alice", "alice@example.org", "secret")
    local = User.objects.create_user(f"alice-{world.forge.pk}")
    log_in(world, "alice")
    account = ForgeAccount.objects.get()
    assert account.user not in (operator, local) and not account.user.is_staff
    browser = Client()
    for password in ("", "!", account.user.password):
        browser.post("/login/", {"username": account.user.username, "password": password})
    assert not is_in(browser)


def test_a_name_that_changed_hands_is_another_person(world: World) -> None:
    log_in(world, "alice")
    before = ForgeAccount.objects.get(login="alice")
    world.remote.rename_user("alice", "alice-was-here")
    world.remote.rename_user("mallory", "alice")
    log_in(world, "alice")
    log_in(world, "alice-was-here")
    before.refresh_from_db()
    assert before.login == "alice-was-here" and before.user.get_short_name() != "alice"
    User.objects.get(pk=before.user_id, first_name="alice-was-here")
    assert ForgeAccount.objects.get(login="alice").user != before.user


def test_a_forge_opens_no_account_with_more_rights_or_none(world: World) -> None:
    browser = log_in(world, "alice")
    user = User.objects.filter(pk=ForgeAccount.objects.get().user_id)
    for change in ({"is_staff": True}, {"is_superuser": True}, {"is_active": False}):
        assert is_in(browser)
        user.update(**change)
        nobody = Client()
        nobody.cookies[settings.SESSION_COOKIE_NAME] = browser.cookies[settings.SESSION_COOKIE_NAME].value
        assert not is_in(nobody), "the session that was there"
        again = Client()
        assert again.get(consent(world, to_the_forge(again, world), "alice")).status_code == 403
        assert not is_in(again)
        user.update(is_staff=False, is_superuser=False, is_active=True)
        browser = log_in(world, "alice")


def test_no_login_makes_an_operator(world: World) -> None:
    browser = log_in(world, "alice")
    user = ForgeAccount.objects.get().user
    user.groups.add(Group.objects.get(name="operator"))  # without "staff", its permissions open no page of operators
    for page in (reverse("admin:index"), reverse("admin:enrollment_forge_change", args=[world.forge.pk]), "/infra/"):
        answer = browser.get(page)
        assert answer.status_code in (302, 403, 404), page


def test_guessing_is_slowed_down_and_costs_the_forge_little(world: World) -> None:
    browser = Client()
    for _ in range(settings.AXES_FAILURE_LIMIT):
        state = parse_qs(urlsplit(to_the_forge(browser, world)).query)["state"][0]
        assert browser.get(back_to(world, f"?code=guess&state={state}")).status_code == 403
    asked = len(world.remote.requests)
    answer = browser.post(reverse("forge-login", args=[world.forge.pk]))
    assert answer.status_code == 429 and int(answer["Retry-After"]) > 0
    assert len(world.remote.requests) == asked
    assert logins.locked()


def test_a_forge_that_is_down_says_so_and_is_not_asked_for_ever(world: World) -> None:
    browser = Client()
    back = consent(world, to_the_forge(browser, world), "alice")
    world.remote.faults = lambda request: Fault(429, headers={"Retry-After": "3600"}) if request.path == EXCHANGE else None
    assert browser.get(back).status_code == 503
    world.remote.faults = None
    assert world.client().whoami().id == world.bot.id, "what the forge told a stranger holds up nobody else"


def test_neither_code_nor_token_gets_into_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    browser = Client()
    back = consent(world, to_the_forge(browser, world), "alice")
    code = parse_qs(urlsplit(back).query)["code"][0]
    token = world.remote.add_token(world.alice)
    world.remote.faults = exchanged(f'{{"access_token": "{token}", "token_type": "bearer"}}')
    browser.get(back)
    world.remote.faults = exchanged(f'{{"access_token": "{token}", "token_type": "other"}}')
    browser.get(consent(world, to_the_forge(browser, world), "alice"))
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("urllib3"))
    assert "Login: alice" in ours and code not in ours and token not in ours


# --- set up


def test_the_command_says_what_to_enter_and_sets_it(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Forge.objects.update(oauth_client_id="", oauth_client_secret="")
    call_command("forge", "login")
    assert f"http://testserver{back_to(world)}" in capsys.readouterr().out
    with pytest.raises(CommandError):
        call_command("forge", "login", client_id="abc")
    monkeypatch.setenv("THE_SECRET", "hush")
    call_command("forge", "login", client_id="abc", client_secret_env="THE_SECRET")
    assert "People can log in with sandbox" in capsys.readouterr().out
    forge = Forge.objects.get()
    assert forge.oauth_client_id == "abc" and forge.oauth_client_secret.reveal() == "hush"
    call_command("forge", "login", off=True)
    assert Forge.objects.get().oauth_client_id == ""


def test_the_admin_says_what_to_enter_and_never_shows_the_secret(world: World, client: Client) -> None:
    client.force_login(User.objects.create_superuser("operator"))
    Forge.objects.update(oauth_client_secret="hush-hush")
    page = reverse("admin:enrollment_forge_change", args=[world.forge.pk])
    text = client.get(page).content.decode()
    assert f"http://testserver{back_to(world)}" in text and "hush-hush" not in text
    form = {"name": "sandbox", "url": world.server.url, "enabled": "on", "oauth_client_id": "new", "watched_owners": ""}
    form |= {"allow": "", "block": ""}
    assert client.post(page, form).status_code == 302
    forge = Forge.objects.get()
    assert forge.oauth_client_id == "new" and forge.oauth_client_secret.reveal() == "hush-hush"
    answer = client.post(page, {**form, "url": world.server.url.replace("127.0.0.1", "localhost"), "token": world.token})
    assert "enter the client secret again" in answer.content.decode()


def test_the_roles_are_made_by_migrate() -> None:
    permissions = {
        group.name: {f"{row.content_type.app_label}.{row.codename}" for row in group.permissions.select_related("content_type")}
        for group in Group.objects.all()
    }
    assert set(permissions) == {"viewer", "maintainer", "operator"}
    viewer, maintainer, operator = (permissions[name] for name in ("viewer", "maintainer", "operator"))
    assert maintainer - viewer == {"runs.add_testrun"} and maintainer < operator
    assert {name.partition(".")[2].partition("_")[0] for name in viewer} == {"view"}
    assert {"infra.change_infraapp", "enrollment.change_forge"} <= operator and "auth.change_user" not in operator


def test_accounts_go_with_their_forge(world: World) -> None:
    log_in(world, "alice")
    removal.begin(world.forge)
    removal.step()
    assert not Forge.objects.exists() and not User.objects.filter(first_name="alice").exists()
