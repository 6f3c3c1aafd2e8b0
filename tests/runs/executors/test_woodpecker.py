"""What Woodpecker alone does, and what cc-ci makes of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from enrollment.forges.base import Garbage, Rejected
from runs import dispatcher, lifecycle
from runs.executors import engine
from runs.executors.woodpecker import Woodpecker
from runs.models import State, TestRun
from tests.runs.executors.fakes import FakeServer, Fault
from tests.runs.executors.scripts import does_nothing, run_to_end
from tests.runs.executors.test_builds import fresh, refusal, row, run, running, watch

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.slow(0.3),
    pytest.mark.parametrize("fake", ["woodpecker"], indirect=True),
]

__all__ = ["row", "run"]


def client_for(run: TestRun) -> Woodpecker:
    assert run.executor
    return Woodpecker(run.executor)


@pytest.mark.parametrize(
    ("trap", "words"),
    [
        (lambda fake: setattr(fake, "matches", False), "Add `event: manual` to its `when:`"),
        (lambda fake: setattr(fake, "active", False), "is disabled in Woodpecker: activate it at"),
        (lambda fake: setattr(fake, "write", False), "write access"),
        (lambda fake: setattr(fake, "token", "another"), "does not accept the token"),
        (lambda fake: (setattr(fake, "token", "another"), setattr(fake, "visibility", "public")), "does not accept the token"),
        (lambda fake: setattr(fake, "repository", "ci/renamed"), "has no repository ci/runner"),
        (lambda fake: setattr(fake, "pipeline_error", "yaml: line 3"), "cannot use the pipeline of ci/runner: yaml: line 3"),
    ],
)
def test_each_trap_says_what_to_change(run: TestRun, fake: FakeServer, trap: Callable[[FakeServer], Any], words: str) -> None:
    trap(fake)
    assert words in refusal(run)
    TestRun.objects.filter(pk=run.pk).update(started_at=timezone.now() - dispatcher.START_PATIENCE - timedelta(seconds=1))
    run = watch(run)
    assert (run.state, words in run.reason) == (State.ERRORED, True)
    assert len(fake.builds) <= 1


def test_a_branch_that_is_missing_says_so(run: TestRun, fake: FakeServer) -> None:
    fake.faults = lambda method, path: Fault(status=500, body="") if method == "POST" else None
    assert "has no branch main" in refusal(run)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_error_of_a_proxy_is_no_answer(run: TestRun, fake: FakeServer, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(run)
    monkeypatch.setattr(fake, "headers", dict)
    fake.faults = lambda method, path: Fault(status=status, body="")
    with pytest.raises(Garbage):
        client_for(run).whoami()
    assert watch(run).state == State.RUNNING


def test_a_build_that_has_ended_is_cancelled_without_an_error(run: TestRun, fake: FakeServer) -> None:
    watch(run)
    client_for(run).cancel(1)
    assert fake.builds[0].status == "success"
    fake.builds[0].status = "created"
    with pytest.raises(Rejected, match="non-running"):
        client_for(run).cancel(1)


def test_a_build_that_is_cancelled_before_it_begins_ends_its_run(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    watch(run)
    lifecycle.want_stop(run, State.CANCELLED, "enough")
    for _ in range(2):
        run = watch(run)
    assert (fake.builds[0].status, run.state) == ("canceled", State.CANCELLED)


def test_a_log_is_its_written_lines_in_their_order(run: TestRun, fake: FakeServer) -> None:
    fake.script = running
    watch(run)

    def entry(line: int, data: object, kind: object = 0) -> dict[str, object]:
        text = base64.b64encode(data).decode() if isinstance(data, bytes) else data
        return {"id": 1, "step_id": 502, "time": 0, "line": line, "data": text, "type": kind}

    rows: list[object] = [
        entry(3, b"four"),
        entry(0, b"one\0\xff"),
        entry(1, None),
        entry(2, b"to stderr", 1),
        entry(4, b"0", 2),
        entry(5, b"{}", 3),
        entry(6, b"...", 4),
        entry(7, "not base64!"),
        entry(8, ["a list"]),
        entry(9, b"?", "0"),
        "not an entry",
        {},
    ]
    fake.faults = lambda method, path: Fault(status=200, body=json.dumps(rows)) if "/logs/" in path else None
    step = engine.Step(1, 3, "test", "running", 502)
    text = client_for(run).log(step, 1)
    replaced = "\N{REPLACEMENT CHARACTER}"
    assert text == f"one{replaced}{replaced}\n\nto stderr\nfour\n\n\n"
    empty: list[object]
    for empty in ([], [{}], [7]):
        rows = empty
        assert client_for(run).log(step, 1) is None


@pytest.mark.parametrize("number", [-1, 0, 10**300, True, "1", None])
def test_odd_numbers_of_workflows_and_steps_are_left_out(fake: FakeServer, number: Any) -> None:
    right = {"id": 5, "pid": 1}
    steps = [right, {**right, "pid": number}, {**right, "id": number}]
    found = Woodpecker.steps({"workflows": [{"pid": 1, "children": steps}, {"pid": number, "children": steps}, 7]})
    assert [(step.stage, step.number, step.id) for step in found] == [(1, 1, 5)]


@pytest.mark.parametrize("answer", ["[]", "{}", '{"id": "7"}', '{"id": true}', '{"id": 0}', "null"])
def test_a_repository_without_a_number_is_none(run: TestRun, fake: FakeServer, answer: str) -> None:
    fake.faults = lambda method, path: Fault(status=200, body=answer) if "/lookup/" in path else None
    with pytest.raises(Garbage):
        client_for(run).builds(1)


def test_builds_for_other_events_are_not_asked_for(run: TestRun, fake: FakeServer) -> None:
    fake.script = does_nothing
    watch(run)
    assert fresh(run).state == State.RUNNING
    (build,) = fake.builds
    run_to_end(fake, build, [], "failure")
    assert watch(run).attempt == 2
