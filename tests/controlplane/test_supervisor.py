"""What the supervisor decides, without processes; those are in test_work.py."""

from __future__ import annotations

import os
import socket
import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest
from django.db import OperationalError

from controlplane import children, supervisor
from controlplane.config import load
from controlplane.processes import AlreadyRunning, hold
from controlplane.supervisor import Child, Progress, listen, lock_path


def watch(progress: Progress, worked_at: str, begin: float, end: float, step: float = 0.5) -> None:
    """The ticker sees the same time of work from `begin` to `end`."""
    now = begin
    while now <= end:
        progress.saw(worked_at, now)
        now += step


def test_a_queue_that_works_is_left_alone() -> None:
    progress = Progress(limit=90)
    for minute in range(60):
        watch(progress, f"12:{minute:02}", minute * 60, minute * 60 + 59)
        assert not progress.stalled
    assert progress.worked


def test_a_queue_that_does_nothing_stands_still() -> None:
    progress = Progress(limit=90)
    progress.saw("12:00", 0)
    watch(progress, "12:00", 0.5, 90)
    assert not progress.stalled
    watch(progress, "12:00", 90.5, 91)
    assert progress.stalled


def test_a_new_queue_gets_all_the_time() -> None:
    progress = Progress(limit=90)
    watch(progress, "12:00", 0, 91)
    progress.queue_started()
    assert not progress.worked
    watch(progress, "12:00", 91, 180)
    assert not progress.stalled


def test_time_without_sight_of_the_database_does_not_count() -> None:
    progress = Progress(limit=90)
    watch(progress, "12:00", 0, 60)
    progress.saw_nothing()
    watch(progress, "12:00", 3600, 3620)
    assert not progress.stalled


@pytest.mark.parametrize(("code", "locked"), [(5, True), (261, True), (517, True), (6, False), (10, False), (None, False)])
def test_a_lock_is_known_by_its_code_with_whatever_detail(code: int | None, locked: bool) -> None:
    cause = sqlite3.OperationalError("database is locked")
    cause.sqlite_errorcode = code  # type: ignore[assignment]
    error = OperationalError(str(cause))
    error.__cause__ = cause
    assert children._is_lock(error) is locked


def test_time_with_a_locked_database_counts() -> None:
    progress = Progress(limit=90)
    progress.saw("12:00", 0)
    for now in (21, 43, 67, 89):
        progress.saw_lock(now)
        assert not progress.stalled
    progress.saw_lock(91)
    assert progress.stalled


def test_a_machine_that_slept_was_not_idle() -> None:
    progress = Progress(limit=90)
    watch(progress, "12:00", 0, 10)
    watch(progress, "12:00", 30_000, 30_010)
    assert not progress.stalled


def test_a_clock_that_jumps_is_no_progress_lost() -> None:
    """The times of work are only compared, never counted with."""
    progress = Progress(limit=90)
    watch(progress, "2026-01-01", 0, 60)
    watch(progress, "2020-01-01", 60.5, 120)
    assert not progress.stalled


def test_never_worked_is_not_ready_but_counts() -> None:
    progress = Progress(limit=90)
    watch(progress, "", 0, 91)
    assert not progress.worked
    assert progress.stalled


@pytest.mark.parametrize(
    ("url", "lock"),
    [("", "cc-ci.work"), ("sqlite:////x/cc-ci.sqlite3", "cc-ci.work"), ("postgresql://db/x", "work-here.lock")],
)
def test_lock_is_the_database_or_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, lock: str) -> None:
    for name, value in {"DATABASE_URL": url, "CC_CI_DATA_DIR": str(tmp_path), "CC_CI_HOST": "here"}.items():
        monkeypatch.setenv(name, value)
    assert lock_path(load(), str(tmp_path / "cc-ci.sqlite3")) == tmp_path / lock


def test_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    handle = hold(tmp_path / "lock")
    with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"):
        hold(tmp_path / "lock")
    os.close(handle)
    os.close(hold(tmp_path / "lock"))


@pytest.mark.parametrize("address", ["", "8000", "localhost", "localhost:", "localhost:http", "localhost:99999", ":8000"])
def test_addresses_of_another_shape(address: str) -> None:
    with pytest.raises(ValueError, match="must look like"):
        listen(address)


def test_listens_where_it_is_told() -> None:
    with listen("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()):
        pass


def test_half_a_line_is_kept_for_the_next_look() -> None:
    child = Child("ticker")
    child.reports, writing = os.pipe()
    os.set_blocking(child.reports, False)
    os.write(writing, b'{"ready": true}\n{"error"')
    assert child.read() == [{"ready": True}]
    assert child.read() == []
    os.write(writing, b': "OperationalError"}\n')
    assert child.read() == [{"error": "OperationalError"}]
    os.close(writing)
    os.close(child.reports)


def test_one_that_keeps_dying_waits_longer_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = [1000.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: clock[0])
    tended = supervisor.Supervisor(load(), tmp_path / "lock")
    child = tended.ticker
    starts: list[float] = []

    def start(environment: dict[str, str]) -> None:
        starts.append(clock[0])
        child.process, child.started = object(), clock[0]  # type: ignore[assignment]

    def bury() -> int:
        child.process = None
        return 1

    monkeypatch.setattr(child, "start", start)
    monkeypatch.setattr(child, "bury", bury)
    monkeypatch.setattr(child, "has_ended", lambda: child.process is not None)
    while len(starts) < 10:
        tended._tend(child)
        clock[0] += 0.5
    gaps = [round(after - before) for before, after in pairwise(starts)]
    assert gaps[0] <= 1 and gaps[-1] == 30
    assert gaps == sorted(gaps)
