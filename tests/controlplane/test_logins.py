"""Password guessing: slowed down, logged, and nobody is locked out for good or by others."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
import time_machine
from axes.models import AccessAttempt
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client, RequestFactory
from django.urls import reverse

from controlplane import doctor, logins

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]

HERE, THERE = "203.0.113.7", "198.51.100.9"
MOST, WAIT = settings.AXES_FAILURE_LIMIT, settings.AXES_COOLOFF_TIME
THEN = datetime(2026, 11, 23, 20, 46, tzinfo=UTC)


@pytest.fixture(autouse=True)
def people() -> None:
    for name in ("alice", "bob"):
        User.objects.create_superuser(name, password="right")


@cache
def browser() -> Client:
    """One for all: each new one reads the whole folder of static files."""
    return Client()


def post(name: str = "alice", password: str = "wrong", address: str = HERE, agent: str = "x", forwarded: str = "") -> Any:
    headers = {"user-agent": agent, **({"x-forwarded-for": forwarded} if forwarded else {})}
    browser().cookies.clear()
    form = {"username": name, "password": password}
    return browser().post(reverse("admin:login"), form, headers=headers, REMOTE_ADDR=address)


def log_in(**given: str) -> int:
    """The answer's status: 200 is the form again, 302 is in."""
    return int(post(**given).status_code)


def guess(times: int = MOST, **given: str) -> list[int]:
    return [log_in(**given) for _ in range(times)]


def test_after_some_wrong_ones_the_right_one_does_not_help_until_the_time_is_over() -> None:
    with time_machine.travel(THEN, tick=False) as clock:
        assert guess() == [200] * (MOST - 1) + [429]
        assert log_in(password="right") == 429
        clock.shift(WAIT - timedelta(seconds=1))
        assert log_in(password="right") == 429, "and trying meanwhile did not make it longer"
        clock.shift(timedelta(seconds=2))
        assert log_in(password="right") == 302
        assert log_in() == 200, "what was before counts no more"


def test_the_page_says_how_long() -> None:
    with time_machine.travel(THEN, tick=False) as clock:
        guess()
        clock.shift(timedelta(minutes=5))
        answer = post(password="right")
        text = answer.content.decode()
        assert answer.status_code == 429 and 600 <= int(answer["Retry-After"]) <= 602
        assert "Too many failed logins" in text and "Wait 11 minutes, until 23 Nov 2026, 21:01:00 UTC" in text
        clock.shift(timedelta(minutes=9, seconds=30))
        text = post().content.decode()
        assert "Wait 1 minute, until" in text


def test_others_are_not_shut_out_and_other_names_and_browsers_are_no_way_around() -> None:
    guess(MOST - 2)
    log_in(name="bob", agent="another")
    assert log_in(name="nobody", agent="a third") == 429
    assert log_in(name="bob", password="right", agent="a fourth") == 429
    assert log_in(password="right", address=THERE) == 302
    assert log_in(password="right", forwarded="8.8.8.8") == 429, "nobody believes that"


def test_a_name_that_is_longer_than_any_is_a_wrong_one_like_others() -> None:
    assert guess(name="x" * 300) == [200] * (MOST - 1) + [429]


def test_ones_own_account_buys_no_more_guesses() -> None:
    for _ in range(MOST - 1):
        assert log_in() == 200
        assert log_in(name="bob", password="right") == 302
    assert log_in() == 429


@pytest.mark.parametrize(
    ("address", "base_url", "proxies"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000", []),
        (HERE, "https://ci.example.org", []),  # of the proxy, which is not named
        ("10.0.0.1", "https://ci.example.org", ["10.0.0.0/8"]),  # a proxy that does not tell
    ],
)
def test_where_all_seem_to_come_from_one_place_only_one_name_is_locked(
    monkeypatch: pytest.MonkeyPatch, address: str, base_url: str, proxies: list[str]
) -> None:
    monkeypatch.setattr(settings.CC_CI, "base_url", base_url)
    monkeypatch.setattr(settings.CC_CI, "proxies", proxies)
    assert guess(address=address)[-1] == 429
    assert log_in(password="right", address=address) == 429
    assert log_in(name="bob", password="right", address=address) == 302
    assert [str(one) for one in logins.locked()] == [f"alice from {address}"]


def test_behind_a_proxy_that_is_named_each_has_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "proxies", ["10.0.0.0/8"])
    for number in range(MOST):  # what the client says of itself is before what the proxy says
        status = log_in(address="10.0.0.1", forwarded=f"8.8.8.{number}, {HERE}")
    assert status == 429
    assert log_in(name="bob", password="right", address="10.0.0.2", forwarded=HERE) == 429
    assert log_in(password="right", address="10.0.0.1", forwarded=THERE) == 302


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::"),
        ("192.0.2.1", "192.0.2.1"),
        ("", None),
        ("unix:", None),
    ],
)
def test_which_address_counts(address: str, counted: str | None) -> None:
    assert logins.client_address(RequestFactory().get("/", REMOTE_ADDR=address)) == counted


def test_one_network_of_version_six_is_one_person() -> None:
    for number in range(MOST):
        status = log_in(address=f"2001:db8:1:2::{number:x}")
    assert status == 429 and log_in(password="right", address="2001:db8:1:2:ffff::1") == 429
    assert log_in(password="right", address="2001:db8:1:3::1") == 302


def test_doctor_and_the_admin_show_who_waits_and_let_them_in(client: Client) -> None:
    assert [finding.level for finding in doctor.check_logins()] == ["ok"]
    with time_machine.travel(THEN, tick=False):
        guess()
        (finding,) = doctor.check_logins()
        assert (finding.level, finding.fix) == ("warning", f"cc-ci axes_reset_ip {HERE}")
        assert finding.text == f"{HERE} is locked out until 21:01:00 UTC after {MOST} failed logins"
        client.force_login(User.objects.get(username="bob"))
        page = reverse("admin:controlplane_failedlogin_changelist")
        text = client.get(page).content.decode()
        assert HERE in text and "until 21:01:00 UTC" in text
        row = AccessAttempt.objects.get()
        assert "right" not in row.post_data and "wrong" not in row.post_data.replace("password=****", "")
        client.post(page, {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"})
        assert log_in(password="right") == 302


def test_the_commands_of_the_doctor_are_there() -> None:
    from django.core.management import call_command

    guess()
    call_command("axes_reset_ip", HERE, verbosity=0)
    assert log_in(password="right") == 302


def test_it_is_in_the_log_in_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "controlplane.logins")
    log_in(name="eve\n2026-01-01 00:00:00 INFO Login: root from 10.0.0.1")
    log_in(password="right")
    guess()
    log_in()
    said = [record.getMessage() for record in caplog.records if record.name == "controlplane.logins"]
    assert said[0].startswith("Failed login: eve 2026-01-01") and all("\n" not in line for line in said)
    assert said[1] == f"Login: alice from {HERE}"
    assert said[2] == f"Failed login: alice from {HERE}"
    assert said[-1] == f"Too many failed logins, locked out: alice from {HERE}"
    assert "wrong" not in said[2].lower()


def test_a_login_that_fails_says_so_once_and_keeps_the_name(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    answer = client.post("/admin/login/?next=/admin/", {"username": 'bob"<b>', "password": "wrong"})
    text = " ".join(answer.content.decode().split())
    assert answer.status_code == 200
    assert text.count("Please") == 1 and "Please enter the correct username" in text
    assert 'value="bob&quot;&lt;b&gt;"' in text and "wrong" not in text
    assert "Failed login: bob" in caplog.text
