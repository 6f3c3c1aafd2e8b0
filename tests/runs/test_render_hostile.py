"""Every field of a comment with hostile text: the result has the same elements as with harmless text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from hypothesis import HealthCheck, example, given
from hypothesis import settings as profile

from controlplane.untrusted import commit
from enrollment.models import Comment
from runs import commands, render, reporting
from runs.deferred import registry
from runs.models import Report, State, TestRun
from tests.factories import (
    ArtefactFactory,
    CaseResultFactory,
    CommentFactory,
    RunEventFactory,
    StageResultFactory,
    TestRunFactory,
    details,
)
from tests.markdown_reader import acts, hostile, raw_commands, shown

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.2)]

#: The name of a test that was an image, a message of success and a command in the answer of the trusted bot.
ESCAPE = (
    "test_x\n\n</summary></details>\n\n### ✅ All tests passed\n\n![x](http://evil.example/x.png)\n\n"
    "!testme approve 1a2b3c4\n\n@alice #12 1a2b3c4d5e"
)
some = profile(
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def run(db: None, monkeypatch: pytest.MonkeyPatch) -> TestRun:
    """A run whose rows are read once, and are then changed in place."""
    row = TestRunFactory(state=State.FAILED, stages=["install"], details=details())
    for order in range(2):
        stage = StageResultFactory(run=row, name=f"custom{order}", order=order, status="failed")
        CaseResultFactory(stage=stage, name="x", file="x", status="failed")
    ArtefactFactory(run=row, name="picture.png", kind="picture", data=b"png")
    RunEventFactory(run=row, kind="stage_started", stage="install", text="")
    return TestRun.objects.select_related("repository", "pull_request").prefetch_related("stage_results__cases").get()


def fill(run: TestRun, text: str, state: State) -> str:
    """The comment with this text in each field that comes from outside."""
    run.state, run.attempt = state, 0
    run.reason, run.requested_by, run.warnings = text, text, [text] * 2
    run.repository.name = run.repository.owner = text
    assert run.pull_request
    run.pull_request.html_url = f"https://git.example.org/{text}"
    rung = {"level": 1, "name": text, "status": "failed", "reason": text}
    test = {"file": text, "name": text, "covers": [text]}
    run.details = details(
        level={"value": 0, "rungs": [rung]},
        loosened=[text],
        secret_leaks=[text],
        version=text,
        upgraded_from=text,
        extras={"not_run": 1, "suggested": [test], "tests": [test]},
        changed=[text],
    )
    for number, stage in enumerate(run.stage_results.all()):
        stage.reason = f"{text}{number}"  # not the run's own: both are shown
        stage.status = "failed" if number else text
        for case in stage.cases.all():
            case.name = case.file = case.message = text
            case.output = text if number else ""
    return render.report(run, place=2, marker="cc-ci:run:x")


def names(text: str) -> list[str]:
    return [element[0] for element in shown(text).elements]


@pytest.mark.parametrize("examples", [30, pytest.param(1000, marks=pytest.mark.long)], ids=["usual", "long"])
def test_nothing_in_a_comment_is_opened_or_closed_and_nothing_acts(
    run: TestRun, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    @given(hostile)
    @example(ESCAPE)
    @profile(some, max_examples=examples)
    def check(text: str) -> None:
        run.artefacts.update(name=f"{text[:50]}.png".replace("/", "").replace("\n", ""))
        for state in (State.FAILED, State.AWAITING_APPROVAL, State.RUNNING):
            monkeypatch.setattr(registry, "would_close", lambda *args: ["x"])
            ours = fill(run, "x", state)
            monkeypatch.setattr(registry, "would_close", lambda *args: [text])
            theirs = fill(run, text, state)
            assert names(theirs) == names(ours)
            found, wanted = shown(theirs), shown(ours)
            for kind in ("img", "a"):
                places = {element for element in found.elements if element[0] == kind}
                assert all(
                    element[1].startswith((f"src={run.url}", f"href={run.url}", "href=https://git.example.org/"))
                    for element in places
                )
            assert [e for e in found.elements if e[0] == "comment"] == [e for e in wanted.elements if e[0] == "comment"]
            assert acts(found) <= acts(wanted), acts(found) - acts(wanted)
            assert raw_commands(theirs) <= raw_commands(ours)
            assert commands.parse(theirs) is None
            assert len(theirs) < 65_000

    check()


def _progress(run: TestRun, text: str) -> str:
    run.events.update(kind="stage_finished", data={"status": text})
    run.state = State.RUNNING
    return render.running_stages(run)


#: Replies with a stranger's words in them: how each is made of a text.
REPLIES: dict[str, Callable[[TestRun, str], str]] = {
    "stages": _progress,
    "problem": lambda run, text: render.reply_problem(
        commands.Problem(f"Unknown command `{text}` and {text}. There are: x.", text)
    ),
    "command": lambda run, text: _answer_to(f"!testme {text}"),
    "option": lambda run, text: _answer_to(f"!testme --{text}"),
    "stage": lambda run, text: _answer_to(f"!testme --stages {text}"),
    "two": lambda run, text: _answer_to(f"!testme approve 1a2b3c4 {text}\n\n!testme {text}"),
    "help": lambda run, text: render.reply_help(),
    "outsider": lambda run, text: render.reply_outsider(f"{text}/{text}"),
    "unseen": lambda run, text: render.reply_unseen(f"{text}/{text}"),
    "needs sha": lambda run, text: render.reply_needs_sha("1a2b3c4", f"https://git.example.org/{text}"),
    "odd sha": lambda run, text: render.reply_needs_sha(text, f"https://git.example.org/{text}"),
    "unknown sha": lambda run, text: render.reply_unknown_sha(text, text),
    "ambiguous sha": lambda run, text: render.reply_ambiguous_sha(text, text),
    "approve named": lambda run, text: render.reply_approve_named(text, f"https://git.example.org/{text}"),
    "approve other": lambda run, text: render.reply_approve_other(text, text, f"https://git.example.org/{text}"),
    "status": lambda run, text: render.reply_status(TestRun(id=run.pk, state=State.RUNNING, sha=text), 1),
}


def _answer_to(comment: str) -> str:
    problem = commands.parse(comment)
    return render.reply_problem(problem) if isinstance(problem, commands.Problem) else ""


@pytest.mark.parametrize("reply", REPLIES)
@given(text=hostile)
@example(text=ESCAPE)
@example(text="x` ![x](http://evil.example) `")
@profile(some, max_examples=25)
def test_nothing_in_a_reply_acts(run: TestRun, reply: str, text: str) -> None:
    allowed = ("p", "code", "pre", "a", "table", "thead", "tbody", "tr", "th", "td", "strong")
    said = REPLIES[reply](run, text)
    body = f"<!-- cc-ci:reply:1 -->\n@alice: {said}\n"
    page = shown(body)
    assert all(element[0].strip("/") in allowed or element == ("comment", " cc-ci:reply:1 ") for element in page.elements)
    assert all(
        element[1].startswith((f"href={run.url}", f"href={settings.CC_CI.base_url}/docs/", "href=https://git.example.org/"))
        for element in page.elements
        if element[0] == "a"
    )
    assert acts(page)["mention"] <= 1 and acts(page)["link"] == acts(page)["reference"] == acts(page)["address"] == 0
    # Our own lines stand in fences, for people to copy; what they name is what we looked at.
    assert set(raw_commands(said)) <= {
        "!testme",
        "!testme approve",
        "!testme 1a2b3c4",
        *(entry.form for entry in commands.table()),
        *(line for line in raw_commands(said) if re.fullmatch("!testme --stages [a-z,]+", line)),
        *(f"!testme {word}{text}" for word in ("", "approve ") if commit(text)),
    }
    assert commands.parse(body) is None


@given(hostile)
@example(ESCAPE)
@profile(some, max_examples=40)
def test_who_wrote_is_named_and_nobody_else(run: TestRun, text: str) -> None:
    comment: Comment = CommentFactory(author_login=text[:255], pull_request=run.pull_request)
    reporting.enqueue_reply(comment, "There are no runs yet.")
    body = Report.objects.get(comment=comment).wanted["body"]
    assert [element[0] for element in shown(body).elements] == ["comment", "p", "/p"]
    assert commands.parse(body) is None and acts(shown(body))["mention"] <= 1
    assert len(body.splitlines()) == 2


def test_a_status_is_one_line_that_forges_take(run: TestRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(render.HEADLINE, State.FAILED, f"{ESCAPE}{'x ' * 300}")
    run.state = State.FAILED
    text = render.description(run)
    assert len(text) <= 255 and "\n" not in text and "!testme" not in text and "@alice" not in text


def test_a_comment_that_would_be_too_long_leaves_the_rest_to_the_page(run: TestRun) -> None:
    long = ("`@x" * 300 + "\n") * 500
    fill(run, long, State.FAILED)
    run.warnings = [long] * 30
    text = render.report(run)
    assert len(text) < 65_000 and "see the run's page" in text and f"[Log and details]({run.url})" in text
    run.warnings = ["x"] * 1000
    assert render.report(run).count("⚠️ x") == render.MOST_NAMES


def test_nothing_in_an_alert_acts_or_looks_like_a_line_of_ours(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    from infra import alerts
    from infra.models import AlertSent

    sent: list[str] = []
    monkeypatch.setattr(alerts, "_notify", lambda addresses, title, text: sent.append(text) or "")
    settings.CC_CI = settings.CC_CI.model_copy(update={"alerts": ["json://localhost"]})
    alerts.tell("failed", None, f"The upgrade did not begin: {ESCAPE} Use --now, see /srv.", key="1")
    assert len(sent[0].splitlines()) == 1 and "!testme" not in sent[0] and "@alice" not in sent[0] and "http://" not in sent[0]
    assert "Use --now, see /srv." in sent[0], "what people are to type stays as it is"
    alerts.tell("held", None, ["web 1.0 waits.", *(f"> {line}" for line in ESCAPE.splitlines())], key="2")
    assert all(line.startswith(("> ", "web ", ">")) for line in sent[1].splitlines())
    assert AlertSent.objects.get(kind="failed").text == sent[0]
