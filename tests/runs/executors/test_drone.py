"""What Drone alone does, and what cc-ci makes of it."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.utils import timezone

from runs import dispatcher
from runs.executors import builds, drone, engine
from runs.executors.drone import Drone
from runs.models import State, TestRun
from tests.runs.executors.fakes import FakeDrone, FakeServer, Fault
from tests.runs.executors.test_builds import refusal, row, run, running, watch

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]

__all__ = ["row", "run"]


@pytest.mark.parametrize(
    ("trap", "words"),
    [
        (lambda fake: setattr(fake, "matches", False), "Add `custom` to its `trigger: event:`"),
        (lambda fake: (setattr(fake, "matches", False), setattr(fake, "no_content", True)), "Add `custom`"),
        (lambda fake: setattr(fake, "active", False), "is disabled in Drone: activate it at"),
        (lambda fake: setattr(fake, "write", False), "write access"),
        (lambda fake: setattr(fake, "token", "another"), "does not accept the token"),
        (lambda fake: (setattr(fake, "token", "another"), setattr(fake, "visibility", "public")), "does not accept the token"),
        (lambda fake: setattr(fake, "repository", "ci/renamed"), "has no repository ci/runner"),
        (lambda fake: setattr(fake, "pipeline_error", "yaml: line 3"), "cannot use the pipeline of ci/runner: yaml: line 3"),
    ],
)
def test_each_trap_says_what_to_change(
    run: TestRun, fake: FakeServer, trap: Callable[[FakeServer], Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap(fake)
    assert words in refusal(run)
    TestRun.objects.filter(pk=run.pk).update(started_at=timezone.now() - dispatcher.START_PATIENCE - timedelta(seconds=1))
    run = watch(run)
    assert (run.state, words in run.reason) == (State.ERRORED, True)
    assert len(fake.builds) <= 1


def test_a_pipeline_that_is_missing_says_so(run: TestRun, fake: FakeServer) -> None:
    fault = Fault(status=500, body='{"message": "file does not exist"}')
    fake.faults = lambda method, path: fault if method == "POST" else None
    assert "file does not exist" in refusal(run) and "paste the one of docs" in refusal(run)


def test_a_log_that_does_not_come_yet_is_waited_for(run: TestRun, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "SETTLE", timedelta(seconds=30))
    watch(run)
    fake.builds[0].step.stored = False
    assert watch(run).state == State.RUNNING
    fake.builds[0].step.stored = True
    assert watch(run).state == State.PASSED


@pytest.mark.parametrize("answer", ["null", "[]", '[{"pos": 0, "out": "hel", "time": 0}]'])
def test_a_log_that_is_not_whole_yet_is_read_again(
    run: TestRun, fake: FakeServer, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "SETTLE", timedelta(seconds=30))
    watch(run)
    fake.faults = lambda method, path: Fault(status=200, body=answer) if path.endswith("/logs/1/2") else None
    assert watch(run).state == State.RUNNING
    fake.faults = lambda method, path: None
    assert watch(run).state == State.PASSED


def test_an_empty_log_does_not_replace_what_was_shown(run: TestRun, fake: FakeServer) -> None:
    fake.script = running
    watch(run)
    fake.builds[0].step.lines += ["hello\n"]
    assert watch(run).log.endswith("hello\n")
    fake.end(fake.builds[0], "success")
    fake.faults = lambda method, path: Fault(status=200, body="[]") if path.endswith("/logs/1/2") else None
    watch(run)
    assert (Path(run.folder) / "log.txt").read_text().endswith("hello\n")


def test_a_live_log_in_more_bytes_than_characters_is_news_if_it_is_longer(run: TestRun, fake: FakeServer) -> None:
    fake.script = running
    watch(run)
    fake.builds[0].step.lines += ["ü" * 10 + "\n"]
    watch(run)
    fake.builds[0].step.lines += ["ü" * 2 + "\n"]
    assert watch(run).log.count("ü") == 12


@pytest.mark.parametrize("part", [b"x", b"x" * 1_000_000], ids=["slow", "big"])
def test_a_live_log_without_end_takes_little_time_and_memory(run: TestRun, part: bytes) -> None:
    sent: list[bytes] = []

    def endless(self: FakeDrone, number: int) -> Iterator[bytes]:
        while len(sent) < 100:
            sent.append(part)
            yield part
            if len(part) == 1:
                time.sleep(0.03)

    client = Drone(run.executor)  # type: ignore[arg-type]
    with mock.patch.object(FakeDrone, "events", endless):
        assert client.live_log(engine.Step(1, 2, "test", "running"), 1, 0.1) == ""
    assert 0 < len(sent) < 60


def test_a_live_log_of_very_many_values_takes_little_memory() -> None:
    line = b'data: {"out": "one\\n", "x": [' + b"[]," * 400_000 + b"[]]}\n\n"
    tracemalloc.start()
    assert list(drone._events(line + b'data: {"out": "two\\n"}\n\n')) == ["two\n"]
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_a_live_log_follows_no_redirect(run: TestRun, fake: FakeServer) -> None:
    fake.script = running
    watch(run)
    fake.faults = lambda method, path: Fault(status=307, location="/api/user") if "/stream/" in path else None
    watch(run)
    assert "GET /api/user" not in fake.requests


@pytest.mark.parametrize("number", [-1, 0, 10**300, True, "1"])
def test_odd_numbers_of_stages_and_steps_are_left_out(number: Any) -> None:
    steps = [{"number": 1}, {"number": number}]
    found = Drone.steps({"stages": [{"number": 1, "steps": steps}, {"number": number, "steps": steps}]})
    assert [(step.stage, step.number) for step in found] == [(1, 1)]
