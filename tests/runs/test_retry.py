"""`!testme retry`: what runs again, what is taken over and when that counts; faults of ours, which are retried by themselves."""

from __future__ import annotations

from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from controlplane.models import Host
from enrollment.access import authorization
from enrollment.models import Comment
from runs import dispatcher, ingest, intake, lifecycle, render, retry
from runs.executors.base import Observation
from runs.executors.local import LocalExecutor
from runs.harness.protocol import Event, FolderState, Results
from runs.harness.stage_table import DEFAULT_STAGES, STAGES
from runs.models import StageResult, State, TestRun
from tests.factories import CaseResultFactory, StageResultFactory, TestRunFactory
from tests.killing import Killed, killed_at
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]

SHA = "ab" * 20
IMAGES = [{"name": "nginx:1", "digest": "sha256:aa", "note": ""}]
DETAILS: dict[str, Any] = {"settings": "s1", "images": IMAGES, "kept": "", "version": "1.0.0+1", "upgraded_from": "0.9.0+1"}


def ended(**statuses: str) -> TestRun:
    """A run that failed, with these stages; install, upgrade, backup and restore passed unless they are named."""
    names = {**dict.fromkeys(DEFAULT_STAGES, "passed"), **statuses}
    run: TestRun = TestRunFactory(failed=True, sha=SHA, stages=list(names), details=dict(DETAILS))
    for order, (name, status) in enumerate(names.items()):
        row = StageResultFactory(run=run, name=name, order=order, status=status)
        if status in ("passed", "failed"):
            CaseResultFactory(stage=row, status=status)
    return run


def results(run: TestRun, verdict: str = "passed", **more: Any) -> Results:
    now = timezone.now().isoformat()
    bad = {"name": run.stages[-1], "status": "failed"}
    case = {"name": "test_x", "file": "tests/test_x.py", "status": "passed"}
    stages = [{"name": name, "status": "passed", "cases": [case]} for name in run.stages]
    if verdict == "failed":
        stages[-1] = bad
    fields = {"deployer": "swarm", "sandbox": "bubblewrap", "run_id": str(run.id), "sha": run.sha, **DETAILS, **more}
    return Results.model_validate({"verdict": verdict, "started": now, "finished": now, "stages": stages, **fields})


def again(before: TestRun, **more: Any) -> TestRun:
    """A retry of a run, under way."""
    stages, taken_over = retry.plan(before, trusted=True)
    fields = {"stages": list(stages), "taken_over": list(taken_over), "retry_of": before, "pull_request": before.pull_request}
    run: TestRun = TestRunFactory(running=True, host=settings.CC_CI.host, sha=before.sha, **fields, **more)
    return run


# --- what runs again


@pytest.mark.parametrize(
    ("statuses", "runs", "taken_over"),
    [
        ({"custom": "failed"}, ("install", "upgrade", "custom"), ("backup", "restore")),
        ({"custom": "passed", "extra": "failed"}, ("install", "upgrade", "extra"), ("backup", "restore", "custom")),
        ({"restore": "failed", "custom": "skipped"}, DEFAULT_STAGES, ()),  # a restore looks for what the backup's hook made
        ({"backup": "not_applicable", "custom": "failed"}, ("install", "upgrade", "backup", "custom"), ("restore",)),
        ({"install": "failed", **dict.fromkeys(DEFAULT_STAGES[1:], "skipped")}, DEFAULT_STAGES, ()),
        ({}, DEFAULT_STAGES, ()),  # it failed, and no stage says why
    ],
)
def test_what_failed_or_did_not_run_runs_again(
    statuses: dict[str, str], runs: tuple[str, ...], taken_over: tuple[str, ...]
) -> None:
    assert retry.plan(ended(**statuses), trusted=True) == (runs, taken_over)


@pytest.mark.parametrize(
    ("fields", "trusted"),
    [
        ({"state": State.ERRORED}, True),
        ({"state": State.CANCELLED}, True),
        ({"trusted": False}, True),
        ({}, False),
        ({"teardown": {"clean": False, "left": ["a volume"], "seconds": 1}}, True),
        ({"teardown": {}}, True),
        ({"details": {}}, True),
    ],
)
def test_nothing_is_taken_over_without_evidence(fields: dict[str, Any], trusted: bool) -> None:
    run = ended(custom="failed")
    TestRun.objects.filter(pk=run.pk).update(**fields)
    run.refresh_from_db()
    assert retry.plan(run, trusted=trusted) == (DEFAULT_STAGES, ())


def test_by_a_comment(world: World) -> None:
    world.say("recipes/web", "!testme --extra-tests")
    world.hear()
    old = TestRun.objects.get()
    assert old.stages == list(STAGES)
    shown = ended(custom="passed", extra="failed")
    TestRun.objects.filter(pk=old.pk).update(
        state=State.FAILED, details=DETAILS, teardown={"clean": True}, finished_at=timezone.now()
    )
    StageResult.objects.filter(run=shown).update(run=old)
    world.say("recipes/web", "!testme retry")
    world.hear()
    new = TestRun.objects.get(retry_of=old)
    assert (new.stages, new.taken_over, new.sha) == (["install", "upgrade", "extra"], ["backup", "restore", "custom"], old.sha)
    (text,) = world.own_comments("recipes/web")
    assert (
        f"It runs only what failed in [{old}]({old.url}); taken over, if the settings are the same: backup, restore, custom."
        in text
    )
    world.say("recipes/web", "!testme retry")
    world.hear()
    assert TestRun.objects.filter(pull_request=old.pull_request).count() == 2, "it joins the one under way"
    world.say("recipes/web", "!testme retry all")
    world.hear()
    assert TestRun.objects.get(retry_of=new).stages == list(STAGES)
    new.refresh_from_db()
    assert new.state == State.SUPERSEDED


@pytest.mark.parametrize("how", ["it ends meanwhile", "it is trusted no longer"])
def test_a_retry_under_way_that_is_not_joined_leaves_no_stage_out(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    world.say("recipes/web")
    world.hear()
    TestRun.objects.update(state=State.FAILED, details=DETAILS, teardown={"clean": True}, finished_at=timezone.now())
    old = TestRun.objects.get()
    StageResult.objects.filter(run=ended(custom="failed")).update(run=old)
    world.say("recipes/web", "!testme retry")
    world.hear()
    second, create = TestRun.objects.get(retry_of=old), intake._run
    assert second.taken_over == ["backup", "restore"]

    def meanwhile(*args: Any, **more: Any) -> Comment.Outcome:
        TestRun.objects.filter(pk=second.pk).update(state=State.FAILED, finished_at=timezone.now())
        return create(*args, **more)

    if how == "it ends meanwhile":
        monkeypatch.setattr(intake, "_run", meanwhile)
    else:
        monkeypatch.setattr(authorization.Facts, "trusts", lambda self, sha: False)
    world.say("recipes/web", "!testme retry")
    world.hear()
    third = TestRun.objects.get(retry_of=second)
    assert (third.stages, third.taken_over) == (list(DEFAULT_STAGES), [])


def test_there_is_nothing_to_retry_in_a_run_that_passed(world: World) -> None:
    world.say("recipes/web")
    world.hear()
    TestRun.objects.update(state=State.PASSED)
    world.say("recipes/web", "!testme retry")
    world.hear()
    assert "nothing in it is left to repeat" in world.own_comments("recipes/web")[-1]
    assert "!testme retry all" in world.own_comments("recipes/web")[-1]
    assert TestRun.objects.count() == 1


# --- what counts


def test_what_is_taken_over_counts_for_the_verdict_and_the_level(client: Client) -> None:
    before = ended(custom="failed")
    run = again(before)
    assert ingest.conclude(run, results(run))
    run.refresh_from_db()
    assert (run.state, run.level) == (State.PASSED, 5)
    rows = {row.name: (row.status, row.taken_from) for row in run.stage_results.all()}
    assert rows == {
        **dict.fromkeys(("install", "upgrade", "custom"), ("passed", None)),
        **dict.fromkeys(("backup", "restore"), ("passed", before.pk)),
    }
    assert [row.name for row in run.stage_results.all()] == list(DEFAULT_STAGES)
    assert run.stage_results.get(name="backup").cases.count() == 1
    text = render.report(run)
    assert f"It ran only what failed in [{before}]({before.url}); taken over: backup, restore." in text
    assert f"passed, taken over from [{before}]({before.url})" in text
    page = client.get(run.get_absolute_url()).content.decode()
    assert f'taken over from <a href="{before.get_absolute_url()}">{before}</a>' in page


def test_what_was_taken_over_twice_is_still_of_the_run_that_ran_it() -> None:
    before = ended(custom="failed")
    run = again(before)
    ingest.conclude(run, results(run, "failed"))
    run.refresh_from_db()
    assert run.state == State.FAILED
    third = again(run)
    ingest.conclude(third, results(third))
    before.delete()
    assert {row.taken_from for row in third.stage_results.filter(name__in=("backup", "restore"))} == {before_id(run)}
    assert third.stage_results.get(name="custom").taken_from is None


def before_id(run: TestRun) -> Any:
    return run.retry_of_id


def test_a_secret_that_a_stage_printed_is_taken_over_with_it() -> None:
    before = ended(custom="failed")
    before.details = {**DETAILS, "secret_leaks": ["backup.log"]}
    before.save()
    run = again(before)
    ingest.conclude(run, results(run))
    run.refresh_from_db()
    assert (run.level, run.details["secret_leaks"]) == (4, ["backup.log"])


OTHER = [
    ({"images": [{"name": "nginx:1", "digest": "sha256:bb", "note": ""}]}, "the images differ"),
    ({"images": [{"name": "nginx:1", "digest": "", "note": ""}]}, "the images differ"),
    ({"settings": "s2"}, "a setting, or cc-ci's own version differs"),
    ({"kept": "cd" * 20}, "the commit of the tests kept on this server differs"),
    ({"upgraded_from": "0.8.0+1"}, "the version upgraded from differs"),
    ({"deployer": "process"}, "was deployed or isolated in another way"),
    ({"sha": "cd" * 20}, "does not have these results of this commit"),
]


@pytest.mark.parametrize(("change", "why"), OTHER)
def test_under_other_settings_all_stages_run_after_all(
    data_dir: object, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], why: str
) -> None:
    run = again(ended(custom="failed"))
    finish(monkeypatch, results(run, **change))
    run.refresh_from_db()
    assert (run.state, run.attempt, run.stages, run.taken_over) == (State.STARTING, 2, list(DEFAULT_STAGES), [])
    text = unescape(render.report(run))
    assert why in text and "all stages run; retrying once" in text
    assert not run.stage_results.exists()


@pytest.mark.parametrize(("change", "why"), OTHER)
def test_what_does_not_count_makes_nothing_green(change: dict[str, Any], why: str) -> None:
    run = again(ended(custom="failed"), attempt=2)
    ingest.conclude(run, results(run, **change))
    run.refresh_from_db()
    assert (run.state, run.level) == (State.ERRORED, None)
    assert why in run.reason and "!testme retry all" in run.reason
    assert run.stage_results.count() == 3


def test_a_red_that_was_not_run_stays_red() -> None:
    """Even if somebody changed the rows meanwhile."""
    before = ended(custom="failed")
    run = again(before)
    before.stage_results.filter(name="restore").update(status="failed")
    ingest.conclude(run, results(run))
    run.refresh_from_db()
    assert run.state == State.ERRORED


def test_a_run_that_was_deleted_gives_nothing() -> None:
    before = ended(custom="failed")
    run = again(before)
    before.delete()
    run.refresh_from_db()
    ingest.conclude(run, results(run))
    run.refresh_from_db()
    assert run.state == State.ERRORED and "was deleted" in run.reason


# --- faults of ours


def finish(monkeypatch: pytest.MonkeyPatch, found: Results) -> None:
    """Supervise runs whose harness ended with these results."""
    monkeypatch.setattr(dispatcher, "_start", lambda run: None)
    monkeypatch.setattr(LocalExecutor, "sweep", lambda self: None)
    monkeypatch.setattr(LocalExecutor, "observe", lambda self, run: Observation(FolderState.FINISHED, results=found))
    dispatcher.supervise()


def errored(run: TestRun, **more: Any) -> Results:
    now = timezone.now().isoformat()
    stages = [{"name": "install", "status": "errored", "reason": "a registry is away"}]
    fields = {"run_id": str(run.id), "verdict": "errored", "reason": "A registry is away.", "stages": stages}
    return Results.model_validate({**fields, "started": now, "finished": now, **more})


def test_a_fault_of_ours_is_retried_once_and_visibly(data_dir: object, monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    run = TestRunFactory(running=True, host=settings.CC_CI.host, log_offset=7, event_seq=3)
    finish(monkeypatch, errored(run))
    run.refresh_from_db()
    assert (run.state, run.attempt, run.log_offset, run.event_seq) == (State.STARTING, 2, 0, 0)
    told = "It could not be completed (A registry is away.); retrying once."
    assert f"This is attempt 2. {told}" in unescape(render.report(run))
    assert told in client.get(run.get_absolute_url()).content.decode()
    finish(monkeypatch, errored(run))
    run.refresh_from_db()
    assert (run.state, run.attempt, run.reason) == (State.ERRORED, 2, "A registry is away.")


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"verdict": "failed"}, State.FAILED),
        ({"verdict": "timed_out"}, State.TIMED_OUT),
        ({"stages": [{"name": "install", "status": "passed"}, {"name": "custom", "status": "failed"}]}, State.ERRORED),
        ({"teardown": {"clean": False, "left": ["a volume"]}}, State.ERRORED),
    ],
    ids=["failed", "timed out", "a stage failed", "something was left behind"],
)
def test_a_fault_of_the_recipe_never_is(
    data_dir: object, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], state: State
) -> None:
    run = TestRunFactory(running=True, host=settings.CC_CI.host)
    finish(monkeypatch, errored(run, **change))
    run.refresh_from_db()
    assert (run.state, run.attempt) == (state, 1)


def test_who_stopped_a_run_gets_no_second_one(data_dir: object, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TestRunFactory(running=True, host=settings.CC_CI.host, stop_wanted="cancelled")
    finish(monkeypatch, errored(run))
    run.refresh_from_db()
    assert (run.state, run.attempt) == (State.ERRORED, 1)


def test_a_dead_machines_run_goes_to_another_machine_and_only_once(data_dir: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "_start", lambda run: None)
    for name in ("gone", "gone too"):
        Host.objects.create(name=name, ticked_at=timezone.now() - dispatcher.HOST_DEAD - timedelta(seconds=1))
    run = TestRunFactory(running=True, host="gone")
    stopped = TestRunFactory(running=True, host="gone", stop_wanted="cancelled", stop_reason="cancelled by alice")
    dispatcher.forsake_dead_hosts()
    stopped.refresh_from_db()
    assert (stopped.state, stopped.reason) == (State.CANCELLED, "cancelled by alice")
    assert dispatcher.dispatch() == [run]
    run.refresh_from_db()
    assert (run.state, run.host, run.attempt) == (State.STARTING, settings.CC_CI.host, 2)
    TestRun.objects.update(host="gone too")
    dispatcher.forsake_dead_hosts()
    run.refresh_from_db()
    assert run.state == State.ERRORED and "The machine gone too has not been heard from" in run.reason


def test_a_stop_that_is_asked_for_meanwhile_ends_it(db: None) -> None:
    run = TestRunFactory(running=True)
    TestRun.objects.update(stop_wanted="cancelled", stop_reason="cancelled by alice")
    assert dispatcher._try_again(run, "lost")
    run.refresh_from_db()
    assert (run.state, run.reason) == (State.CANCELLED, "cancelled by alice")


def test_who_dies_in_between_leaves_no_stopped_run_in_the_queue(db: None) -> None:
    run = TestRunFactory(running=True, stop_wanted="cancelled", stop_reason="cancelled by alice")
    with pytest.raises(Killed), killed_at(0, [], [(lifecycle, "want_stop")]):
        dispatcher._try_again(run, "lost")
    run.refresh_from_db()
    assert (run.state, run.attempt) == (State.RUNNING, 1), "another worker sees it lost again"


@pytest.mark.parametrize("state", [FolderState.FINISHED, FolderState.LOST])
def test_what_a_slow_worker_saw_of_an_attempt_ends_no_later_one(
    data_dir: object, monkeypatch: pytest.MonkeyPatch, state: FolderState
) -> None:
    run = TestRunFactory(running=True, host=settings.CC_CI.host)
    begun = Event(seq=1, at=timezone.now(), kind="begun")

    def observe(self: object, late: TestRun) -> Observation:
        assert dispatcher._try_again(TestRun.objects.get(pk=run.pk), "lost")
        assert dispatcher._claim() == [run]
        return Observation(state, [begun], results=errored(run) if state is FolderState.FINISHED else None)

    monkeypatch.setattr(dispatcher, "_start", lambda run: None)
    monkeypatch.setattr(LocalExecutor, "sweep", lambda self: None)
    monkeypatch.setattr(LocalExecutor, "observe", observe)
    dispatcher.supervise()
    run.refresh_from_db()
    assert (run.state, run.attempt) == (State.STARTING, 2)


def test_a_run_that_is_stopped_while_its_harness_is_started_leaves_none(
    data_dir: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    TestRunFactory(host="")
    stopped = []

    def start(self: object, run: TestRun) -> None:
        lifecycle.want_stop(TestRun.objects.get(pk=run.pk), State.SUPERSEDED, "alice asked for another run")
        dispatcher.supervise()  # another worker, which sees no harness yet

    monkeypatch.setattr(LocalExecutor, "start", start)
    monkeypatch.setattr(LocalExecutor, "stop", lambda self, run: stopped.append(run.state))
    dispatcher.dispatch()
    assert stopped == [State.SUPERSEDED]


def test_a_reason_that_no_database_stores_is_retried_all_the_same(data_dir: object, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TestRunFactory(running=True, host=settings.CC_CI.host)
    finish(monkeypatch, errored(run, reason="<b>\0\ud800 @everyone"))
    run.refresh_from_db()
    text = run.events.get(kind="queued").text
    assert run.attempt == 2 and "@everyone" in text and "\0" not in text and text.encode()
    assert "@everyone" not in render.report(run) and "<b>" not in render.report(run)


def test_a_late_owner_of_an_attempt_that_is_queued_again_ends_nothing(db: None) -> None:
    run = TestRunFactory(running=True)
    late = TestRun.objects.get(pk=run.pk)
    assert dispatcher._try_again(run, "lost")
    dispatcher._end(late, "error", "late")
    run.refresh_from_db()
    assert run.state == State.QUEUED
