"""What recurs: when it is queued, that it is queued once, and what is written down of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from threading import Barrier

import pytest
import time_machine
from django.conf import settings
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.utils import timezone
from django_q.exceptions import TimeoutException
from django_q.models import OrmQ

from controlplane import schedules
from controlplane.cli import NO, Exit
from controlplane.models import Host, RecurringTask
from controlplane.registry import Recurring, registry

pytestmark = pytest.mark.both_databases

calls: list[str] = []


def well() -> str:
    calls.append("well")
    return "looked at 3 things"


def badly() -> None:
    raise ValueError("the forge is down")


def too_long() -> None:
    raise TimeoutException("Task exceeded maximum timeout value (60 seconds)")


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A table of our own instead of the apps'."""
    here = __name__
    tasks = [
        Recurring("well", f"{here}.well", 10, text="Goes well."),
        Recurring("badly", f"{here}.badly", 60),
        Recurring("long", f"{here}.too_long", 60),
        Recurring("mine", f"{here}.well", 5, per_host=True),
    ]
    monkeypatch.setattr(registry, "recurring", {task.name: task for task in tasks})
    calls.clear()
    yield


@pytest.fixture
def rows(db: None) -> None:
    RecurringTask.objects.all().delete()
    OrmQ.objects.all().delete()
    schedules.sync()


MINE = f"mine@{settings.CC_CI.host}"


@pytest.mark.usefixtures("rows")
def test_due_tasks_are_queued_once() -> None:
    assert schedules.tick() == 4
    assert schedules.tick() == 0
    assert sorted(task.name() for task in OrmQ.objects.all()) == sorted(["badly", "long", MINE, "well"])
    assert {task.key for task in OrmQ.objects.all()} == {f"cc-ci-{settings.CC_CI.host}"}
    assert Host.objects.get(name=settings.CC_CI.host).ticked_at


@pytest.mark.usefixtures("rows")
def test_it_is_due_again_after_its_time() -> None:
    schedules.tick()
    schedules.run_recurring("well")
    OrmQ.objects.all().delete()
    with time_machine.travel(timezone.now() + timedelta(seconds=11), tick=False):
        schedules.tick()
    assert [task.name() for task in OrmQ.objects.all()] == ["well"]


@pytest.mark.usefixtures("rows")
def test_what_is_still_under_way_is_not_queued_again_until_it_may_be_lost() -> None:
    schedules.tick()
    with time_machine.travel(timezone.now() + timedelta(seconds=61), tick=False):
        assert schedules.tick() == 0
    with time_machine.travel(timezone.now() + timedelta(seconds=settings.CC_CI.queue_retry + 1), tick=False):
        assert schedules.tick() == 4


@pytest.mark.usefixtures("rows")
def test_after_a_night_off_each_runs_once() -> None:
    schedules.tick()
    with time_machine.travel(timezone.now() + timedelta(hours=9), tick=False):
        assert schedules.tick() == 4
        assert schedules.tick() == 0


@pytest.mark.usefixtures("rows")
def test_a_clock_that_was_set_back_stops_nothing() -> None:
    schedules.tick()
    for name in ("well", MINE):
        schedules.run_recurring(name)
    with time_machine.travel(timezone.now() - timedelta(hours=2), tick=False):
        schedules.tick()
    assert OrmQ.objects.count() == 8


@pytest.mark.usefixtures("rows")
def test_switched_off_or_another_machines_it_is_left_alone() -> None:
    RecurringTask.objects.filter(name="well").update(enabled=False)
    RecurringTask.objects.create(name="mine@elsewhere", every_seconds=5, per_host=True, due_at=timezone.now())
    schedules.tick()
    assert {task.name() for task in OrmQ.objects.all()} == {"badly", "long", MINE}


@pytest.mark.usefixtures("rows")
def test_a_task_that_went_well() -> None:
    assert schedules.run_recurring("well") == "looked at 3 things"
    row = RecurringTask.objects.get(name="well")
    assert (row.last_result, row.last_error) == ("looked at 3 things", "")
    assert row.last_finished_at and row.last_seconds is not None


@pytest.mark.parametrize(
    ("name", "said"), [("badly", "ValueError: the forge is down"), ("long", "TimeoutException: Task exceeded")]
)
@pytest.mark.usefixtures("rows")
def test_the_last_error_is_kept_until_it_goes_well(name: str, said: str) -> None:
    with pytest.raises((ValueError, TimeoutException)):
        schedules.run_recurring(name)
    row = RecurringTask.objects.get(name=name)
    assert row.last_error.startswith(said) or said in row.last_error
    assert row.last_error_at and row.last_finished_at
    registry.recurring[name] = Recurring(name, f"{__name__}.well", 60)
    schedules.run_recurring(name)
    row.refresh_from_db()
    assert row.last_error == ""
    assert row.last_error_at


@pytest.mark.usefixtures("rows")
def test_sync_follows_the_table_and_keeps_the_trail() -> None:
    schedules.run_recurring("well")
    RecurringTask.objects.create(name="mine@elsewhere", every_seconds=5, per_host=True, due_at=timezone.now())
    registry.recurring["well"] = Recurring("well", f"{__name__}.well", 99)
    del registry.recurring["badly"]
    assert sorted(schedules.sync()) == sorted(["long", MINE, "mine@elsewhere", "well"])
    row = RecurringTask.objects.get(name="well")
    assert (row.every_seconds, row.last_result) == (99, "looked at 3 things")


@pytest.mark.django_db(transaction=True)
def test_many_tickers_queue_it_once() -> None:
    schedules.sync()
    many = 4
    start = Barrier(many)

    def one(_: int) -> int:
        start.wait()
        try:
            return schedules.tick()
        finally:
            connection.close()

    with ThreadPoolExecutor(many) as pool:
        assert sum(pool.map(one, range(many))) == 4
    assert OrmQ.objects.count() == 4


@pytest.mark.usefixtures("rows")
def test_a_claim_and_its_task_stand_or_fall_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(schedules, "enqueue_recurring", killed)
        with pytest.raises(KeyboardInterrupt):
            schedules.tick()
    assert schedules.tick() == 4


@pytest.mark.usefixtures("rows")
def test_work_is_noted_and_a_failing_database_does_not_end_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    Host.objects.create(name=settings.CC_CI.host)
    monkeypatch.setattr(schedules, "_noted", float("-inf"))
    schedules.note_work()
    assert Host.objects.get().worked_at

    def fails(**values: object) -> None:
        raise DatabaseError("gone")

    monkeypatch.setattr(schedules, "_noted", float("-inf"))
    monkeypatch.setattr(Host, "objects", type("Manager", (), {"filter": fails}))
    schedules.note_work()


@pytest.mark.usefixtures("rows")
def test_command_shows_the_table() -> None:
    schedules.run_recurring("well")
    out = StringIO()
    call_command("schedules", "--json", stdout=out)
    shown = {row["name"]: row for row in json.loads(out.getvalue())}
    assert shown["well"]["last_result"] == "looked at 3 things"
    assert shown["well"]["text"] == "Goes well."
    assert shown["badly"]["last_finished_at"] is None
    out = StringIO()
    call_command("schedules", stdout=out)
    assert "well: every 10 s, due " in out.getvalue()


@pytest.mark.usefixtures("rows")
def test_command_runs_one_in_the_foreground() -> None:
    out = StringIO()
    call_command("schedules", "--run", "mine", stdout=out)
    assert calls == ["well"]
    assert out.getvalue().strip() == "looked at 3 things"
    assert RecurringTask.objects.get(name=MINE).last_finished_at
    with pytest.raises(Exit) as stopped:
        call_command("schedules", "--run", "badly")
    assert stopped.value.code == NO


@pytest.mark.usefixtures("rows")
def test_command_syncs() -> None:
    RecurringTask.objects.all().delete()
    call_command("schedules", "--sync", stdout=StringIO())
    assert RecurringTask.objects.count() == 4
