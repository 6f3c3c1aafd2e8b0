"""The pages in a real browser: they fit, are legible, work by keyboard, and a running one follows its run."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.urls import reverse

from runs import lifecycle
from runs.models import RunEvent, State, TestRun
from tests.browser.conftest import Watched
from tests.browser.examples import Examples, examples, hostile
from tests.factories import ArtefactFactory, CaseResultFactory, RunEventFactory, StageResultFactory, TestRunFactory

CONTRAST = Path(__file__).with_name("contrast.js").read_text()
Look = Callable[..., Watched]


def addresses(made: Examples) -> list[str]:
    runs = (made.failed, made.passed, made.running, made.errored, hostile())
    row, pull = made.failed.repository, made.failed.pull_request
    assert pull is not None
    recipe = [f"/recipes/{row.pk}/", f"/recipes/{row.pk}/pulls/{pull.number}/", f"/runs/tests/{row.pk}/"]
    return ["/", "/runs/", "/login/", "/nowhere/", *recipe, *(run.get_absolute_url() for run in runs)]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_page_fits_a_phone_and_is_legible(look: Look, dark: bool) -> None:
    watched = look(phone=True, dark=dark)
    for path in addresses(examples()):
        page = watched.go(path)
        page.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        found = page.evaluate(CONTRAST, 4.5)
        assert found["seen"] > 5
        assert found["bad"] == [], path
    # The browser reports the status of the page that is not there.
    watched.errors = [error for error in watched.errors if "status of 404" not in error]


def test_the_two_schemes_differ(look: Look) -> None:
    grounds = {look(dark=dark).go("/").evaluate("getComputedStyle(document.body).backgroundColor") for dark in (False, True)}
    assert len(grounds) == 2


def test_every_page_fits_a_desktop(look: Look) -> None:
    watched = look()
    for path in addresses(examples()):
        page = watched.go(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280, path
        panels = "[...document.querySelectorAll('.panel')]"
        cut = page.evaluate(f"{panels}.filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.innerText)")
        assert cut == [], path
    watched.errors = [error for error in watched.errors if "status of 404" not in error]


def test_axe_finds_nothing(look: Look) -> None:
    watched, axe = look(), (files("axe_playwright_python") / "axe.min.js").read_text()
    for path in (*addresses(examples()), "/deferred/", "/glossary/", "/api/"):
        page = watched.go(path)
        page.evaluate(axe)
        found = page.evaluate("axe.run()")["violations"]
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == [], path
    watched.errors = [error for error in watched.errors if "status of 404" not in error]


def test_an_empty_server_fits_a_phone(look: Look) -> None:
    watched = look(phone=True)
    for path in ("/", "/runs/"):
        assert watched.go(path).evaluate("document.documentElement.scrollWidth") <= 390


def test_the_admin_loads_nothing_from_outside(look: Look) -> None:
    User.objects.create_superuser("operator", password="operator")
    made = examples()
    page = look().go(reverse("admin:index"))
    page.fill("[name=username]", "operator")
    page.fill("[name=password]", "operator")
    page.click("[type=submit]")
    page.wait_for_url("**/admin/")
    for name, args in (
        ("runs_testrun_changelist", []),
        ("runs_testrun_change", [made.failed.pk]),
        ("enrollment_forge_add", []),
    ):
        page.goto(page.url.partition("/admin")[0] + reverse(f"admin:{name}", args=args))
        page.wait_for_load_state("networkidle")


# --- keyboard


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.innerText || document.activeElement.id")).strip()


def test_the_keyboard_reaches_everything(look: Look) -> None:
    made = examples()
    page = look().go(made.failed.get_absolute_url())
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to content"
    box = page.locator(".skip").bounding_box()
    assert box["y"] >= 0, "the link is in sight while it has the focus"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", focused(page)
        seen.append(focused(page))
    order = ["Pull request #118", "test_an_upload", "Go to the pull request", "1 test of install", "Plain text", "Trail"]
    places = [next(place for place, text in enumerate(seen) if text.startswith(wanted)) for wanted in order]
    assert places == sorted(places)


def test_a_fold_opens_by_key(look: Look) -> None:
    page = look().go(examples().failed.get_absolute_url())
    fold = page.locator(".trail > summary")
    assert not page.locator(".events").is_visible()
    fold.focus()
    page.keyboard.press("Enter")
    assert page.locator(".events").is_visible()


# --- a running run


def finish(run: TestRun) -> None:
    run.refresh_from_db()
    stage = StageResultFactory(run=run, name="custom", status="failed")
    CaseResultFactory(stage=stage, name="test_of_the_end", status="failed", message="It broke.")
    assert lifecycle.move(run, "fail", "custom failed", reason="custom: 1 test failed.")


def test_a_running_page_follows_its_run(look: Look) -> None:
    run = TestRunFactory(running=True, stages=["install", "custom"], log="first line\n", log_offset=11)
    watched = look()
    page = watched.go(run.get_absolute_url())
    page.evaluate("window.stayed = true")
    page.wait_for_selector("#live:has-text('live')")
    assert not page.locator("#still").is_visible()

    TestRun.objects.update(log="first line\n<b>second</b> line\n", log_offset=30)
    RunEventFactory(run=run, kind="stage_started", stage="install", seq=1)
    page.wait_for_selector("#log:has-text('<b>second</b> line')")
    page.wait_for_selector(".steps [aria-current=step]:has-text('install')")

    finish(run)
    page.wait_for_selector("h1:has-text('failed')")
    page.wait_for_selector("#failing-title")
    assert page.locator(".case-box").inner_text().count("It broke.") == 1
    assert page.title().startswith("failed: ")
    assert "favicon-failed" in page.get_attribute("link[rel=icon]", "href")
    assert page.inner_text("#announce") == "The run failed."
    assert not page.locator("#live").is_visible()
    assert page.evaluate("window.stayed"), "without loading the page anew"
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(1800)
    assert asked == [], "after the end it asks no more"


def test_the_log_follows_only_a_reader_at_its_end(look: Look) -> None:
    lines = "".join(f"line {number}\n" for number in range(200))
    run = TestRunFactory(running=True, log=lines, log_offset=len(lines))
    page = look().go(run.get_absolute_url())
    end = "(() => { const log = document.getElementById('log'); return log.scrollHeight - log.scrollTop - log.clientHeight; })()"
    assert page.evaluate(end) < 5

    lines += "one more\n" * 20
    TestRun.objects.update(log=lines, log_offset=len(lines))
    page.wait_for_selector("#log:has-text('one more')")
    assert page.evaluate(end) < 5

    page.evaluate("document.getElementById('log').scrollTop = 100")
    lines += "the last\n"
    TestRun.objects.update(log=lines, log_offset=len(lines))
    page.wait_for_selector("#log:has-text('the last')")
    assert page.evaluate("document.getElementById('log').scrollTop") == 100


def test_lines_of_a_log_have_their_own_number_or_none(look: Look) -> None:
    """What a page has of a log is all of it while it follows, and only its end if more came than the server kept meanwhile."""
    lines = "".join(f"line {number}\n" for number in range(1, 20_001))
    run = TestRunFactory(running=True, log=lines[:1000], log_offset=1000)
    page = look().go(run.get_absolute_url())
    page.wait_for_selector("#log:has-text('line 100')")
    TestRun.objects.update(log=lines, log_offset=len(lines))
    page.wait_for_selector("#log:has-text('line 20000')")
    assert page.is_hidden("#log-cut") and page.inner_text("#L20000").strip() == "line 20000"
    burst = "".join(f"burst {number}\n" for number in range(20_000))
    TestRun.objects.update(log=burst, log_offset=10**6)
    page.wait_for_selector("#log:has-text('burst 19999')")
    assert page.is_visible("#log-cut") and page.locator("#log [id]").count() == 0


def test_the_log_has_parts_a_search_and_lines_with_an_address(look: Look) -> None:
    lines = "".join(
        f"12:00:0{number % 10} == part {number // 100}\n" if number % 100 == 0 else f"line {number}\n" for number in range(300)
    )
    run = TestRunFactory(failed=True, log=lines + "12:00:09 tests/test_a.py::test_b FAILED\nno end", log_offset=len(lines))
    watched = look()
    page = watched.go(f"{run.get_absolute_url()}#L150")
    top = "document.getElementById('log').scrollTop"
    assert page.inner_text(".line.here").strip() == "line 149" and page.evaluate(top) > 0
    assert page.evaluate("document.getElementById('log').textContent") == run.log
    page.locator("#log-sections button", has_text="part 2").focus()
    page.keyboard.press("Enter")
    assert page.inner_text(".line.here").strip().endswith("== part 2")
    page.fill("#log-search", "LINE 29")
    assert page.inner_text("#log-count") == "1 of 11 lines"
    page.keyboard.press("Enter")
    assert page.inner_text("#log-count") == "2 of 11 lines" and page.inner_text(".line.here").strip() == "line 290"
    page.fill("#log-search", "nowhere")
    assert page.inner_text("#log-count") == "No line has it"
    assert page.locator(".log .bad").inner_text().strip().endswith("FAILED")


def test_a_log_of_100_mb_is_read_without_holding_up_the_page(look: Look) -> None:
    line = "12:00:00 tests/test_a.py::test_b PASSED, and what it prints until the line is a hundred characters long\n"
    stage = "12:00:00 == install: passed\n" + line * 249_999
    whole = stage * 4 + "12:00:00 == the end\n"
    assert len(whole) > 100_000_000
    run = TestRunFactory(failed=True, log=whole[-500_000:], log_offset=len(whole))
    ArtefactFactory(run=run, name="log.txt.gz", kind="log", data=gzip.compress(whole.encode(), 1))
    page = look().go(f"{run.get_absolute_url()}#L500001")
    page.wait_for_selector("#log-cut", state="hidden")
    assert page.evaluate("document.getElementById('log').textContent.length") == len(whole)
    page.wait_for_selector(".line.here")
    assert page.inner_text(".line.here").strip() == "12:00:00 == install: passed"
    assert page.get_attribute(".line.here", "id") == "L500001"
    assert page.locator("#log-sections button").count() == 5
    page.fill("#log-search", "the end")
    page.wait_for_selector("#log-count:has-text('1 of 1 lines')")
    page.wait_for_selector("#L1000001.here")
    made = page.evaluate("document.querySelectorAll('#log .line').length")
    assert made < 20_000, "only what is looked at was made into lines"


def test_a_log_of_nothing_but_headings_does_not_bury_the_page_in_buttons(look: Look) -> None:
    """Whoever writes a recipe writes the log, too."""
    headings = "== x\n" * 39_999
    run = TestRunFactory(running=True, log=headings, log_offset=len(headings))
    page = look().go(run.get_absolute_url())
    assert page.locator("#log-sections button").count() == 100
    assert page.evaluate("document.getElementById('log').textContent.length") == len(headings)
    more = headings + "12:00:09 == The end\n"
    TestRun.objects.update(log=more, log_offset=len(more))
    page.wait_for_selector("#log:has-text('The end')")
    assert page.locator("#log-sections button").count() == 100


def test_a_services_log_opens_in_its_place(look: Look) -> None:
    run = TestRunFactory(failed=True)
    ArtefactFactory(run=run, name="service-app.log", title="Log of app", data=b"the app says <b>so</b>\n")
    page = look().go(run.get_absolute_url())
    page.locator("summary", has_text="Show it here").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".files pre:has-text('the app says <b>so</b>')")


def test_a_list_of_runs_keeps_fresh(look: Look) -> None:
    page = look().go("/")
    TestRunFactory(state=State.QUEUED)
    page.wait_for_selector("#now-title")


def test_commands_are_copied(look: Look) -> None:
    page = look().go(TestRunFactory(failed=True).get_absolute_url())
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("button.copy").first.click()
    page.wait_for_selector("button.copy:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == "!testme"


def test_what_the_reader_opened_stays_open(look: Look) -> None:
    run = TestRunFactory(running=True)
    page = look().go(run.get_absolute_url())
    page.locator(".trail > summary").focus()
    page.keyboard.press("Enter")
    RunEventFactory(run=run, text="something new", seq=1)
    page.wait_for_selector(".events >> text=something new")
    assert page.locator(".trail").get_attribute("open") is not None
    assert focused(page).startswith("Trail"), "the focus stays as well"


def test_trouble_with_the_server_is_told_and_got_over(look: Look) -> None:
    run = TestRunFactory(running=True)
    watched = look()
    page = watched.page
    broken = [True]
    page.route("**/live/*", lambda route: route.fulfill(status=502) if broken[0] else route.continue_())
    watched.go(run.get_absolute_url())
    page.wait_for_selector("#live.trouble:has-text('no response from the server')")
    broken[0] = False
    page.wait_for_selector("#live:not(.trouble):has-text('live')")
    watched.errors = [error for error in watched.errors if "502" not in error]


def test_a_login_that_ended_is_told(look: Look) -> None:
    run = TestRunFactory(running=True)
    watched = look()
    page = watched.go(run.get_absolute_url())
    run.repository.private = True
    run.repository.save()
    page.wait_for_selector("#live.trouble:has-text('Log in again')")
    watched.errors = [error for error in watched.errors if "403" not in error]


def test_without_javascript_the_page_is_whole(look: Look) -> None:
    run = TestRunFactory(running=True, log="first line\n")
    page = look(java_script_enabled=False).go(run.get_absolute_url())
    assert "first line" in page.inner_text("#log")
    assert not page.locator("#live").is_visible()
    finish(run)
    page.click("text=Refresh it")
    page.wait_for_selector("h1:has-text('failed')")
    assert RunEvent.objects.filter(kind="failed").exists()
