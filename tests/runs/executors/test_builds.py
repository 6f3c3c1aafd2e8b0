"""What Drone does differently from what one expects, and what cc-ci makes of it. Builds run a script here, not a harness."""

from __future__ import annotations

import itertools
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import time_machine
from django.db.models import QuerySet
from django.utils import timezone
from django_q.exceptions import TimeoutException

from enrollment.forges.http import Http
from runs import dispatcher, lifecycle
from runs.executors import builds, engine
from runs.executors.base import ExecutorError
from runs.executors.builds import Known, key_for, params_for
from runs.executors.drone import Drone
from runs.executors.marked_lines import Writer
from runs.executors.select import ENGINES, executor_for
from runs.harness.protocol import Event, FolderState, RunFolder, StageResult, Verdict
from runs.models import FINAL, RemoteExecutor, State, TestRun
from tests.factories import RepositoryFactory
from tests.killing import Killed, killed_at
from tests.runs.executors.conftest import row_for
from tests.runs.executors.fakes import Build, FakeServer, Fault
from tests.runs.executors.scripts import claimed, does_nothing, report_of, reports, run_to_end

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]


@pytest.fixture
def row(fake: FakeServer, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteExecutor:
    monkeypatch.setattr(builds, "SETTLE", timedelta(0))
    fake.script = reports()
    return row_for(fake)


@pytest.fixture
def run(row: RemoteExecutor) -> TestRun:
    return claimed(row)


def fresh(run: TestRun) -> TestRun:
    return TestRun.objects.select_related("executor", "repository__forge").get(pk=run.pk)


def watch(run: TestRun) -> TestRun:
    dispatcher.watch(fresh(run))
    return fresh(run)


def refusal(run: TestRun) -> str:
    with pytest.raises(ExecutorError) as error:
        executor_for(fresh(run)).start(fresh(run))
    return str(error.value)


#: For tests of what both kinds of servers do.
BOTH = pytest.mark.parametrize("fake", ["drone", "woodpecker"], indirect=True)


def cancels(method: str, path: str) -> bool:
    return method == "DELETE" or path.endswith("/cancel")


# --- what travels


@BOTH
def test_a_build_gets_the_parameters_and_no_secret(run: TestRun, fake: FakeServer) -> None:
    TestRun.objects.filter(pk=run.pk).update(stages=["install", "custom", "extra"])
    watch(run)
    (build,) = fake.builds
    assert {name: build.params[name] for name in ("CC_CI_RUN_ID", "CC_CI_ATTEMPT", "STAGES", "EXTRA_TESTS")} == {
        "CC_CI_RUN_ID": str(run.id),
        "CC_CI_ATTEMPT": "1",
        "STAGES": "install,custom",
        "EXTRA_TESTS": "1",
    }
    assert set(build.params) == {"CC_CI_RUN_ID", "CC_CI_ATTEMPT", "STAGES", "EXTRA_TESTS", "CC_CI_REQUEST", "CC_CI_KEY"}
    assert fake.token not in json.dumps(build.params)
    assert len(build.params["CC_CI_REQUEST"]) < 1000
    assert fresh(run).build_url == f"{fake.url}/{fake.page}"


def test_only_the_extra_tests_travel_as_such(run: TestRun) -> None:
    run.stages = ["extra"]
    params = params_for(run)
    assert (params["STAGES"], params["EXTRA_TESTS"]) == ("extra", "1")


def test_each_attempt_has_a_key_of_its_own(run: TestRun) -> None:
    keys = {key_for(run)}
    run.attempt = 2
    keys.add(key_for(run))
    assert len(keys) == 2 and all(len(key) == 64 for key in keys)


def test_a_request_that_no_url_can_carry_is_refused(run: TestRun) -> None:
    import random

    rows = RepositoryFactory._meta.model.objects.filter(pk=run.repository_id)
    rows.update(allowances=[random.Random(n).randbytes(60).hex() for n in range(120)])
    assert "too long" in refusal(run)


# --- the start


@BOTH
def test_a_started_build_is_not_started_again(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    for _ in range(3):
        watch(run)
    assert len(fake.builds) == 1
    assert fresh(run).state == State.RUNNING


@BOTH
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer_makes_no_second_build(run: TestRun, fake: FakeServer, when: str) -> None:
    fake.faults = lambda method, path: Fault(drop=True, after=when == "after") if method == "POST" else None
    assert watch(run).state == State.STARTING
    fake.faults = lambda method, path: None
    run = watch(run)
    assert len(fake.builds) == (1 if when == "after" else 0), "it may still be working on the first request"
    if when == "before":
        with time_machine.travel(timezone.now() + builds.UNANSWERED + timedelta(seconds=1)):
            watch(run)
    watch(run)
    assert len(fake.builds) == 1
    assert fresh(run).state == State.PASSED


@BOTH
def test_who_comes_after_a_killed_create_waits_for_its_build(run: TestRun, fake: FakeServer) -> None:
    def killed(self: Drone, params: dict[str, str]) -> None:
        raise Killed  # sent, and Drone is still working on it

    with mock.patch.object(ENGINES[fake.kind], "create", killed), pytest.raises(Killed):
        watch(run)
    watch(run)
    assert fake.builds == []
    fake.create(params_for(run))
    for _ in range(2):
        watch(run)
    assert (fresh(run).state, len(fake.builds)) == (State.PASSED, 1)


@BOTH
def test_a_build_is_found_behind_many_others_and_with_a_wrong_clock(run: TestRun, fake: FakeServer) -> None:
    fake.clock, fake.script = -3 * 24 * 3600, does_nothing
    mine = fake.create(params_for(run))
    for _ in range(250):
        fake.create({})
    watch(run)
    assert mine and Known.of(RunFolder(run.folder)).number == mine.number
    assert len(fake.of(run.id, 1)) == 1


def test_builds_from_before_the_attempt_are_not_searched(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    with time_machine.travel(timezone.now() - timedelta(days=2)):
        for _ in range(350):
            fake.create({})
    watch(run)
    assert sum(request == "GET /api/repos/ci/runner/builds" for request in fake.requests) == 1


@BOTH
def test_of_a_build_and_its_restart_the_first_counts(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    first = fake.create(params_for(run))
    assert first
    fake.restart(first.number)
    watch(run)
    assert Known.of(RunFolder(run.folder)).number == first.number
    assert [build.status for build in fake.builds] == ["pending", fake.stopped(fake.builds[1])]


@pytest.mark.parametrize(("name", "value"), [("CC_CI_KEY", "x"), ("event", "push")])
def test_a_build_that_somebody_else_started_is_not_ours(run: TestRun, fake: FakeServer, name: str, value: str) -> None:
    fake.script = does_nothing
    foreign = fake.create({**params_for(run), name: value})
    shown = fake.shown
    if name == "event" and foreign:
        fake.shown = lambda build, steps: shown(build, steps) | ({"event": value} if build is foreign else {})  # type: ignore[method-assign]
    watch(run)
    assert Known.of(RunFolder(run.folder)).number == 2
    assert [build.status for build in fake.builds] == ["pending", "pending"]


@BOTH
def test_a_build_that_comes_after_all_is_cancelled(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    fake.faults = lambda method, path: Fault(drop=True, late=True) if method == "POST" else None
    watch(run)
    fake.faults = lambda method, path: None
    with time_machine.travel(timezone.now() + builds.UNANSWERED + timedelta(seconds=1)):
        watch(run)
        fake.finish_late()
        fake.faults = lambda method, path: Fault(drop=True) if cancels(method, path) else None
        watch(run)
        assert fresh(run).state == State.RUNNING, "that the other one cannot be cancelled says nothing of this one"
        fake.faults = lambda method, path: None
    with time_machine.travel(timezone.now() + builds.UNANSWERED + timedelta(minutes=2)):
        watch(run)
    assert [build.status for build in fake.builds] == ["pending", fake.stopped(fake.builds[1])]


def test_a_search_that_takes_long_goes_on_at_the_next_look(
    run: TestRun, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.script = does_nothing
    mine = fake.create(params_for(run))
    for _ in range(250):
        fake.create({})
    pages: list[int] = []
    asked = Drone.builds

    def slowly(self: Drone, page: int) -> list[engine.Build]:
        pages.append(page)
        monkeypatch.setattr(time, "monotonic", lambda: now + 16 * len(pages))
        return asked(self, page)

    now = time.monotonic()
    monkeypatch.setattr(Drone, "builds", slowly)
    assert "1 pages of its builds" in refusal(run)
    watch(run)
    watch(run)
    assert pages == [1, 2, 3]
    assert mine and Known.of(RunFolder(run.folder)).number == mine.number
    assert len(fake.of(run.id, 1)) == 1


def test_runs_of_this_machine_are_looked_at_first(run: TestRun) -> None:
    claimed(run.executor, executor=None, executor_name="")  # type: ignore[arg-type]
    claimed(run.executor)  # type: ignore[arg-type]
    with mock.patch.object(dispatcher, "watch") as watch:
        dispatcher.supervise()
    assert [call.args[0].executor_name for call in watch.call_args_list] == ["", "drone", "drone"]


def test_what_keeps_a_run_from_starting_is_said_once(run: TestRun, fake: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    fake.active = False
    for _ in range(3):
        watch(run)
    RemoteExecutor.objects.update(failures=3, open_until=timezone.now() + timedelta(seconds=20))
    for second in range(3):
        with time_machine.travel(timezone.now() + timedelta(seconds=second)):
            watch(run)
    said = [record.getMessage() for record in caplog.records if record.name == "runs.dispatcher"]
    assert ["disabled" in text for text in said] == [True, False]


def test_the_build_of_another_attempt_is_another(run: TestRun, fake: FakeServer) -> None:
    watch(run)
    TestRun.objects.filter(pk=run.pk).update(attempt=2)
    watch(run)
    assert [build.params["CC_CI_ATTEMPT"] for build in fake.builds] == ["1", "2"]


def test_a_server_that_fails_is_left_alone_for_a_while(run: TestRun, fake: FakeServer) -> None:
    fake.faults = lambda method, path: Fault(status=500)
    for _ in range(8):
        refusal(run)
    assert len(fake.requests) == engine.OPENS_AFTER
    fake.faults = lambda method, path: None
    with time_machine.travel(timezone.now() + timedelta(minutes=1)):
        assert watch(run).executor.failures == 0  # type: ignore[union-attr]


def test_an_executor_that_was_removed_ends_its_runs(run: TestRun) -> None:
    TestRun.objects.update(executor=None)  # the database does not protect it against SQL
    run = watch(run)
    assert (run.state, "was removed" in run.reason) == (State.ERRORED, True)


# --- the end


@BOTH
def test_signed_results_end_a_run_and_are_kept_here(run: TestRun, fake: FakeServer) -> None:
    watch(run)
    run = watch(run)
    assert run.state == State.PASSED
    assert list(run.events.filter(seq__isnull=False).values_list("kind", flat=True)) == ["begun", "step"]
    assert run.log == "+ git fetch origin\nhello\n"
    assert [row.name for row in run.stage_results.all()] == ["install", "custom"]
    fake.builds.clear()
    assert executor_for(fresh(run)).observe(run).state is FolderState.FINISHED  # type: ignore[arg-type]


def test_a_failure_is_the_recipes_only_if_the_harness_says_so(row: RemoteExecutor, fake: FakeServer) -> None:
    fake.script = reports(Verdict.FAILED, reason="1 test failed")
    run = claimed(row)
    watch(run)
    assert watch(run).state == State.FAILED
    fake.script = lambda fake, build: run_to_end(fake, build, ["sh: cc-ci: not found\n"], "failure")
    run = claimed(row)
    for _ in range(6):
        run = watch(run)
    assert (run.state, run.attempt) == (State.ERRORED, 2)
    assert "ended as failure, and its log has no report of the harness" in run.reason
    assert "not the recipe's fault" in run.reason


@BOTH
@pytest.mark.parametrize("status", ["running", "waiting_on_dependencies", "blocked", "resting", ""])
def test_unknown_and_unfinished_states_count_as_running(run: TestRun, fake: FakeServer, status: str) -> None:
    fake.script = does_nothing
    watch(run)
    fake.builds[0].status = status
    assert watch(run).state == State.RUNNING


def test_a_report_counts_only_once_build_and_step_have_ended(run: TestRun, fake: FakeServer) -> None:
    watch(run)
    (build,) = fake.builds
    build.status = build.step.status = "running"
    assert watch(run).state == State.RUNNING, "a test that knows the key could have printed it"
    build.status = build.step.status = "success"
    assert watch(run).state == State.PASSED


@BOTH
@pytest.mark.parametrize("verdict", [Verdict.PASSED, Verdict.FAILED])
@pytest.mark.parametrize("status", ["success", "failure", "killed", "error"])
def test_a_report_that_contradicts_the_build_is_none(run: TestRun, fake: FakeServer, verdict: Verdict, status: str) -> None:
    fake.script = does_nothing
    watch(run)
    run_to_end(fake, fake.builds[0], report_of(fake.builds[0], verdict), status)
    run = watch(run)
    agree = status == ("success" if verdict is Verdict.PASSED else "failure")
    assert (run.state, run.attempt) == ((verdict, 1) if agree else (State.QUEUED, 2))


@BOTH
@pytest.mark.parametrize("status", ["killed", "error"])
def test_a_step_that_did_not_end_by_itself_reports_nothing(run: TestRun, fake: FakeServer, status: str) -> None:
    watch(run)
    fake.builds[0].step.status = status
    assert watch(run).attempt == 2


@BOTH
def test_a_running_steps_log_is_shown_as_it_comes(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    watch(run)
    (build,) = fake.builds
    build.status = build.step.status = "running"
    lines = report_of(build)
    build.step.lines += ["hello\n", *lines[:2]]
    run = watch(run)
    assert run.log.endswith("hello\n")
    assert run.events.filter(seq__isnull=False).count() == 2
    build.step.lines += ["bye\n", *lines[2:]]
    run = watch(run)
    assert run.log.endswith("hello\nbye\n")


@pytest.mark.parametrize("what", ["cut", "forged", "other run", "first attempt", "nothing", "beginning lost"])
def test_there_is_no_verdict_without_evidence(run: TestRun, fake: FakeServer, what: str) -> None:
    def script(fake: FakeServer, build: Build) -> None:
        lines = report_of(build)
        if what == "cut":
            lines = lines[:-1]
        elif what == "forged":
            lines = report_of(build, key="0" * 64)
        elif what == "other run":
            lines = [line.replace(build.params["CC_CI_RUN_ID"], "0" * 36) for line in lines]
        elif what == "first attempt":
            lines = first if build.params["CC_CI_ATTEMPT"] == "2" else lines[:-1]
        elif what == "nothing":
            lines = []
        else:
            lines = [*lines[:2], *["x" * 99_999 + "\n"] * 60, *lines[2:]]
        run_to_end(fake, build, lines)

    first = report_of(Build(1, {"CC_CI_KEY": key_for(run), "CC_CI_RUN_ID": str(run.id), "CC_CI_ATTEMPT": "1"}, 0))
    fake.script = script
    for _ in range(6):
        run = watch(run)
    assert (run.state, run.attempt) == (State.ERRORED, 2)
    assert len(fake.builds) == 2
    assert not run.stage_results.exists()


def test_results_of_another_commit_are_none_of_this_run(run: TestRun, fake: FakeServer) -> None:
    fake.script = reports(sha="f" * 40)
    watch(run)
    run = watch(run)
    assert (run.state, "not " + run.short_sha in run.reason) == (State.ERRORED, True)


def test_results_of_another_version_say_so(run: TestRun, fake: FakeServer) -> None:
    def script(fake: FakeServer, build: Build) -> None:
        writer = build.writer()
        lines = writer.results('{"schema_version": 2, "novel": 1}') + writer.end()
        run_to_end(fake, build, [f"{line}\n" for line in lines])

    fake.script = script
    watch(run)
    run = watch(run)
    assert (run.state, "another version" in run.reason) == (State.ERRORED, True)


@BOTH
@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=502, body="<html>"), Fault(drop=True), Fault(200, "[")])
def test_trouble_while_it_runs_is_waited_out(run: TestRun, fake: FakeServer, fault: Fault) -> None:
    watch(run)
    fake.faults = lambda method, path: fault
    for _ in range(3):
        assert watch(run).state == State.RUNNING
    fake.faults = lambda method, path: None
    with time_machine.travel(timezone.now() + timedelta(minutes=2)):
        assert watch(run).state == State.PASSED


def test_a_clock_that_was_set_back_holds_nothing_up(run: TestRun, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.script = does_nothing
    watch(run)
    monkeypatch.setattr(builds, "SOONEST", 2.0)
    with time_machine.travel(timezone.now() + timedelta(hours=1)):
        watch(run)
    run_to_end(fake, fake.builds[0], report_of(fake.builds[0]))
    assert watch(run).state == State.PASSED


@BOTH
def test_a_token_that_is_changed_has_some_minutes_and_then_words(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    watch(run)
    fake.token = "another"
    assert watch(run).state == State.RUNNING
    with time_machine.travel(timezone.now() + builds.PATIENCE + timedelta(seconds=1)):
        run = watch(run)
    assert (run.state, "does not accept the token" in run.reason) == (State.ERRORED, True)
    assert cancels(*fake.requests[-1].split()) or "/lookup/" in fake.requests[-1], "stopped where that is possible"


def test_a_token_that_is_changed_in_time_costs_nothing(run: TestRun, fake: FakeServer) -> None:
    watch(run)
    fake.token, old = "another", fake.token
    watch(run)
    fake.token = old
    assert watch(run).state == State.PASSED


@pytest.mark.parametrize("name", ["url", "repository"])
def test_an_executor_that_points_elsewhere_meanwhile_touches_no_build_there(
    run: TestRun, fake: FakeServer, name: str, tmp_path: Path
) -> None:
    fake.script = does_nothing
    watch(run)
    other = FakeServer(tmp_path / "other", does_nothing)
    try:
        other.repository = "ci/other" if name == "repository" else fake.repository
        other.create({})
        fake.repository = other.repository
        RemoteExecutor.objects.update(**{name: getattr(other, name)})
        run = watch(run)
        assert (run.state, "was changed from" in run.reason) == (State.ERRORED, True)
        assert not [request for request in fake.requests + other.requests if cancels(*request.split())]
    finally:
        other.close()


# --- the time limit


def running(fake: FakeServer, build: Build) -> None:
    build.status = build.step.status = "running"
    build.started = 1


@pytest.mark.parametrize("how", ["adopted", "garbled"])
def test_the_limit_of_a_build_without_a_request_begins_when_it_was_found(run: TestRun, fake: FakeServer, how: str) -> None:
    fake.script = running
    if how == "adopted":
        fake.create(params_for(run))
    else:
        fake.faults = lambda method, path: Fault(status=200, body="{", after=True) if method == "POST" else None
        watch(run)
        fake.faults = lambda method, path: None
    for _ in range(2):
        run = watch(run)
    assert executor_for(fresh(run)).longest(run) < timedelta(hours=4)
    assert len(fake.builds) == 1


@pytest.mark.parametrize("error", [OverflowError, TimeoutException])
def test_the_limit_holds_though_watching_and_killing_fail(error: type[BaseException], run: TestRun, fake: FakeServer) -> None:
    """`TimeoutException` is django-q's, when a task's time is over."""
    fake.script = running
    for _ in range(2):
        watch(run)
    fails = mock.patch.multiple(Drone, build=mock.Mock(side_effect=error), cancel=mock.Mock(side_effect=error))
    with fails, pytest.raises(error):
        watch(run)
    assert fresh(run).state == State.RUNNING
    with time_machine.travel(timezone.now() + timedelta(hours=5)), fails, pytest.raises(error):
        watch(run)
    assert fresh(run).state == State.TIMED_OUT


def test_numbers_that_no_column_takes_are_left_out(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    watch(run)
    writer, build = fake.builds[0].writer(), fake.builds[0]
    event = Event(seq=10**30, at=timezone.now(), kind="step").model_dump_json()
    lines = [f"{line}\n" for line in writer.event(event)]
    run_to_end(fake, build, [*lines, *report_of(build, writer=writer, level={"value": 10**30})])
    run = watch(run)
    assert (run.state, run.level) == (State.PASSED, 5)
    assert list(run.events.filter(seq__isnull=False).values_list("seq", flat=True)) == [1, 2]


def test_artefacts_have_names_of_their_own(run: TestRun, fake: FakeServer) -> None:
    names = [
        ".",
        "..",
        "results.json",
        "build-x.log",
        "lock",
        "a b",
        "é.txt",
        "-x",
        "junit.xml",
        "junit.xml",
        "log.txt",
        "log.txt.gz",
    ]
    fake.script = reports(artefacts=[{"name": name, "kind": "log"} for name in names], files=dict.fromkeys(names, b"mine"))
    watch(run)
    run = watch(run)
    assert run.state == State.PASSED
    assert set(run.artefacts.values_list("name", flat=True)) == {"results.json", "junit.xml"}, "an archive has log.txt once"
    assert bytes(run.artefacts.get(name="junit.xml").data) == b"mine"
    assert run.log == "+ git fetch origin\nhello\n"


@BOTH
def test_a_build_that_was_deleted_is_lost(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    watch(run)
    fake.builds.clear()
    assert watch(run).attempt == 2


@BOTH
def test_a_build_that_no_runner_takes_is_given_up(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    watch(run)
    with time_machine.travel(timezone.now() + builds.QUEUED + timedelta(minutes=1)):
        run = watch(run)
    assert (run.state, "was taken by no runner" in run.reason) == (State.ERRORED, True)
    assert fake.builds[0].status == fake.stopped(fake.builds[0])


@BOTH
@pytest.mark.parametrize("lost", ["", "before", "after"])
def test_a_build_without_end_is_killed(run: TestRun, fake: FakeServer, lost: str) -> None:
    """Though the server closes the connection under the request: after the run's end nobody would ask again."""
    fake.script = running
    watch(run)
    assert watch(run).state == State.RUNNING
    faults = iter([Fault(drop=True, after=lost == "after")] if lost else [])
    fake.faults = lambda method, path: next(faults, None) if cancels(method, path) else None
    with time_machine.travel(timezone.now() + timedelta(hours=4)):
        assert watch(run).state == State.TIMED_OUT
    assert fake.builds[0].status == fake.stopped(fake.builds[0])


# --- stopping


@BOTH
def test_cancel_stops_the_build_and_late_results_change_nothing(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    watch(run)
    lifecycle.want_stop(run, State.CANCELLED, "enough")
    watch(run)
    assert fake.builds[0].status == fake.stopped(fake.builds[0])
    run = watch(run)
    assert (run.state, run.reason) == (State.CANCELLED, "enough")
    fake.builds[0].status = "running"
    run_to_end(fake, fake.builds[0], report_of(fake.builds[0]))
    dispatcher.supervise()
    assert fresh(run).state == State.CANCELLED
    assert sum(cancels(*request.split()) for request in fake.requests) == 1


@BOTH
def test_a_build_whose_number_never_came_is_stopped_too(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    fake.faults = lambda method, path: Fault(drop=True, after=True) if method == "POST" else None
    watch(run)
    lifecycle.want_stop(run, State.CANCELLED, "enough")
    fake.faults = lambda method, path: None
    for _ in range(3):
        run = watch(run)
    assert (run.state, fake.builds[0].status) == (State.CANCELLED, fake.stopped(fake.builds[0]))


# --- killed at any step


#: Requests, writes to the folder, and writes to the database.
STEPS: list[tuple[Any, str]] = [
    (Http, "_once"),
    (builds, "write_atomically"),
    (RunFolder, "write_results"),
    (QuerySet, "update"),
    (QuerySet, "create"),
    (QuerySet, "bulk_create"),
]


@BOTH
@pytest.mark.slow(6)
@pytest.mark.parametrize("cancelled", [False, True])
def test_killed_at_any_step_it_is_one_build_and_one_verdict(row: RemoteExecutor, fake: FakeServer, cancelled: bool) -> None:
    all_steps: set[str] = set()
    if cancelled:
        fake.script = does_nothing
    for step in itertools.count():
        run, steps, killed = claimed(row), [], None  # type: ignore[var-annotated]
        if cancelled:
            TestRun.objects.filter(pk=run.pk).update(stop_wanted="")
        with killed_at(step, steps, STEPS):
            try:
                watch(run)
                if cancelled:
                    lifecycle.want_stop(run, State.CANCELLED, "enough")
                for _ in range(3):
                    if fresh(run).state not in FINAL:
                        watch(run)
            except Killed as error:
                killed = error
        all_steps.update(steps)
        if cancelled and fresh(run).state not in FINAL:
            lifecycle.want_stop(run, State.CANCELLED, "enough")
        with time_machine.travel(timezone.now() + builds.UNANSWERED + timedelta(seconds=1)):
            for _ in range(5):
                if fresh(run).state not in FINAL:
                    watch(run)
        run = fresh(run)
        made = fake.of(run.id, 1)
        if cancelled:
            assert run.state == State.CANCELLED, f"killed {killed}"
            assert len(made) <= 1 and all(build.status == fake.stopped(build) for build in made), f"killed {killed}"
        else:
            assert (run.state, run.attempt, len(made)) == (State.PASSED, 1, 1), f"killed {killed}"
            assert run.events.filter(seq__isnull=False).count() == 2
        if not killed:
            break
    assert step > 15
    assert {"before Http._once", "after Http._once", "after builds.write_atomically"} <= {
        name.replace("runs.executors.", "") for name in all_steps
    }


@pytest.mark.parametrize("stages", [["install"], ["install", "custom", "extra"], []])
def test_a_report_of_other_stages_than_were_asked_for_does_not_count(run: TestRun, fake: FakeServer, stages: list[str]) -> None:
    """Such as from a pipeline that sets STAGES itself, or passes EXTRA_TESTS on to nobody."""
    fake.script = reports(stages=[StageResult(name=name, status="passed") for name in stages])
    watch(run)
    run = watch(run)
    assert (run.state, "not install, custom" in run.reason) == (State.ERRORED, True)


# --- what is left, and what is no JSON


@BOTH
def test_logs_that_are_longer_than_any_report_are_not_read(
    run: TestRun, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 steps of 32 MB each would take more memory than a machine has."""
    monkeypatch.setattr(builds, "LOGS", 20_000)
    fake.script = lambda fake, build: run_to_end(fake, build, ["x" * 99 + "\n"] * 300 + report_of(build))
    watch(run)
    run = watch(run)
    assert (run.state, "the logs of build 1 have more than" in run.reason) == (State.ERRORED, True)
    assert not run.log


@BOTH
def test_a_build_that_comes_after_its_runs_end_is_cancelled_by_the_next_search(
    run: TestRun, fake: FakeServer, row: RemoteExecutor
) -> None:
    fake.script = does_nothing
    params = params_for(run)
    TestRun.objects.filter(pk=run.pk).update(state=State.CANCELLED)
    fake.create(params)
    fake.create({**params, "CC_CI_KEY": "0" * 64})
    fake.create({**params, "CC_CI_RUN_ID": "x"})
    fake.create({**params, "CC_CI_ATTEMPT": "one"})
    watch(claimed(row))
    assert [build.status for build in fake.builds] == [fake.stopped(fake.builds[0]), *["pending"] * 4]


def test_the_build_of_an_attempt_that_works_is_left_alone(run: TestRun, fake: FakeServer, row: RemoteExecutor) -> None:
    fake.script = does_nothing
    watch(run)
    watch(claimed(row))
    assert [build.status for build in fake.builds] == ["pending", "pending"]
    TestRun.objects.filter(pk=run.pk).update(attempt=2)
    watch(claimed(row))
    assert [build.status for build in fake.builds] == ["killed", "pending", "pending"]


#: What `report_of` says, and what is said in its place.
ODD = {
    "17.25": ("NaN", "Infinity", "-Infinity", "1e999"),
    "2026-01-01T00:00:00Z": ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2026-01-01T00:00:00"),
}


@pytest.mark.parametrize(("usual", "odd"), [(usual, odd) for usual, odds in ODD.items() for odd in odds])
def test_results_with_what_no_database_stores_are_refused(run: TestRun, fake: FakeServer, usual: str, odd: str) -> None:
    def script(fake: FakeServer, build: Build) -> None:
        stages = [{"name": name, "status": "passed", "seconds": 17.25} for name in ("install", "custom")]
        lines = report_of(build, stages=stages, writer=Odd(build.writer()))  # type: ignore[arg-type]
        run_to_end(fake, build, lines)

    class Odd:
        def __init__(self, writer: Writer) -> None:
            self.writer, self.file, self.end = writer, writer.file, writer.end

        def event(self, text: str) -> list[str]:
            return self.writer.event(text.replace('"data":{}', '"data":{"x":17.25}').replace(usual, odd))

        def results(self, text: str) -> list[str]:
            return self.writer.results(text.replace(usual, odd))

    fake.script = script
    watch(run)
    run = watch(run)
    assert (run.state, "cannot be read" in run.reason) == (State.ERRORED, True)
    assert not run.events.filter(seq__isnull=False).exists()
