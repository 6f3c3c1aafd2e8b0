"""Runs on their way, with real harness processes: slots, the end, loss, cancel, time limit."""

from __future__ import annotations

import gzip
import json
import os
import signal
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.conf import settings
from django.db import connections
from django.utils import timezone

from controlplane.models import Host
from enrollment.fakeforge import Fault
from enrollment.models import PullRequest
from runs import dispatcher, ingest, lifecycle, outcomes
from runs.executors import local
from runs.executors.base import ExecutorError
from runs.harness.protocol import FolderState, Results, RunFolder
from runs.models import HOLDING, State, TestRun
from tests.factories import CommentFactory, PullRequestFactory, TestRunFactory
from tests.waiting import until
from tests.world import WEB, World

pytestmark = [pytest.mark.django_db, pytest.mark.both_databases, pytest.mark.slow(0.2)]


@pytest.fixture
def recipe(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world with a recipe that runs as plain processes."""
    monkeypatch.setattr(settings.CC_CI, "deployer", "process")
    world.add_recipe("process-web", files=WEB)
    world.enroll("recipes/process-web")
    return world


def ask(world: World, text: str = "!testme") -> TestRun:
    world.say("recipes/process-web", text)
    world.hear()
    return TestRun.objects.latest("created_at")


def begin(world: World, run: TestRun) -> None:
    """Bring it to where the harness runs."""
    dispatcher.dispatch()
    dispatcher.supervise()
    until(lambda: RunFolder(fresh(run).folder).state() is FolderState.RUNNING)
    dispatcher.supervise()
    assert fresh(run).state == State.RUNNING


def fresh(run: TestRun) -> TestRun:
    return TestRun.objects.get(pk=run.pk)


def harness_pid(run: TestRun) -> int:
    return int(json.loads((fresh(run).folder / "begun").read_text())["pid"])


def slow(world: World, seconds: int = 60) -> None:
    """Give the recipe a test that takes long."""
    text = f"import time\n\n\ndef test_slow(app):\n    app.get('/')\n    time.sleep({seconds})\n"
    world.remote.push("recipes/process-web", "change", {"tests/test_slow.py": text}, "Slow", world.alice)


def test_a_recipe_passes_from_the_comment_to_the_answer(recipe: World) -> None:
    run = ask(recipe)
    recipe.run_all()
    run = fresh(run)
    assert run.state == State.PASSED, run.reason
    assert [(stage.name, stage.status) for stage in run.stage_results.all()] == [
        ("install", "passed"),
        *((name, "not_applicable") for name in ("upgrade", "backup", "restore")),
        ("custom", "passed"),
    ]
    assert run.deployer == "process"
    assert run.teardown["clean"]
    assert len(run.details["settings"]) == 64
    assert run.started_at and run.finished_at and run.started_at < run.finished_at
    kinds = [event.kind for event in run.events.all()]
    assert kinds.index("queued") < kinds.index("starting") < kinds.index("stage_started") < kinds.index("passed")
    assert run.log
    (text,) = recipe.own_comments("recipes/process-web")
    assert "passed" in text
    assert recipe.remote.statuses_of("recipes/process-web", run.sha)[0].state == "success"


def test_a_recipe_fails_for_its_own_reason(recipe: World) -> None:
    broken = "def test_wrong(app):\n    assert app.get('/').status_code == 418, 'no teapot here'\n"
    recipe.remote.push("recipes/process-web", "change", {"tests/test_wrong.py": broken}, "Break", recipe.alice)
    run = ask(recipe)
    recipe.run_all()
    assert fresh(run).state == State.FAILED
    (text,) = recipe.own_comments("recipes/process-web")
    assert "no teapot here" in text
    assert "test_wrong" in text


def test_no_secret_of_ours_is_in_the_harness_environment(recipe: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "planted-1")
    monkeypatch.setenv("CC_CI_SECRET_KEYS", "planted-2")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:planted-3@h/x")
    monkeypatch.setenv("SOMETHING_TOKEN", "planted-4")
    slow(recipe)
    run = ask(recipe)
    begin(recipe, run)
    environment = Path(f"/proc/{harness_pid(run)}/environ").read_bytes()
    assert b"planted" not in environment
    for path in fresh(run).folder.rglob("*"):
        if path.is_file():
            assert recipe.token.encode() not in path.read_bytes(), path
    lifecycle.want_stop(run, State.CANCELLED, "enough")
    recipe.run_all()


def test_a_private_recipe_is_cloned_with_the_token_and_it_stays_nowhere(recipe: World) -> None:
    recipe.remote.set_private("recipes/process-web")
    run = ask(recipe)
    recipe.run_all()
    assert fresh(run).state == State.PASSED, fresh(run).reason
    assert fresh(run).repository.private
    for path in fresh(run).folder.rglob("*"):
        if path.is_file():
            assert recipe.token.encode() not in path.read_bytes(), path


def test_cancel_stops_a_run_and_tears_it_down(recipe: World) -> None:
    slow(recipe)
    run = ask(recipe)
    begin(recipe, run)
    family = psutil.Process(harness_pid(run)).children(recursive=True)
    recipe.say("recipes/process-web", "!testme cancel")
    recipe.hear()
    recipe.run_all()
    assert fresh(run).state == State.CANCELLED
    assert "alice" in fresh(run).reason
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    (text,) = recipe.own_comments("recipes/process-web")
    assert "was cancelled" in text


def test_another_question_stops_a_run_and_takes_its_place(recipe: World) -> None:
    slow(recipe)
    old = ask(recipe)
    begin(recipe, old)
    new = ask(recipe, "!testme --stages install,custom,extra")
    assert new != old
    dispatcher.dispatch()
    assert fresh(new).state == State.QUEUED, "one run of a pull request at a time"
    TestRun.objects.filter(pk=new.pk).update(stages=["install"])
    recipe.run_all()
    assert fresh(old).state == State.SUPERSEDED
    assert fresh(new).state == State.PASSED


def test_a_lost_harness_is_tried_once_more(recipe: World) -> None:
    slow(recipe, 3)
    run = ask(recipe)
    begin(recipe, run)
    os.kill(harness_pid(run), signal.SIGKILL)
    recipe.run_all()
    run = fresh(run)
    assert run.state == State.PASSED, run.reason
    assert run.attempt == 2
    assert "was lost" in " ".join(run.events.values_list("text", flat=True))
    assert len(recipe.own_comments("recipes/process-web")) == 1


def test_lost_twice_is_our_error(recipe: World) -> None:
    slow(recipe)
    run = ask(recipe)
    for _ in range(2):
        begin(recipe, run)
        os.kill(harness_pid(run), signal.SIGKILL)
        until(lambda: RunFolder(fresh(run).folder).state() is FolderState.LOST)
        dispatcher.supervise()
    assert fresh(run).state == State.ERRORED
    assert "not the recipe's fault" in fresh(run).reason


def test_nothing_is_left_of_a_killed_harness(recipe: World) -> None:
    slow(recipe)
    run = ask(recipe)
    begin(recipe, run)
    harness = psutil.Process(harness_pid(run))
    family = [harness, *harness.children(recursive=True)]
    harness.kill()

    def gone() -> bool:
        return not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    until(gone)
    lifecycle.want_stop(run, State.CANCELLED, "enough")
    dispatcher.supervise()
    assert fresh(run).state == State.CANCELLED


def test_a_harness_that_does_not_end_in_time_is_killed(recipe: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(recipe)
    run = ask(recipe)
    begin(recipe, run)
    pid = harness_pid(run)
    os.kill(pid, signal.SIGSTOP)  # it cannot keep its own limit
    long_ago = timezone.now() - timedelta(seconds=settings.CC_CI.run_seconds) - local.GRACE - timedelta(seconds=1)
    run.events.filter(kind=State.STARTING).update(at=long_ago)
    dispatcher.supervise()
    assert fresh(run).state == State.TIMED_OUT
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_character_of_the_log_that_is_half_written_waits_for_its_rest(tmp_path: Path) -> None:
    log, text = tmp_path / "log.txt", "größer 🐘\n"
    read, at = "", 0
    for written in range(len(text.encode()) + 1):
        log.write_bytes(text.encode()[:written])
        more, at = local._new_log(log, at)
        read += more
    assert (read, at) == (text, len(text.encode()))


@pytest.mark.django_db(transaction=True)
def test_two_workers_that_start_the_same_run_start_one_harness(recipe: World) -> None:
    slow(recipe, 2)
    run = ask(recipe)
    assert dispatcher._claim() == [run]
    run = fresh(run)

    def start() -> None:
        local.LocalExecutor().start(fresh(run))
        connections.close_all()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    command = f"{run.folder}".encode()
    # Those that came late say so, and end a moment later.
    until(lambda: sum(command in local._command_line(pid) for pid in psutil.pids()) == 1)
    recipe.run_all()
    assert fresh(run).state == State.PASSED
    assert fresh(run).events.filter(kind="begun").count() == 1


@pytest.mark.django_db(transaction=True)
def test_slots_hold_however_many_workers_claim(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "slots", 2)
    for _ in range(6):
        TestRunFactory(state=State.QUEUED, pull_request=None, host="")
    gate, faults = threading.Barrier(4), []

    def claim() -> None:
        try:
            gate.wait()
            dispatcher._claim()
        except BaseException as error:
            faults.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert TestRun.objects.filter(state__in=HOLDING).count() == 2
    assert TestRun.objects.filter(state=State.QUEUED).count() == 4


def test_the_oldest_goes_first(data_dir: Path) -> None:
    newer = TestRunFactory(state=State.QUEUED, created_at=timezone.now(), host="")
    older = TestRunFactory(state=State.QUEUED, created_at=timezone.now() - timedelta(hours=1), host="")
    assert dispatcher._claim() == [older]
    assert fresh(newer).state == State.QUEUED


def test_a_start_that_fails_is_tried_again_and_then_told(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, run: TestRun) -> None:
        raise ExecutorError("no space left")

    monkeypatch.setattr(local.LocalExecutor, "start", fail)
    run = TestRunFactory(state=State.QUEUED, host="")
    dispatcher.dispatch()
    assert fresh(run).state == State.STARTING
    TestRun.objects.update(started_at=timezone.now() - dispatcher.START_PATIENCE - timedelta(seconds=1))
    dispatcher.supervise()
    assert fresh(run).state == State.ERRORED
    assert "no space left" in fresh(run).reason


def test_results_that_cannot_be_read_are_our_error(data_dir: Path) -> None:
    run = TestRunFactory(running=True, host=settings.CC_CI.host, attempt=1)
    run.folder.mkdir(parents=True)
    (run.folder / "results.json").write_text('{"verdict": "splendid"}')
    dispatcher.supervise()
    assert fresh(run).state == State.ERRORED


def test_a_dead_machines_runs_are_taken_away_from_it(data_dir: Path) -> None:
    Host.objects.create(name="gone", ticked_at=timezone.now() - dispatcher.HOST_DEAD - timedelta(seconds=1))
    Host.objects.create(name="alive", ticked_at=timezone.now())
    lost = TestRunFactory(running=True, host="gone")
    kept = TestRunFactory(running=True, host="alive")
    assert dispatcher.forsake_dead_hosts() == [lost]
    assert (fresh(lost).state, fresh(lost).attempt) == (State.QUEUED, 2)
    assert fresh(kept).state == State.RUNNING


# --- taking over


def concluded(verdict: str = "passed", **more: Any) -> Results:
    now = timezone.now().isoformat()
    stages = [{"name": "install", "status": "passed", "cases": [{"name": "test_x\0", "status": "passed", "output": "\ud800"}]}]
    return Results.model_validate({"run_id": "x", "verdict": verdict, "started": now, "finished": now, "stages": stages, **more})


def test_taking_over_the_results_twice_is_once(db: None) -> None:
    run = TestRunFactory(running=True)
    other = fresh(run)
    assert ingest.conclude(run, concluded())
    assert not ingest.conclude(other, concluded("failed"))
    run = fresh(run)
    assert run.state == State.PASSED
    assert run.stage_results.count() == 1
    assert run.stage_results.get().cases.get().name == "test_x\N{REPLACEMENT CHARACTER}"
    assert run.events.filter(kind="passed").count() == 1


def test_a_log_longer_than_a_row_keeps_is_kept_whole(data_dir: Path) -> None:
    run = TestRunFactory(running=True, host=settings.CC_CI.host, attempt=1)
    run.folder.mkdir(parents=True)
    folder, text = RunFolder(run.folder), b"the first line\n" + b"and another\n" * 60_000
    folder.log.write_bytes(text)
    folder.results_file.write_text(concluded(stages=[]).model_dump_json())
    dispatcher.supervise()
    run = fresh(run)
    assert run.state == State.PASSED and len(run.log) == local.LOG_BYTES
    assert gzip.decompress(run.artefacts.get(kind="log").data) == text


def test_a_late_owner_of_an_earlier_attempt_moves_nothing(db: None) -> None:
    run = TestRunFactory(running=True, attempt=1)
    late = fresh(run)
    TestRun.objects.update(attempt=2)
    assert not ingest.conclude(late, concluded("failed"))
    assert fresh(run).state == State.RUNNING
    assert not fresh(run).stage_results.exists()


@pytest.mark.parametrize("state", State.values)
@pytest.mark.parametrize("event", lifecycle.MOVES)
def test_the_table_of_moves_is_kept(db: None, state: str, event: str) -> None:
    run = TestRunFactory(state=state)
    sources, target = lifecycle.MOVES[event]
    assert lifecycle.move(run, event) == (state in sources)
    assert fresh(run).state == (target if state in sources else state)
    assert fresh(run).events.count() == (1 if state in sources else 0)


def test_two_questions_for_one_pull_request_wait_for_each_other(data_dir: Path) -> None:
    pull: PullRequest = PullRequestFactory()
    common = {"sha": "a" * 40, "ref": "x", "requested_by": "alice", "trusted": True, "pull_request": pull}
    outcomes.create_run(pull.repository, stages=("install",), **common)
    TestRun.objects.update(state=State.RUNNING, host="elsewhere")
    outcomes.create_run(pull.repository, stages=("custom",), **common)
    assert dispatcher._claim() == []


# --- pull requests that are closed


@pytest.mark.parametrize("merged", [True, False])
def test_a_run_that_waits_ends_with_its_pull_request(recipe: World, monkeypatch: pytest.MonkeyPatch, merged: bool) -> None:
    monkeypatch.setattr(settings.CC_CI, "slots", 0)
    run, pull = ask(recipe), recipe.remote.pull("recipes/process-web", 1)
    dispatcher.dispatch()
    assert fresh(run).state == State.QUEUED
    recipe.remote.merge_pull(pull, recipe.alice) if merged else recipe.remote.close_pull(pull)
    recipe.poll()
    dispatcher.dispatch()
    assert fresh(run).state == State.CANCELLED
    assert fresh(run).reason == f"The pull request was {'merged' if merged else 'closed'} before the run started."
    recipe.report()
    assert fresh(run).reason in recipe.own_comments("recipes/process-web")[-1]


def test_a_run_that_waits_for_approval_ends_so_too_and_one_under_way_goes_on(recipe: World) -> None:
    run = ask(recipe)
    pull = run.pull_request
    assert pull is not None and run.comment is not None
    comment = CommentFactory(forge=recipe.forge, pull_request=pull)
    waits = TestRunFactory(
        repository=run.repository, pull_request=pull, comment=comment, state=State.AWAITING_APPROVAL, trusted=False
    )
    TestRun.objects.filter(pk=run.pk).update(state=State.RUNNING, host="elsewhere", started_at=timezone.now())
    recipe.remote.close_pull(recipe.remote.pull("recipes/process-web", 1))
    recipe.poll()
    dispatcher.dispatch()
    assert (fresh(run).state, fresh(run).stop_wanted) == (State.RUNNING, "")
    assert fresh(waits).state == State.CANCELLED


@pytest.mark.parametrize(
    "fault", [Fault(status=500), Fault(status=404, body="<html>"), Fault(status=200, body="{}"), Fault(status=429)]
)
def test_a_forge_that_does_not_say_whether_it_is_closed_neither_starts_nor_ends_a_run(recipe: World, fault: Fault) -> None:
    run = ask(recipe)
    PullRequest.objects.update(state="closed")
    recipe.remote.faults = lambda request: fault if "/pulls/" in request.path else None
    dispatcher.dispatch()
    assert fresh(run).state == State.QUEUED
    recipe.remote.faults = None


def test_a_pull_request_that_was_opened_again_has_its_run(recipe: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "slots", 0)
    run = ask(recipe)
    PullRequest.objects.update(state="closed")
    dispatcher.dispatch()
    assert fresh(run).state == State.QUEUED
    assert PullRequest.objects.get(pk=run.pull_request_id).state == "open"


def test_a_run_that_the_admin_asked_for_is_of_no_open_pull_request(recipe: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "slots", 0)
    run = ask(recipe)
    TestRun.objects.filter(pk=run.pk).update(comment=None)
    recipe.remote.close_pull(recipe.remote.pull("recipes/process-web", 1))
    recipe.poll()
    dispatcher.dispatch()
    assert fresh(run).state == State.QUEUED
