"""The tasks of the queue: each may be run twice."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone
from django_q.models import OrmQ

from controlplane.registry import registry
from controlplane.schedules import run_recurring, sync
from enrollment.models import Comment
from runs import tasks
from runs.executors import local
from runs.models import Report, State, TestRun
from tests.factories import RepositoryFactory, TestRunFactory
from tests.world import World

pytestmark = pytest.mark.django_db


def test_from_a_comment_to_the_answer_by_tasks_alone(world: World) -> None:
    world.say("recipes/web")
    world.poll()
    tasks.handle_comment(Comment.objects.get().pk)
    tasks.handle_comment(Comment.objects.get().pk)
    assert TestRun.objects.count() == 1
    for report in Report.objects.all():
        tasks.send_report(report.pk)
        tasks.send_report(report.pk)
    assert len(world.own_comments("recipes/web")) == 1


def test_a_stored_comment_and_a_new_run_are_put_into_the_queue(world: World, django_capture_on_commit_callbacks) -> None:  # type: ignore[no-untyped-def]
    world.say("recipes/web")
    with django_capture_on_commit_callbacks(execute=True):
        world.poll()
    names = [task.func() for task in OrmQ.objects.all()]
    assert "runs.tasks.handle_comment" in names
    world.settle()
    names = [task.func() for task in OrmQ.objects.all()]
    assert {"runs.tasks.dispatch", "runs.tasks.send_report"} <= set(names)


def test_no_secret_and_no_object_is_in_a_task(world: World) -> None:
    world.say("recipes/web")
    world.hear()
    for task in OrmQ.objects.all():
        assert all(isinstance(argument, int | str) for argument in task.task["args"])
        assert world.token not in str(task.task)


@pytest.mark.parametrize("name", ["dispatch", "supervise", "send_reports", "sweep_comments", "sweep_leftovers", "drop_old_runs"])
def test_every_recurring_task_runs_with_nothing_to_do(data_dir: Path, name: str) -> None:
    sync()
    row = f"runs.tasks.{name}"
    assert run_recurring(f"{row}@{settings.CC_CI.host}" if registry.recurring[row].per_host else row)


def test_old_runs_go_with_their_folders_and_the_newest_stays(data_dir: Path) -> None:
    long_ago = timezone.now() - timedelta(days=settings.CC_CI.keep_days + 1)
    old = TestRunFactory(passed=True, created_at=long_ago, finished_at=long_ago)
    newest = TestRunFactory(
        passed=True,
        repository=old.repository,
        pull_request=old.pull_request,
        created_at=long_ago + timedelta(hours=1),
        finished_at=long_ago,
    )
    old.folder.mkdir(parents=True)
    assert tasks.drop_old_runs() == "1 deleted"
    assert list(TestRun.objects.all()) == [newest]
    assert not old.folder.parent.exists()
    assert tasks.drop_old_runs() == "0 deleted"


def test_runs_that_stay_are_not_in_the_way_of_those_that_go(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of many pull requests are old, too."""
    monkeypatch.setattr(tasks, "AT_ONCE", 1)
    long_ago = timezone.now() - timedelta(days=settings.CC_CI.keep_days + 1)
    for hours in range(3):
        TestRunFactory(passed=True, created_at=long_ago + timedelta(hours=hours), finished_at=long_ago)
    row = RepositoryFactory()
    for hours in range(3, 6):
        TestRunFactory(
            passed=True, repository=row, pull_request=None, created_at=long_ago + timedelta(hours=hours), finished_at=long_ago
        )
    assert [tasks.drop_old_runs() for _ in range(3)] == ["1 deleted", "1 deleted", "0 deleted"]
    assert TestRun.objects.count() == 4 and TestRun.objects.filter(pull_request=None).count() == 1


def test_a_comment_stays_when_its_run_is_dropped(world: World) -> None:
    """Else the net would find it again, take it for a new one, and start it once more."""
    world.say("recipes/web", "!testme --stages install")
    world.hear()
    long_ago = timezone.now() - timedelta(days=settings.CC_CI.keep_days + 1)
    TestRun.objects.update(state=State.PASSED, finished_at=long_ago, created_at=long_ago)
    world.say("recipes/web")
    world.hear()
    tasks.drop_old_runs()
    assert TestRun.objects.count() == 1
    assert Comment.objects.count() == 2


def test_the_sweep_names_this_installation_and_the_runs(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from controlplane.installation import installation_id

    called: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **options: object) -> None:
            called.append(command)
            self.stdin = io.BytesIO()

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(local.subprocess, "Popen", Process)
    data_dir.mkdir(exist_ok=True)
    local.sweep()
    (command,) = called
    assert command[command.index("--installation") + 1] == installation_id()
    assert command[command.index("--runs-dir") + 1] == str(data_dir / "runs")
