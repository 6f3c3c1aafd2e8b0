"""Scheduled runs: what is tested, once a night, behind people's runs; what is reported, once, and to whom."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from controlplane.cli import Exit
from enrollment.fakeforge.faults import Fault
from enrollment.forge_access.rate_limit import forgive
from enrollment.models import Forge, Repository
from infra.models import AlertSent
from runs import lifecycle, outcomes, reporting, scheduled, tasks, track_record
from runs.models import Report, ScheduledRun, State, TestRun
from tests.factories import CaseResultFactory, RepositoryFactory, StageResultFactory, TestRunFactory
from tests.world import WEB, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.6)]

NIGHT = date(2026, 11, 25)
VERSION = "1.0.0+1.36.1"
Kind = ScheduledRun.Kind
END = {"passed": "pass", "failed": "fail", "errored": "error", "timed_out": "time_out", "cancelled": "cancel"}


@pytest.fixture(autouse=True)
def config(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def change(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setattr(settings.CC_CI, name, value)

    change(schedule="nightly", schedule_window="00:00-24:00")
    monkeypatch.setattr(scheduled.nights, "fraction", lambda number: 0.0)
    return change


@pytest.fixture
def web(world: World) -> Repository:
    """The recipe `web`, with a published version 1.1.0+2 behind its default branch, and tags that are none."""
    for name, annotated in (("1.0.0+1", True), ("1.1.0+2", True), ("9.0.0+9", False), ("<script>@alice", True), ("v2", True)):
        world.remote.tag("recipes/web", name, annotated=annotated)
    world.remote.push("recipes/web", "main", {"more.txt": "more\n"}, "More", "alice")
    return Repository.objects.get(name="web")


def end(run: TestRun, state: str) -> None:
    lifecycle.move(run, "claim", attempt=1, started_at=timezone.now())
    assert lifecycle.move(run, END[state], reason="" if state == "passed" else "The app <b>@alice</b> did not start.")


def turn(row: Repository, state: str, kind: str = Kind.BRANCH) -> ScheduledRun:
    """One more scheduled run of this kind that ends this way, and is settled."""
    run = TestRunFactory(repository=row, pull_request=None, scheduled=True)
    made = ScheduledRun.objects.create(repository=row, kind=kind, run=run, version="1.1.0+2" if kind == Kind.VERSION else "")
    end(run, state)
    scheduled.settle()
    made.refresh_from_db()
    return made


# --- what is started


def test_the_default_branch_and_the_newest_published_version_are_run(world: World, web: Repository) -> None:
    assert scheduled.start_due(timezone.now()) == 2
    branch, version = (ScheduledRun.objects.get(kind=kind) for kind in (Kind.BRANCH, Kind.VERSION))
    assert (version.version, version.run.ref) == ("1.1.0+2", "refs/tags/1.1.0+2")
    assert branch.run.ref == "refs/heads/main" and branch.run.sha != version.run.sha
    for run in (branch.run, version.run):
        assert run.scheduled and run.trusted and run.pull_request is None and "extra" not in run.stages
    assert not Report.objects.exists(), "nobody asked, so nobody is told, and the commit keeps its status"


def test_one_run_counts_for_both_when_they_are_one_commit(world: World, web: Repository) -> None:
    world.remote.tag("recipes/web", "2.0.0+3")
    assert scheduled.start_due(timezone.now()) == 1
    assert ScheduledRun.objects.count() == 2 and TestRun.objects.count() == 1


def test_a_recipe_without_a_version_is_asked_for_one_once_a_night(world: World) -> None:
    assert scheduled.start_due(timezone.now()) == 1
    asked = len(world.own_requests())
    assert scheduled.start_due(timezone.now()) == 0
    assert len(world.own_requests()) == asked
    assert ScheduledRun.objects.get(kind=Kind.VERSION).note == "There is no published version."


@pytest.mark.both_databases
def test_never_twice_a_night(world: World, web: Repository) -> None:
    now = timezone.now()
    for _ in range(2):
        scheduled.start_due(now)
    for run in TestRun.objects.all():
        end(run, "passed")
    scheduled.start_due(now)
    assert TestRun.objects.count() == 2
    with pytest.raises(IntegrityError), transaction.atomic():
        ScheduledRun.objects.create(repository=web, kind=Kind.BRANCH, night=ScheduledRun.objects.first().night)
    scheduled.start_due(now + timedelta(days=1))
    assert TestRun.objects.count() == 4, "the same commit again: images move"


def test_a_night_waits_for_the_runs_of_the_one_before(world: World, web: Repository) -> None:
    scheduled.start_due(timezone.now())
    asked = len(world.own_requests())
    assert scheduled.start_due(timezone.now() + timedelta(days=1)) == 0
    assert TestRun.objects.count() == 2
    assert len(world.own_requests()) == asked, "nor is the forge asked every few minutes while they wait"


@pytest.mark.parametrize("place", ["the run", "the row"])
def test_killed_between_the_row_and_the_run_nothing_is_lost(
    world: World, web: Repository, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """SIGKILL rolls the transaction back, as an exception does."""
    owner, name = (outcomes, "create_run") if place == "the run" else (ScheduledRun.objects, "create")
    write = getattr(owner, name)

    def killed(*args: Any, **more: Any) -> None:
        write(*args, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            scheduled.start(web, extra=False, by="x", night=NIGHT)
    assert not TestRun.objects.exists() and not ScheduledRun.objects.exists()
    assert len(scheduled.start(web, extra=False, by="x", night=NIGHT)) == 2


def test_a_forge_that_is_down_is_asked_again_in_the_next_step(world: World, web: Repository) -> None:
    world.remote.faults = lambda request: Fault(status=502) if "/branches/" in request.path else None
    assert scheduled.start_due(timezone.now()) == 0 and not ScheduledRun.objects.exists()
    world.remote.faults = None
    assert scheduled.start_due(timezone.now()) == 2


@pytest.mark.parametrize("how", ["the forge cannot read it", "an error of ours"])
def test_one_repository_does_not_keep_the_others_from_their_turn(
    world: World, web: Repository, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The first by name, for which nothing ever works."""
    [bad] = world.enroll(world.add_recipe("a-broken-one"))
    start = scheduled.start

    def odd(row: Repository, **more: Any) -> list[TestRun]:
        if row == bad:
            raise ValueError("what nobody foresaw")
        return start(row, **more)

    if how == "an error of ours":
        monkeypatch.setattr(scheduled, "start", odd)
    else:
        world.remote.faults = lambda request: Fault(status=500) if "/a-broken-one/branches" in request.path else None
    for _ in range(100):
        if scheduled.start_due(timezone.now()):
            break
        forgive(web.forge)
        Forge.objects.update(backoff_until=None)
    assert set(TestRun.objects.values_list("repository", flat=True)) == {web.pk}


def test_an_unwatched_repository_or_disabled_forge_has_no_turn(
    world: World, web: Repository, config: Callable[..., None]
) -> None:
    Repository.objects.update(active=False)
    assert scheduled.start_due(timezone.now()) == 0
    assert scheduled.start(web, extra=False, by="x", night=NIGHT) == [], "unwatched while the forge was asked"
    Repository.objects.update(active=True)
    Forge.objects.update(enabled=False)
    assert scheduled.start_due(timezone.now()) == 0
    Forge.objects.update(enabled=True)
    config(schedule="never")
    assert scheduled.start_due(timezone.now()) == 0


def test_a_renamed_repository_is_found_by_its_id(world: World, web: Repository) -> None:
    world.remote.rename_repo("recipes/web", "site")
    world.remote.add_repo("recipes", "web", files={"evil.txt": "x"})
    assert scheduled.start_due(timezone.now()) == 2
    web.refresh_from_db()
    assert web.name == "site"
    assert ScheduledRun.objects.get(kind=Kind.VERSION).version == "1.1.0+2"


def test_with_extra_tests(world: World, web: Repository, config: Callable[..., None]) -> None:
    config(schedule_extra_tests=True)
    scheduled.start_due(timezone.now())
    assert all("extra" in run.stages for run in TestRun.objects.all())


def test_run_all_twice_queues_nothing_twice(world: World, web: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("run_all", "--json")
    [entry] = json.loads(capsys.readouterr().out)
    assert entry["repository"] == "recipes/web" and len(entry["runs"]) == 2 and not entry["error"]
    call_command("run_all")
    assert capsys.readouterr().out == "0 runs queued for 1 recipes.\n"
    call_command("run_all", "--extra-tests")
    assert TestRun.objects.count() == 4, "with extra tests it is something else"
    Repository.objects.update(forge_repo_id=999)
    with pytest.raises(Exit) as stop:
        call_command("run_all")
    assert stop.value.code == 2


def test_a_scheduled_run_of_a_version_is_evidence_for_it(world: World, web: Repository) -> None:
    scheduled.start_due(timezone.now())
    run = ScheduledRun.objects.get(kind=Kind.VERSION).run
    TestRun.objects.filter(pk=run.pk).update(details={"version": "1.1.0+2"})
    run.refresh_from_db()
    end(run, "passed")
    assert track_record.version_evidence("web", "1.1.0+2")["passed"]


@pytest.mark.slow(5)
def test_a_published_version_passes_from_the_schedule_to_the_evidence(world: World, config: Callable[..., None]) -> None:
    """With a real harness, which fetches the tag."""
    config(deployer="process")
    Repository.objects.update(active=False)
    name = world.add_recipe("process-web", files=WEB)
    world.enroll(name)
    world.remote.tag(name, VERSION)
    assert scheduled.start_due(timezone.now()) == 1
    world.run_all()
    assert scheduled.settle() == 2
    run = TestRun.objects.get()
    assert run.state == State.PASSED, run.reason
    assert run.details["version"] == VERSION and track_record.version_evidence("process-web", VERSION)["commit"] == run.sha
    assert not Report.objects.exists() and not AlertSent.objects.exists()


# --- what is reported


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ("", "failed", "worse"),
        ("", "passed", ""),
        ("passed", "timed_out", "worse"),
        ("failed", "timed_out", ""),
        ("timed_out", "passed", "better"),
        ("passed", "errored", ""),
        ("failed", "cancelled", ""),
    ],
)
def test_what_counts_as_a_change(before: str, now: str, change: str) -> None:
    assert scheduled.change_of(before, now) == change


def test_an_alert_is_sent_when_the_verdict_changes_and_only_then() -> None:
    row = RepositoryFactory()
    changes = [turn(row, state).change for state in ("passed", "failed", "errored", "failed", "passed", "passed")]
    assert changes == ["", "worse", "", "", "better", ""]
    texts = list(AlertSent.objects.order_by("id").values_list("text", flat=True))
    assert len(texts) == 2 and "the scheduled test of the default branch failed" in texts[0] and "passed" in texts[1]
    assert "@alice" not in texts[0] and AlertSent.objects.first().page.startswith(settings.CC_CI.base_url)


def test_each_kind_is_compared_with_itself() -> None:
    row = RepositoryFactory()
    assert turn(row, "failed").change == "worse"
    assert turn(row, "passed", Kind.VERSION).change == ""
    assert turn(row, "failed", Kind.VERSION).change == "worse"
    assert turn(row, "passed").change == "better"


def test_killed_between_the_alert_and_its_record_one_alert_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    row, ask = RepositoryFactory(), scheduled.registry.ask

    def killed(*args: Any, **more: Any) -> None:
        ask(*args, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduled.registry, "ask", killed)
    with pytest.raises(KeyboardInterrupt):
        turn(row, "failed")
    monkeypatch.undo()
    assert scheduled.settle() == 1 and scheduled.settle() == 0
    assert AlertSent.objects.count() == 1 and ScheduledRun.objects.get().change == "worse"


def issues(world: World) -> list[Any]:
    repo = world.remote.repo("recipes/web").id
    return [row for row in world.remote.tables.issues.values() if row.repo_id == repo and row.user_id == world.bot.id]


def test_an_issue_is_opened_and_closed_once(world: World, web: Repository, config: Callable[..., None]) -> None:
    config(schedule_issues=True)
    worse = turn(web, "failed")
    CaseResultFactory(
        stage=StageResultFactory(run=worse.run, status="failed"), status="failed", name="</details>@alice", output="x"
    )
    reporting.enqueue_issue(worse)
    for _ in range(2):
        world.report()
    [issue] = issues(world)
    assert "default branch failed" in issue.title and issue.state == "open"
    assert worse.run.url in issue.body and "@alice" not in issue.body and "<b>" not in issue.body
    turn(web, "passed")
    for _ in range(2):
        world.report()
    assert issues(world)[0].state == "closed"
    assert [comment.count("passed again") for comment in world.own_comments("recipes/web", issue.number)] == [1]
    assert not AlertSent.objects.exists()
    turn(web, "failed")
    world.report()
    assert [row.state for row in issues(world)] == ["closed", "open"]


@pytest.mark.parametrize("lost", ["issues", "comments", "close"])
def test_a_lost_answer_makes_no_second_issue_or_comment(
    world: World, web: Repository, config: Callable[..., None], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Killed right after each of the forge's writes."""
    config(schedule_issues=True)
    name = {"issues": "open_issue", "comments": "post_comment", "close": "close_issue"}[lost]
    from enrollment.forges.gitea.client import GiteaClient

    write = getattr(GiteaClient, name)

    def killed(*args: Any, **more: Any) -> None:
        write(*args, **more)
        raise KeyboardInterrupt

    turn(web, "failed")
    if lost != "issues":
        world.report()
        turn(web, "passed")
    with monkeypatch.context() as patch:
        patch.setattr(GiteaClient, name, killed)
        with pytest.raises(KeyboardInterrupt):
            world.report()
    world.report()
    if lost == "issues":
        turn(web, "passed")
        world.report()
    [issue] = issues(world)
    assert issue.state == "closed" and len(world.own_comments("recipes/web", issue.number)) == 1


def test_passing_again_before_the_issue_was_opened_opens_none(world: World, web: Repository, config: Callable[..., None]) -> None:
    config(schedule_issues=True)
    turn(web, "failed")
    turn(web, "passed")
    world.report()
    assert not issues(world)


def test_an_issue_that_the_forge_refuses_becomes_an_alert(world: World, web: Repository, config: Callable[..., None]) -> None:
    config(schedule_issues=True)
    world.remote.faults = lambda request: (
        Fault(status=403) if (request.method, request.path[-7:]) == ("POST", "/issues") else None
    )
    turn(web, "failed")
    world.report()
    world.report()
    [alert] = AlertSent.objects.all()
    assert "could not be opened" in alert.text and Report.objects.get(kind=Report.Kind.ISSUE).given_up
    turn(web, "passed")
    assert "default branch passed" in AlertSent.objects.latest("id").text, "who was told of the one is told of the other"


def test_an_issue_is_closed_however_long_it_was_open(world: World, web: Repository, config: Callable[..., None]) -> None:
    config(schedule_issues=True)
    turn(web, "failed")
    world.report()
    turn(web, "failed")
    TestRun.objects.update(finished_at=timezone.now() - timedelta(days=settings.CC_CI.keep_days + 1))
    tasks.drop_old_runs()
    turn(web, "passed")
    world.report()
    assert [issue.state for issue in issues(world)] == ["closed"]
    assert tasks.drop_old_runs() == "2 deleted", "then nothing keeps the runs"


def test_an_issues_number_is_not_taken_for_a_comments_id(world: World, web: Repository) -> None:
    report = Report.objects.create(key="issue:1", kind=Report.Kind.ISSUE, repository=web, posted_id=7)
    other = Report.objects.create(key="run:1", kind=Report.Kind.RUN, repository=web)
    reporting._believe(other, [7])
    assert report.posted_id == 7


def test_the_digest_of_a_week_is_sent_once() -> None:
    row = RepositoryFactory()
    for state in ("passed", "failed"):
        CaseResultFactory(stage=StageResultFactory(run=turn(row, state).run, name="custom"), name="test_@alice", status=state)
    turn(row, "passed", Kind.VERSION)
    TestRun.objects.update(sha="a" * 40)
    AlertSent.objects.all().delete()
    now = timezone.now()
    assert scheduled.weekly_digest(now) == "there were no scheduled runs"
    with CaptureQueriesContext(connection) as queries:
        assert scheduled.weekly_digest(now + timedelta(days=7)) == "sent"
    assert not [query for query in queries if '"log"' in query["sql"]], "of a week's runs that would be gigabytes"
    assert scheduled.weekly_digest(now + timedelta(days=7, minutes=1)) == "was sent before"
    text = AlertSent.objects.get(kind="digest").text
    assert text.startswith(
        f"{row.full_name}: default branch failed, version 1.1.0+2 passed; 3 runs; changed: default branch worse on"
    )
    assert "flaky tests: test_" in text and "@alice" not in text


def test_old_rows_without_a_run_are_deleted_with_the_old_runs() -> None:
    row = RepositoryFactory()
    for night in (NIGHT, NIGHT + timedelta(days=1)):
        ScheduledRun.objects.create(repository=row, kind=Kind.VERSION, night=night, note="none")
    ScheduledRun.objects.filter(night=NIGHT).update(created_at=timezone.now() - timedelta(days=400))
    tasks.drop_old_runs()
    assert ScheduledRun.objects.count() == 1


def test_errors_of_ours_end_settled_without_a_change() -> None:
    assert turn(RepositoryFactory(), State.CANCELLED).settled_at is not None
