"""The pages of the server's own apps in a real browser: they fit, are legible, work by keyboard, and follow an upgrade."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

from infra.lifecycle import move
from infra.models import AppSecret, InfraApp, Upgrade
from infra.releases.gate import Preflight
from infra.states import UpgradeState as S
from tests.browser.conftest import Watched
from tests.browser.own_apps import OwnApps, hostile_app, own_apps, sample, tell, write_log
from tests.browser.test_pages import CONTRAST, focused

Look = Callable[..., Watched]


@pytest.fixture(autouse=True)
def no_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.upgrades.enqueue.preflight", lambda app: Preflight())


@pytest.fixture
def staff(look: Look) -> Look:
    """Open a page as somebody who looks after the server."""

    def new(**options: Any) -> Watched:
        watched = look(**options)
        client = Client()
        user, _ = User.objects.get_or_create(username="operator", is_staff=True, is_superuser=True)
        client.force_login(user)
        value = client.cookies[settings.SESSION_COOKIE_NAME].value
        watched.page.context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": value, "url": watched.origin}])
        return watched

    return new


def addresses(made: OwnApps) -> list[str]:
    upgrades = (made.running, made.rolled_back, made.lost, hostile_app())
    asked = (f"/infra/do/{name}/{made.held.pk}/" for name in ("hand_over", "upgrade"))
    return ["/", "/infra/", "/infra/night/", "/infra/file/?check=1", *asked, *(one.get_absolute_url() for one in upgrades)]


@pytest.mark.parametrize(
    ("phone", "dark"),
    [(True, False), (True, True), (False, False), (False, True)],
    ids=["phone", "phone-dark", "desk", "desk-dark"],
)
def test_the_pages_fit_and_are_legible(staff: Look, phone: bool, dark: bool) -> None:
    watched = staff(phone=phone, dark=dark)
    for path in addresses(own_apps()):
        page = watched.go(path)
        page.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= (390 if phone else 1280), path
        found = page.evaluate(CONTRAST, 4.5)
        assert found["seen"] > 5
        assert found["bad"] == [], path


def test_each_state_is_told_in_words(staff: Look) -> None:
    made = own_apps()
    page = staff().go("/infra/")
    words = {app.name: page.inner_text(f"#{app.name} .section-head") for app in InfraApp.objects.all()}
    assert "settled" in words[made.settled.name]
    assert "a version is held" in words[made.held.name]
    assert "upgrading" in words[made.upgrading.name]
    assert "drifted" in words[made.contested.name]
    assert "rollback failed" in words[made.failed.name]
    assert "managed by its maintainers" in words[made.theirs.name]
    held = page.locator(f"#{made.held.name} .version").first
    assert held.locator(".passages mark").all_inner_texts() == ["changes", "Take a backup", "cannot read"]
    assert "quarantined" in page.inner_text(f"#{made.quarantined.name} .version > summary")
    assert page.inner_text(f"#{made.theirs.name} .command >> nth=0") == "abra app upgrade drone.example.org 1.0.1+2.0"
    assert "Repair it manually, then: cc-ci infra adopt matrix" in page.inner_text(f"#{made.failed.name}")
    page.click(f"#{made.upgrading.name} >> text=Follow it")
    page.wait_for_selector("h1:has-text('forgejo 1.0.0+10.2 → 1.1.0+10.3: verifying')")


# --- the page of an upgrade under way


def test_the_page_follows_its_upgrade(staff: Look) -> None:
    upgrade = own_apps().running
    watched = staff()
    page = watched.go(upgrade.get_absolute_url())
    page.evaluate("window.stayed = true")
    page.wait_for_selector("#live:has-text('live')")
    assert "turning" in page.get_attribute(".run-summary .mark", "class")

    sample(upgrade, 90, "app does not answer: 503")
    tell(upgrade, 91, "step", "Something <b>new</b>")
    write_log(upgrade, "first\n<b>second</b> line\n")
    page.wait_for_selector("#log:has-text('<b>second</b> line')")
    page.wait_for_selector(".run-more >> text=app does not answer: 503")
    page.locator(".run-trail summary").click()
    page.wait_for_selector(".run-trail >> text=Something <b>new</b>")

    assert move(upgrade, "soak", "2 services and 2 probes are healthy, 3 times in a row.")
    page.wait_for_selector(".run-stages .tile:has-text('Soak') .mark.busy")
    assert page.locator(".run-stages .tile:has-text('Verify') .mark.good").count() == 1
    assert move(upgrade, "succeed", "Healthy for 300 s.")
    page.wait_for_selector("h1:has-text('succeeded')")
    assert page.title().startswith("forgejo 1.0.0+10.2 → 1.1.0+10.3: succeeded")
    assert "favicon-passed" in page.get_attribute("link[rel=icon]", "href")
    assert page.inner_text("#announce") == "The upgrade 1.0.0+10.2 → 1.1.0+10.3: succeeded."
    assert not page.locator("#live").is_visible()
    assert page.evaluate("window.stayed"), "without loading the page anew"


def test_a_way_back_is_followed_as_well(staff: Look) -> None:
    upgrade = own_apps().running
    page = staff(phone=True).go(upgrade.get_absolute_url())
    page.wait_for_selector("#live:has-text('live')")
    assert move(upgrade, "roll_back", "The health check failed.", reason="The health check failed.")
    page.wait_for_selector(".run-stages .tile:has-text('Roll back') .mark.busy")
    page.wait_for_selector(".verdict-why:has-text('The health check failed.')")
    assert move(upgrade, "rolled_back", "")
    page.wait_for_selector(".verdict.warn h1:has-text('rolled back')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_button_is_reached_and_pressed_by_keyboard(staff: Look) -> None:
    upgrade = own_apps().running
    page = staff().go(upgrade.get_absolute_url())
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(focused(page))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", focused(page)
        if seen[-1] == "Roll back to the version before":
            break
    tell(upgrade, 100, "step", "the page changes meanwhile")
    page.wait_for_selector(".run-trail .count:has-text('5 events')")
    assert focused(page) == "Roll back to the version before"
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Roll back to the version before: forgejo')")
    assert "Rolls forgejo back to 1.0.0+10.2" in page.inner_text(".ask")
    upgrade.refresh_from_db()
    assert not upgrade.asked.get("back"), "it asks first"
    page.focus("text=Yes, do it")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=operator requested a rollback.")
    upgrade.refresh_from_db()
    assert upgrade.asked["back"] == "operator"


def test_a_refusal_is_shown_where_one_pressed(staff: Look) -> None:
    made = own_apps()
    watched = staff(phone=True)
    page = watched.go(f"/infra/do/hand_over/{made.upgrading.pk}/")
    page.click("text=Yes, do it")
    page.wait_for_selector("[role=alert]:has-text('hand it over when it has finished.')")
    page.click("text=No, go back")
    page.wait_for_url(f"**/infra/#{made.upgrading.name}")
    watched.errors = [error for error in watched.errors if "409" not in error]


def test_a_version_is_approved_on_the_page(staff: Look) -> None:
    made = own_apps()
    page = staff(phone=True).go("/infra/")
    page.click(f"#{made.held.name} >> text=Approve this version")
    page.wait_for_selector("[role=status]:has-text('Approved keycloak 2.0.0+3.0: the next upgrade may take it.')")
    assert made.held.releases.get(version="2.0.0+3.0").approved_by == "operator"


# --- strangers, secrets, and texts that mean ill


def test_a_stranger_sees_nothing(look: Look) -> None:
    made = own_apps()
    watched = look()
    for path in addresses(made):
        page = watched.go(path)
        text = page.content()
        assert path == "/" or "/admin/login/" in page.url
        assert "keycloak" not in text and "forgejo" not in text and 'href="/infra/' not in text
    answer = Client().get(f"{made.running.get_absolute_url()}live")
    assert answer.status_code == 403 and "forgejo" not in answer.content.decode()


def test_a_login_that_ended_stops_the_page(staff: Look) -> None:
    watched = staff()
    page = watched.go(own_apps().running.get_absolute_url())
    page.context.clear_cookies()
    page.wait_for_selector("#live.trouble:has-text('Log in again')")
    watched.errors = [error for error in watched.errors if "403" not in error]


def test_hostile_texts_stay_texts(staff: Look) -> None:
    upgrade = hostile_app()
    watched = staff()
    for path in ("/infra/", "/infra/night/", upgrade.get_absolute_url()):
        page = watched.go(path)
        assert page.title() != "owned" and page.locator("img[src=x]").count() == 0
        assert "49" not in page.locator("main").inner_text().split(), "no template is filled in"
    assert "<script>document.title='owned'</script>" in page.inner_text("#log")
    Upgrade.objects.filter(pk=upgrade.pk).update(state=S.SOAKING, finished_at=None)
    page = watched.go(upgrade.get_absolute_url())
    write_log(upgrade, "</pre><img src=x onerror=alert(1)>\n")
    page.wait_for_selector("#log:has-text('</pre><img src=x')")
    assert page.locator("img[src=x]").count() == 0


def test_the_log_shows_no_secret(staff: Look) -> None:
    made = own_apps()
    AppSecret.objects.create(app=made.upgrading, name="git_password_v1", value="correct-horse")
    write_log(made.running, "the password is correct-horse\n")
    page = staff().go(made.running.get_absolute_url())
    assert page.inner_text("#log").strip() == "the password is ***"
    write_log(made.running, "the password is correct-horse\nand correct-horse again\n")
    page.wait_for_selector("#log:has-text('and *** again')")
    assert "correct-horse" not in page.content()
