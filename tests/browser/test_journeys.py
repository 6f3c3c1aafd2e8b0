"""Whole journeys, by keyboard alone: what a person wants, from the first page to the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.utils import timezone

from controlplane import roles
from enrollment.models import Repository
from infra.models import InfraApp
from infra.releases.gate import Preflight
from runs import ingest
from runs.harness.protocol import Results
from runs.models import DeferredItem, RunEvent, State, TestRun
from tests.browser.conftest import Watched
from tests.browser.examples import examples, registry
from tests.browser.own_apps import own_apps
from tests.world import World

Look = Callable[..., Watched]
AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
#: What has the focus, as one would call it.
NAME = """() => { const it = document.activeElement;
  if (it === document.body) return "";
  const label = it.labels && it.labels[0] ? it.labels[0].innerText : "";
  return (label || it.getAttribute("aria-label") || it.innerText || it.value || it.id || "").trim(); }"""


class Person:
    """Somebody at a keyboard, who sees a page."""

    def __init__(self, watched: Watched) -> None:
        self.watched, self.page = watched, watched.page

    def opens(self, path: str) -> None:
        self.watched.go(path)
        self.looks()

    def looks(self) -> None:
        """What every page of ours has to be: within the screen, and without what axe finds."""
        if "/admin/" in self.page.url:
            return
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), self.page.url
        self.page.evaluate(AXE)
        found = self.page.evaluate("axe.run()")["violations"]
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == [], self.page.url

    def goes_to(self, name: str, most: int = 200) -> None:
        """Press Tab until what is called so has the focus. `Name…`: whose name begins so."""
        seen = []
        for _ in range(most):
            self.page.keyboard.press("Tab")
            lines = self.page.evaluate(NAME).splitlines()  # in the admin, the first is an icon's
            if any(line.rstrip("*: …") == name or (name[-1] == "…" and line.startswith(name[:-1])) for line in lines):
                return
            seen.append(" ".join(lines)[:40])
        raise AssertionError(f"no {name!r} among {seen[:80]}")

    def presses(self, name: str, then: str) -> None:
        """Go there, press Enter, and wait for this text."""
        self.goes_to(name)
        self.page.keyboard.press("Enter")
        self.sees(then)

    def types(self, name: str, text: str) -> None:
        self.goes_to(name)
        self.page.keyboard.type(text)

    def sees(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for()

    def logs_in(self, name: str) -> None:
        self.types("Username", name)
        self.types("Password", "a long and good password")
        self.page.keyboard.press("Enter")
        self.sees(f"Log out {name}")


def operator() -> User:
    """Somebody with the role, and nothing more."""
    for name in roles.APPS:  # after each test, the tables are emptied
        roles.grant(apps.get_app_config(name), using="default")
    user = User.objects.create_user("olga", password="a long and good password", is_staff=True)
    user.groups.add(Group.objects.get(name="operator"))
    return user


@pytest.fixture
def forge(data_dir: Path, tmp_path: Path, live_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A forge that cc-ci knows, with a recipe that is not enrolled."""
    monkeypatch.setattr(settings.CC_CI, "base_url", live_server.url)
    world = World(tmp_path)
    world.connect()
    world.add_recipe("web")
    yield world
    world.close()


def test_from_the_first_start_to_the_reason_of_a_failure(look: Look, forge: World) -> None:
    operator()
    olga = Person(look())
    olga.opens("/")
    olga.sees("No public recipe is enrolled yet.")
    olga.presses("documentation", "Documentation")
    olga.looks()
    olga.presses("Log in", "Username")
    olga.looks()
    olga.logs_in("olga")
    olga.presses("Admin", "Repositories")
    olga.presses("Repositories", "Add repository")
    olga.opens("/admin/enrollment/repository/add/")
    olga.goes_to("Forge")
    olga.page.keyboard.press("ArrowDown")
    olga.types("Repository", "recipes/wep")
    olga.page.keyboard.press("Enter")
    olga.sees("It was deleted or renamed, or the token may not see it")
    olga.goes_to("Repository")
    olga.page.keyboard.press("Control+a")
    olga.page.keyboard.type("recipes/web")
    olga.types("Allow", "mallory")
    olga.presses("Save", "was added successfully")
    row = Repository.objects.get()
    assert (row.full_name, row.allow) == ("recipes/web", [forge.mallory.id])

    maintainer = Person(look(phone=True))
    maintainer.opens("/")
    forge.say("recipes/web")
    forge.hear()
    maintainer.sees("recipes/web #1")  # without loading the page again
    run = TestRun.objects.get()
    maintainer.presses("recipes/web #1", "is queued")
    maintainer.looks()
    TestRun.objects.update(state=State.RUNNING, started_at=timezone.now(), attempt=1, log="== Deploying\n", log_offset=13)
    maintainer.sees("is running")
    RunEvent.objects.create(run=run, at=timezone.now(), kind="stage_started", stage="custom", attempt=1, seq=1)
    TestRun.objects.update(log="== Deploying\nthe page is wrong\n", log_offset=31)
    maintainer.sees("the page is wrong")
    run.refresh_from_db()
    case = {
        "name": "test_the_page",
        "file": "tests/test_page.py",
        "status": "failed",
        "message": "It says 404.",
        "output": "E 404",
    }
    stages = [{"name": name, "status": "passed"} for name in ("install", "upgrade", "backup", "restore")]
    stages.append({"name": "custom", "status": "failed", "reason": "1 test failed.", "cases": [case]})
    now = timezone.now().isoformat()
    results = {"run_id": str(run.pk), "verdict": "failed", "reason": "custom: 1 test failed, test_the_page.", "stages": stages}
    assert ingest.conclude(run, Results.model_validate({**results, "started": now, "finished": now}))
    maintainer.sees("custom: 1 test failed, test_the_page.")
    maintainer.sees("It says 404.")
    maintainer.goes_to("Copy !testme")
    maintainer.goes_to("test_the_page…")
    maintainer.types("Search the log", "wrong")
    maintainer.sees("1 of 1 lines")
    maintainer.looks()


def test_a_held_upgrade_is_approved_and_drift_is_resolved(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.upgrades.enqueue.preflight", lambda app: Preflight())
    runs_there = SimpleNamespace(fingerprint="f" * 64, version="1.2.0+2.2", parts={"app": {}})
    monkeypatch.setattr("infra.upgrades.enqueue.inspect.see", lambda app: runs_there)
    operator()
    made = own_apps()
    olga = Person(look())
    olga.opens("/login/")
    olga.logs_in("olga")
    olga.presses("Apps", "This server's own apps")
    olga.looks()
    olga.presses("Approve this version", "Approved keycloak 2.0.0+3.0: the next upgrade may take it.")
    assert made.held.releases.get(version="2.0.0+3.0").approved_by == "olga"
    olga.sees("vaultwarden")
    olga.presses("Restore what cc-ci had deployed", "Yes, do it")
    olga.looks()
    olga.presses("Yes, do it", "Started")
    app = InfraApp.objects.get(name="vaultwarden")
    assert (upgrade := app.under_way()) and upgrade.to_version == "1.0.0+2.0"


def test_a_deferred_test_is_found_and_a_wrong_closing_is_taken_back(look: Look) -> None:
    operator()
    examples()
    registry()
    DeferredItem.objects.filter(state="closed").update(ticked=False)
    olga = Person(look())
    olga.opens("/login/")
    olga.logs_in("olga")
    olga.presses("deferred tests", "3 tests")
    olga.looks()
    olga.goes_to("State")
    olga.page.keyboard.type("closed")
    olga.presses("Show", "1 test")
    olga.presses("Go from 28 to 30…", "Ported by")
    olga.looks()
    olga.presses("Admin", "Deferred tests")
    olga.presses("Deferred tests", "nextcloud-upgrade-two-majors")
    item = DeferredItem.objects.get(state="closed")
    olga.page.locator(f"input[name=_selected_action][value='{item.pk}']").focus()
    olga.page.keyboard.press("Space")
    olga.page.locator("select[name=action]").focus()
    olga.page.keyboard.type("Reopen")
    olga.presses("Run", "Reopened")
    item.refresh_from_db()
    assert item.state == "open"


def test_a_webhook_is_added_by_hand(look: Look, forge: World) -> None:
    forge.enroll("recipes/web")
    operator()
    row = Repository.objects.get()
    olga = Person(look(phone=True))
    olga.opens(f"/login/?next=/repositories/{row.pk}/webhook/")
    olga.types("Username", "olga")
    olga.types("Password", "a long and good password")
    olga.page.keyboard.press("Enter")
    olga.sees("Add it manually")
    olga.looks()
    olga.presses("Create secret", "It is shown only this once")
    olga.looks()
    secret = olga.page.locator("code.command").first.inner_text()
    assert len(secret) > 30
    olga.page.reload()
    olga.sees("Create new secret")
    assert secret not in olga.page.content()
