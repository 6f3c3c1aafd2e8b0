"""What stands on the forge: posted once, found again after a crash, and no noise."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone

from enrollment.fakeforge.faults import Fault, Request, Response
from enrollment.forge_access import rate_limit
from enrollment.models import Repository
from runs import lifecycle, reporting
from runs.models import Report, State, TestRun
from tests.chaos.air import FAIR, Air, Strike
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases, pytest.mark.slow(0.2)]


@pytest.fixture
def run(world: World) -> TestRun:
    world.say("recipes/web")
    world.hear()
    return TestRun.objects.get()


def finish(world: World, run: TestRun, event: str = "pass", **fields: Any) -> None:
    if run.state == State.QUEUED:
        assert lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    assert lifecycle.move(run, event, **fields)
    world.report()


def crash_after(world: World, method: str, part: str) -> list[Request]:
    """The next such write is done, and its answer lost. Gives the list of those that were."""
    hit: list[Request] = []

    def plan(request: Request) -> Fault | None:
        if not hit and request.method == method and part in request.path:
            hit.append(request)
            return Fault(close="after")
        return None

    world.remote.faults = plan
    return hit


def test_one_comment_edited_on_the_way_and_posted_anew_at_the_verdict(world: World, run: TestRun) -> None:
    issue = world.remote.issue("recipes/web", 1)
    (live,) = [row for row in world.remote.comments_of(issue) if row.user_id == world.bot.id]
    assert "is queued" in live.body
    lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    world.report()
    (same,) = [row for row in world.remote.comments_of(issue) if row.user_id == world.bot.id]
    assert same.id == live.id
    assert "is starting" in same.body
    finish(world, run)
    (verdict,) = [row for row in world.remote.comments_of(issue) if row.user_id == world.bot.id]
    assert verdict.id != live.id, "only a new comment notifies people"
    assert "passed" in verdict.body
    assert run.url in verdict.body
    assert "`!testme retry all`" in verdict.body


def test_a_silent_verdict_where_that_is_wished(world: World, run: TestRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "verdict", "edit")
    before = Report.objects.get(kind="run").posted_id
    finish(world, run)
    assert Report.objects.get(kind="run").posted_id == before
    (text,) = world.own_comments("recipes/web")
    assert "passed" in text


def test_a_second_run_of_the_pull_request_still_leaves_one_comment(world: World, run: TestRun) -> None:
    finish(world, run)
    world.say("recipes/web", "!testme retry all")
    world.hear()
    second = TestRun.objects.latest("created_at")
    assert "is queued" in world.own_comments("recipes/web")[0]
    finish(world, second, "fail", reason="the recipe is broken")
    (text,) = world.own_comments("recipes/web")
    assert "the recipe is broken" in text


def test_an_older_runs_end_does_not_speak_over_the_newer(world: World, run: TestRun) -> None:
    world.say("recipes/web", "!testme --extra-tests")
    world.hear()
    newer = TestRun.objects.latest("created_at")
    assert newer != run
    (text,) = world.own_comments("recipes/web")
    assert str(newer.id) in text


@pytest.mark.parametrize("kind", ["reply", "run"])
def test_a_crash_between_the_forges_write_and_ours_posts_nothing_twice(world: World, kind: str) -> None:
    hit = crash_after(world, "POST", "/issues/1/comments")
    world.say("recipes/web", "!testme help" if kind == "reply" else "!testme")
    world.hear()
    assert len(hit) == 1
    assert len(world.own_comments("recipes/web")) == 1
    report = Report.objects.get(kind=kind)
    assert report.posted_digest == reporting._digest(report), "a later try found it by its marker"
    assert report.posted_id


def test_killed_after_the_answer_came_and_before_it_was_written(
    world: World, run: TestRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    original = reporting._post

    def post_and_die(*args: Any) -> None:
        original(*args)
        raise Killed

    lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    lifecycle.move(run, "pass")
    report = Report.objects.get(kind="run")
    monkeypatch.setattr(reporting, "_post", post_and_die)
    with pytest.raises(Killed):
        reporting.send(report.pk)
    assert len(world.own_comments("recipes/web")) == 2, "the old one stands there still"
    monkeypatch.setattr(reporting, "_post", original)
    world.report()
    (text,) = world.own_comments("recipes/web")
    assert "passed" in text


def test_a_double_of_a_worker_that_was_held_up_goes(world: World, run: TestRun) -> None:
    marker = f"{reporting.MARKER}run:{run.id}:verdict"
    world.say("recipes/web", f"<!-- {marker} -->\nfrom a worker that slept for minutes", user="cc-ci")
    finish(world, run)
    (text,) = world.own_comments("recipes/web")
    assert "from a worker" not in text


@pytest.mark.parametrize("kind", ["reply", "run"])
@pytest.mark.parametrize("last", [b"oops", b"[]"])
def test_a_double_that_odd_answers_led_to_goes(world: World, run: TestRun, kind: str, last: bytes) -> None:
    """Posted, and the answer lost; not found in lists that hold nothing, and posted again; the list of doubles is odd, too."""
    air = Air(world.remote, lambda seconds: None)
    lost = [Strike("lost", hang=True)]
    lists = [b"[]"] * (1 if kind == "reply" else 2) + [last]

    def strike(request: Request) -> Strike:
        if request.path.endswith("/issues/1/comments"):
            if request.method == "POST" and lost:
                return lost.pop()
            if request.method == "GET" and not lost and lists:
                body = lists.pop(0)
                return Strike("odd", change=lambda answer: Response(200, body))
        return FAIR

    if kind == "reply":
        world.say("recipes/web", "!testme help")
        world.poll()
    air.strike = strike
    with air.carrying():
        if kind == "reply":
            world.settle()
        else:
            finish(world, run)
        world.report()
    assert not lost and not lists
    marker = f"{reporting.MARKER}{kind}:"
    assert len([text for text in world.own_comments("recipes/web") if marker in text]) == 1


def test_a_comment_that_an_odd_answer_gives_the_number_of_another_stays(world: World, run: TestRun) -> None:
    """In the list of comments the run's first one and a reply have changed numbers."""
    world.say("recipes/web", "!testme help")
    world.hear()
    posted = {row.kind: row.posted_id for row in Report.objects.filter(kind__in=("run", "reply"))}
    swap = {posted["run"]: posted["reply"], posted["reply"]: posted["run"]}
    odd = []

    def mixed(answer: Response) -> Response:
        rows = json.loads(answer.body)
        odd.append([row["id"] for row in rows])
        return Response(200, json.dumps([{**row, "id": swap.get(row["id"], row["id"])} for row in rows]).encode())

    def strike(request: Request) -> Strike:
        is_list = request.method == "GET" and request.path.endswith("/issues/1/comments")
        return Strike("swapped", change=mixed) if is_list and len(odd) < 2 else FAIR

    air = Air(world.remote, lambda seconds: None)
    air.strike = strike
    Report.objects.filter(kind="run").update(posted_id=None, attempted_digest="unknown")  # as when the answer was lost
    with air.carrying():
        finish(world, run)
        world.report()
    assert len(odd) == 2
    texts = world.own_comments("recipes/web")
    assert len([text for text in texts if f"{reporting.MARKER}reply:" in text]) == 1
    assert len([text for text in texts if f"{reporting.MARKER}run:" in text]) == 1


def test_a_reply_is_not_written_over_another(world: World) -> None:
    """A reply whose post was not answered is looked for, and the list gives it the number of an earlier one."""
    world.say("recipes/web", "!testme help")
    world.hear()
    first = Report.objects.get(kind="reply")
    world.say("recipes/web", "!testme status")
    world.poll()
    hit: list[Request] = []
    odd: list[int] = []

    def mixed(answer: Response) -> Response:
        rows = json.loads(answer.body)
        newest = max(row["id"] for row in rows)
        swap = {newest: first.posted_id, first.posted_id: newest}
        odd.append(newest)
        rows = [{**row, "id": swap.get(row["id"], row["id"]), "body": row["body"] + "!"} for row in rows]
        return Response(200, json.dumps(rows).encode())

    def strike(request: Request) -> Strike:
        if request.path.endswith("/issues/1/comments"):
            if request.method == "POST" and not hit:
                hit.append(request)
                return Strike("lost", hang=True)
            if request.method == "GET" and hit and not odd:
                return Strike("swapped", change=mixed)
        return FAIR

    air = Air(world.remote, lambda seconds: None)
    air.strike = strike
    with air.carrying():
        world.settle()
    assert odd
    texts = world.own_comments("recipes/web")
    assert len(texts) == len({text.splitlines()[0] for text in texts}) == 2


def test_others_comments_are_never_deleted(world: World, run: TestRun) -> None:
    theirs = world.say("recipes/web", f"<!-- {reporting.MARKER}run:{run.id}:verdict -->", user="mallory")
    finish(world, run)
    assert theirs.id in [row.id for row in world.remote.comments_of(world.remote.issue("recipes/web", 1))]


def test_a_comment_that_somebody_deleted_is_posted_again(world: World, run: TestRun) -> None:
    (comment,) = world.remote.comments_of(world.remote.issue("recipes/web", 1))[-1:]
    assert comment.id == Report.objects.get(kind="run").posted_id
    world.remote.delete_comment(comment)
    lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    world.report()
    (text,) = world.own_comments("recipes/web")
    assert "is starting" in text


def test_a_dead_forge_delays_the_report_and_nothing_else(world: World, run: TestRun) -> None:
    world.remote.faults = lambda request: Fault(status=503)
    finish(world, run)
    run.refresh_from_db()
    assert run.state == State.PASSED
    report = Report.objects.get(kind="run")
    assert report.tries > 0
    assert report.next_try_at and report.next_try_at > timezone.now()
    assert "503" in report.last_error
    world.remote.faults = None
    rate_limit.forgive(world.forge)  # as if the time had passed for which a forge that is down is left alone
    world.report()
    (text,) = world.own_comments("recipes/web")
    assert "passed" in text


def test_while_the_forge_is_known_to_be_down_it_is_not_asked(world: World, run: TestRun) -> None:
    lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    until = timezone.now() + timedelta(minutes=5)
    type(world.forge).objects.update(backoff_until=until)
    asked = len(world.own_requests())
    world.report()
    assert len(world.own_requests()) == asked
    assert Report.objects.get(kind="run").next_try_at == until


def test_a_status_where_the_token_may_write_one(world: World) -> None:
    world.remote.add_collaborator("recipes/web", world.bot, "write")
    world.say("recipes/web")
    world.hear()
    run = TestRun.objects.get()
    finish(world, run, "fail")
    newest = world.remote.statuses_of("recipes/web", run.sha)[0]
    assert (newest.state, newest.context, newest.target_url) == ("failure", "cc-ci", run.url)


def test_no_noise_where_it_may_not(db: None, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    world = World(tmp_path, "1.22")
    world.connect()
    world.add_recipe("web")
    world.enroll("recipes/web")
    world.say("recipes/web")
    world.hear()
    finish(world, TestRun.objects.get())
    report = Report.objects.get(kind="status")
    assert report.given_up
    assert Repository.objects.get().status_refused_at
    assert len([request for request in world.own_requests() if "/statuses/" in request.path]) == 1
    (text,) = world.own_comments("recipes/web")
    assert "status" not in text
    world.close()


def test_a_renamed_repository_is_followed(world: World, run: TestRun) -> None:
    world.remote.rename_repo("recipes/web", "website")
    finish(world, run)
    world.report()
    (text,) = world.own_comments("recipes/website")
    assert "passed" in text
    assert Repository.objects.get().name == "website"


@pytest.mark.parametrize("taken", [False, True], ids=["the old name leads on", "the old name is another's"])
def test_a_rename_makes_no_second_comment(world: World, run: TestRun, taken: bool) -> None:
    assert len(world.own_comments("recipes/web")) == 1
    world.remote.rename_repo("recipes/web", "website")
    if taken:
        world.add_recipe("web")
    before = len(world.own_requests())
    assert lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    Report.objects.filter(kind="run").update(next_try_at=timezone.now())
    assert reporting.send(Report.objects.get(kind="run").pk)
    (text,) = world.own_comments("recipes/website")
    assert "is starting" in text
    assert not [request for request in world.own_requests()[before:] if request.method in ("POST", "DELETE")]


def test_a_comment_that_has_to_go_is_found_under_the_new_name(world: World, run: TestRun) -> None:
    renamed: list[str] = []

    def plan(request: Request) -> Fault | None:
        if request.method == "DELETE" and not renamed:
            renamed.append(request.path)
            world.remote.rename_repo("recipes/web", "website")
            world.add_recipe("web")
        return None

    world.remote.faults = plan
    finish(world, run)
    world.report()
    (text,) = world.own_comments("recipes/website")
    assert renamed and "passed" in text


def test_what_has_to_go_goes_bit_by_bit(world: World, run: TestRun) -> None:
    """Where the forge fails at every second deletion, each try still gets one further."""
    report = Report.objects.get(kind="run")
    old = [world.remote.comment("recipes/web", 1, world.bot, f"<!-- cc-ci:run:old:{number} -->").id for number in range(4)]
    Report.objects.filter(pk=report.pk).update(stale_ids=old)
    assert lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    left = []
    for _ in range(4):
        asked: list[str] = []

        def second(request: Request, asked: list[str] = asked) -> Fault | None:
            if request.method != "DELETE":
                return None
            asked.append(request.path)
            return Fault(status=500, body="{}") if len(asked) == 2 else None

        world.remote.faults = second
        Report.objects.filter(pk=report.pk).update(next_try_at=timezone.now())
        reporting.send(report.pk)
        left.append(len(Report.objects.get(pk=report.pk).stale_ids))
    assert left == [3, 2, 1, 0]
    assert len(world.own_comments("recipes/web")) == 1


def test_a_verdict_half_sent_when_the_repository_is_renamed_stays(world: World, run: TestRun) -> None:
    """It stands there, but under the old name it is not found: what is then found by its mark is no comment that has to go."""
    assert lifecycle.move(run, "claim", attempt=1, started_at=timezone.now()) and lifecycle.move(run, "pass")
    report = Report.objects.get(kind="run")
    hit = crash_after(world, "DELETE", "/issues/comments/")
    assert not reporting.send(report.pk) and hit
    report.refresh_from_db()
    assert report.attempted_digest and report.stale_ids
    world.remote.rename_repo("recipes/web", "website")
    world.add_recipe("web")  # another one takes its name, and has a pull request of the same number
    Report.objects.filter(pk=report.pk).update(next_try_at=timezone.now(), tries=reporting.ODD_LISTS)
    assert reporting.send(report.pk)
    (text,) = world.own_comments("recipes/website")
    assert "passed" in text and Report.objects.get(pk=report.pk).posted_id == report.posted_id


def test_edits_of_a_running_comment_are_not_a_storm(world: World, run: TestRun) -> None:
    (before,) = world.own_comments("recipes/web")
    Report.objects.update(posted_at=timezone.now() + timedelta(hours=1))
    lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    reporting.send_due()
    report = Report.objects.get(kind="run")
    assert report.next_try_at and report.next_try_at > timezone.now() + reporting.EDIT_EVERY
    assert world.own_comments("recipes/web") == [before]
    assert lifecycle.move(run, "pass")
    reporting.send_due()
    (verdict,) = world.own_comments("recipes/web")
    assert "passed" in verdict, "which does not wait"


def test_a_comment_that_cannot_be_rendered_holds_up_no_other(world: World, run: TestRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    assert lifecycle.move(run, "pass")
    Report.objects.filter(kind="run").update(next_try_at=timezone.now() - timedelta(hours=1))
    with monkeypatch.context() as patch:
        patch.setattr(reporting.render, "report", lambda *_, **__: 1 / 0)
        reporting.send_due()
    comment, status = Report.objects.get(kind="run"), Report.objects.get(kind="status")
    assert comment.tries == 1 and "division" in comment.last_error
    assert status.next_try_at is None and status.wanted["state"] == "success"
    world.report()
    assert "passed" in world.own_comments("recipes/web")[0]


def test_what_comes_while_a_report_is_sent_is_sent_too(world: World, run: TestRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    render = reporting.render.report

    def meanwhile(*args: Any, **more: Any) -> str:
        text = render(*args, **more)
        monkeypatch.setattr(reporting.render, "report", render)
        assert lifecycle.move(run, "pass")
        return text

    monkeypatch.setattr(reporting.render, "report", meanwhile)
    Report.objects.update(posted_at=None)  # long ago
    reporting.send_due()
    assert "is starting" in world.own_comments("recipes/web")[0]
    reporting.send_due()
    assert "passed" in world.own_comments("recipes/web")[0]
