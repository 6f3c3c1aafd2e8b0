"""A run as Markdown: the verdict first, and nothing from outside that acts."""

from __future__ import annotations

from html import unescape

import pytest
from markdown_it import MarkdownIt

from controlplane.untrusted import ZERO_WIDTH
from runs import render
from runs.models import State, TestRun
from tests.factories import ArtefactFactory, CaseResultFactory, DeferredItemFactory, StageResultFactory, TestRunFactory, details

HOSTILE = "@alice ```\n</details>\n<!-- x --> #12 | pipe <script>alert(1)</script> [x](http://evil.example) ~~~"


def read(text: str) -> str:
    """A comment as people read it."""
    return unescape(text).replace(ZERO_WIDTH, "")


@pytest.fixture
def failed(db: None) -> TestRun:
    run = TestRunFactory(state=State.FAILED, reason="custom: 1 of 2 tests failed")
    StageResultFactory(run=run, name="install", order=0, status="passed")
    stage = StageResultFactory(run=run, name="custom", order=1, status="failed", reason="")
    CaseResultFactory(stage=stage, name="test_page", file="tests/test_page.py", status="failed", output="AssertionError: 404")
    CaseResultFactory(stage=stage, name="test_fine", file="tests/test_page.py", status="passed", output="")
    return run


def test_the_verdict_comes_first_then_stages_then_failures_then_what_to_do(failed: TestRun) -> None:
    text = read(render.report(failed, marker="cc-ci:x"))
    assert text.startswith("<!-- cc-ci:x -->\n\n### ❌ The test of")
    order = [
        text.index(part)
        for part in (
            "failed",
            "| stage |",
            "<code>tests/test_page.py::test_page</code>",
            "AssertionError: 404",
            failed.url,
            "!testme retry",
        )
    ]
    assert order == sorted(order)
    assert "test_fine" not in text


def test_an_error_is_told_once(db: None) -> None:
    error = "GET / redirected to https://x.example.org/login, which returned 500."
    run = TestRunFactory(state=State.FAILED, reason=f"install: {error}", details={**details(), "level": NOT_REACHED})
    stage = StageResultFactory(run=run, name="install", order=0, status="failed", reason=error)
    CaseResultFactory(stage=stage, name="the app answers", file="generic", status="failed", message=error, output="")
    StageResultFactory(run=run, name="custom", order=1, status="skipped", reason="The stage install failed.")
    text = read(render.report(run))
    assert text.count(error.rstrip(".")) == 1
    assert f"Reason: install: {error}" in text  # whole, and not as long as a cell of a table may be
    stage.cases.update(output="app | Traceback: no database")
    text = read(render.report(run))
    assert text.count(error.rstrip(".")) == 1 and "no database" in text


NOT_REACHED = {
    "value": 0,
    "rungs": [
        {
            "level": 1,
            "name": "install",
            "status": "failed",
            "reason": "install failed: GET / redirected to https://x.example.org/login, which returned 500.",
        }
    ],
}


@pytest.mark.parametrize("state", State.values)
def test_every_state_has_its_words(db: None, state: str) -> None:
    run = TestRunFactory(state=state)
    text = render.report(run, place=3)
    assert render.HEADLINE[State(state)] in text
    assert ("Its place in the queue is 3" in text) == (state == State.QUEUED)


def test_ours_and_theirs_are_told_apart(db: None) -> None:
    text = render.report(TestRunFactory(state=State.ERRORED, reason="no machine"))
    assert "not the recipe's" in text


def test_warnings_are_shown(db: None) -> None:
    assert "no sandbox" in render.report(TestRunFactory(state=State.PASSED, warnings=["no sandbox here"]))


def test_nothing_from_outside_acts(db: None) -> None:
    run = TestRunFactory(state=State.FAILED, reason=HOSTILE, requested_by="@everyone")
    stage = StageResultFactory(run=run, name="custom", order=0, status="failed", reason=HOSTILE)
    CaseResultFactory(stage=stage, name=HOSTILE, file=HOSTILE, status="failed", output=HOSTILE)
    text = render.report(run)
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "<script" not in html
    assert 'evil.example"' not in html
    assert "@alice" not in text
    assert "@everyone" not in text
    assert html.count("</details>") == 1
    assert "<!--" not in html.replace("&lt;", "")


def test_only_the_last_lines_of_a_long_log(db: None) -> None:
    run = TestRunFactory(state=State.FAILED)
    stage = StageResultFactory(run=run, name="custom", order=0, status="failed")
    for number in range(8):
        CaseResultFactory(stage=stage, name=f"test_{number}", status="failed", output="\n".join(f"line {n}" for n in range(1000)))
    text = render.report(run)
    assert "line 999" in text
    assert "line 100\n" not in text
    assert "and 3 more on the page" in text
    assert len(text) < 20_000


def test_a_reason_is_told_once() -> None:
    assert render.once("install failed: It exits.", "install: It exits.") == "install failed."
    assert render.once("install failed: It exits.", "upgrade: It stays away.") == "install failed: It exits."
    assert render.once("1 of 3 tests failed.", "1 of 3 tests failed.") == "1 of 3 tests failed."


def test_what_else_was_found_is_told(db: None) -> None:
    run = TestRunFactory(failed=True, details=details(secret_leaks=["log.txt"]), level=2)
    ArtefactFactory(run=run, name="picture.png", kind="picture", data=b"png")
    text = render.report(run)
    assert "Level **2** of 5; rung 4, own tests, was not reached: 1 of 3 tests failed." in text
    assert "Deployed as 1.0.0+2.0, then upgraded to 1.1.0+2.1." in read(text)
    assert "1 extra test was not run. This change touches files covered by:" in text
    assert "- <code>extra/test_heavy.py::test_many_users</code>\n\nRun them with: `!testme --extra-tests`" in read(text)
    assert "changes app.status" in read(text) and "counts once it is merged" in text
    assert "A secret of this run was printed, and has been redacted, in <code>log.txt</code>." in read(text)
    assert f"![The app]({run.url}files/picture.png)" in text


def test_extra_tests_that_no_change_asks_for_are_only_counted(db: None) -> None:
    run = TestRunFactory(passed=True, details=details(extras={"not_run": 3, "suggested": [], "tests": []}))
    assert "3 extra tests were not run. Run them with: `!testme --extra-tests`" in render.report(run)


def test_a_private_recipe_shows_no_picture_on_the_forge(db: None) -> None:
    run = TestRunFactory(passed=True, details=details(), pull_request__repository__private=True)
    ArtefactFactory(run=run, name="picture.png", kind="picture")
    assert "picture.png" not in render.report(run)


def test_hostile_findings_stay_texts(db: None) -> None:
    extra = {"file": HOSTILE, "name": HOSTILE, "covers": [HOSTILE]}
    level = {"value": 0, "rungs": [{"level": 1, "name": HOSTILE, "status": "failed", "reason": HOSTILE}]}
    found = details(
        loosened=[HOSTILE], version=HOSTILE, upgraded_from=HOSTILE, level=level, extras={"not_run": 1, "suggested": [extra]}
    )
    html = (
        MarkdownIt("commonmark", {"html": True}).enable("table").render(render.report(TestRunFactory(failed=True, details=found)))
    )
    assert "<script" not in html and 'evil.example"' not in html and "@alice" not in html


def test_a_pull_request_that_ports_a_deferred_test_says_which(db: None) -> None:
    run = TestRunFactory(passed=True, pull_request__repository__name="matrix-synapse")
    DeferredItemFactory(slug="matrix-synapse-compress-state", recipe=run.repository)
    test = {"file": "extra/test_compress_state.py", "name": "test_rows_drop", "covers": []}
    run.details = details(extras={"not_run": 0, "suggested": [], "tests": [test]}, changed=["extra/test_compress_state.py"])
    assert "This change ports the deferred test **matrix-synapse-compress-state**" in render.report(run)
    run.details["changed"] = ["compose.yml"]
    assert "This change ports" not in render.report(run)


def test_the_status_of_some_stages_only_says_so() -> None:
    partial = TestRun(state=State.PASSED, stages=["install", "custom"])
    assert render.description(partial) == "The test passed; only install, custom."
    retried = TestRun(state=State.PASSED, stages=["install", "upgrade", "custom"], taken_over=["backup", "restore"])
    assert render.description(retried) == "The test passed."
