"""What a build of the fake Drone may do instead of running a harness, and runs to do it for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.utils import timezone

from runs.executors.marked_lines import Writer
from runs.harness.protocol import Event, Results, StageResult, Verdict
from runs.local import chosen
from runs.models import RemoteExecutor, State, TestRun
from tests.factories import RunEventFactory, TestRunFactory
from tests.runs.executors.fakes import Build, FakeServer, Script


def claimed(row: RemoteExecutor, **more: Any) -> TestRun:
    """A run that this machine has just claimed for an executor."""
    fields = {"state": State.STARTING, "attempt": 1, "host": settings.CC_CI.host, "started_at": timezone.now()}
    run = TestRunFactory(**{**fields, "executor": row, "executor_name": row.name, **more})
    RunEventFactory(run=run, kind=State.STARTING, attempt=run.attempt)
    return TestRun.objects.select_related("executor", "repository__forge").get(pk=run.pk)


def report_of(
    build: Build,
    verdict: Verdict = Verdict.PASSED,
    key: str = "",
    writer: Writer | None = None,
    files: Mapping[str, bytes] | None = None,
    **more: Any,
) -> list[str]:
    """The lines of a harness that came to this verdict."""
    now, run = datetime(2026, 1, 1, tzinfo=UTC), build.params["CC_CI_RUN_ID"]
    writer = writer or (Writer(key, run, int(build.params["CC_CI_ATTEMPT"])) if key else build.writer())
    status = "passed" if verdict is Verdict.PASSED else "failed"
    stages = [StageResult(name=name, status=status) for name in chosen("", False, build.params)]
    fields = {"run_id": run, "verdict": verdict, "started": now, "finished": now, "stages": stages, **more}
    events = [Event(seq=seq, at=now, kind=kind, text=kind) for seq, kind in enumerate(("begun", "step"), 1)]
    lines = [line for event in events for line in writer.event(event.model_dump_json())]
    lines += [line for name, data in (files or {}).items() for line in writer.file(name, data)]
    lines += writer.results(Results.model_validate(fields).model_dump_json()) + writer.end()
    return [f"{line}\n" for line in lines]


def run_to_end(server: FakeServer, build: Build, lines: list[str], status: str = "success") -> None:
    build.status = build.step.status = "running"
    build.started = 1
    build.step.lines += lines
    server.end(build, status)


def reports(verdict: Verdict = Verdict.PASSED, **more: Any) -> Script:
    """A build that reports this verdict at once."""

    def script(server: FakeServer, build: Build) -> None:
        status = "success" if verdict is Verdict.PASSED else "failure"
        run_to_end(server, build, ["hello\n", *report_of(build, verdict, **more)], status)

    return script


def does_nothing(server: FakeServer, build: Build) -> None:
    """A build that waits for a runner."""
