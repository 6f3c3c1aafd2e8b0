"""Any order of events, faults and deaths: never two builds for an attempt, never a verdict without evidence, always an end."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from runs import dispatcher, lifecycle
from runs.executors import builds
from runs.harness.protocol import Verdict
from runs.models import FINAL, RemoteExecutor, State, TestRun
from tests.killing import Killed, killed_at
from tests.runs.executors.conftest import row_for
from tests.runs.executors.fakes import Build, FakeServer, Fault
from tests.runs.executors.scripts import claimed, does_nothing, report_of
from tests.runs.executors.test_builds import BOTH, STEPS

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]

VERDICT_OF = {State.PASSED: Verdict.PASSED, State.FAILED: Verdict.FAILED}
OPEN = ["running", "blocked", "created", "waiting_on_dependencies", "novel"]
ENDS = ["success", "failure", "killed", "error", "skipped"]
FAULTS = [
    None,
    *(Fault(status=status) for status in (500, 502, 503)),
    *(Fault(status=status, body="<html>") for status in (404, 500)),
    *(Fault(status=200, body=body) for body in ("", "[", "{}", "null", "[]", '{"number": 1, "status": "success", "stages": 7}')),
    Fault(drop=True),
    Fault(drop=True, after=True),
]


LOST = [Fault(drop=True), Fault(drop=True, after=True), Fault(drop=True, late=True)]
verdicts = st.sampled_from([Verdict.PASSED, Verdict.FAILED])
reported = st.sampled_from(["whole", "cut", "forged", "reversed", "noisy", "none", "doubled", "gap"])
statuses = st.sampled_from(ENDS)


class Life(RuleBasedStateMachine):
    """One run on a server whose builds do what hypothesis says."""

    fake: FakeServer
    row: RemoteExecutor

    def __init__(self) -> None:
        super().__init__()
        self.clock = time_machine.travel(timezone.now(), tick=False)
        self.time = self.clock.start()
        fake = self.fake
        fake.script, fake.clock = does_nothing, 0.0
        fake.builds.clear()
        fake.late.clear()
        self.the_server_recovers()
        self.row.failures, self.row.open_until = 0, None
        self.row.save()
        self.run = claimed(self.row)
        #: What the harness of a build really came to, by the build's number.
        self.truth: dict[int, Verdict] = {}
        self.endings = iter([("none", Verdict.PASSED, "error")])

    @initialize(
        lost=st.sampled_from([None, *LOST]), endings=st.lists(st.tuples(reported, verdicts, statuses), min_size=2, max_size=2)
    )
    def begins(self, lost: Fault | None, endings: list[tuple[str, Verdict, str]]) -> None:
        """How the first create is answered, and how the builds end that nothing else ends."""
        self.endings = iter(endings)
        if lost:
            self.an_answer_is_lost(lost)
        else:
            self.tick()

    def teardown(self) -> None:
        try:
            self.the_server_recovers()
            for _ in range(40):
                if self.state in FINAL:
                    break
                for build in self.open_builds():
                    self.end(build, *next(self.endings, ("none", Verdict.PASSED, "error")))
                self.time_passes(200)
                self.tick()
            assert self.state in FINAL
            self.evidence()
        finally:
            self.clock.stop()

    def fresh(self) -> TestRun:
        return TestRun.objects.select_related("executor", "repository__forge").get(pk=self.run.pk)

    @property
    def state(self) -> str:
        return self.fresh().state

    def tick(self) -> None:
        dispatcher._claim()  # after a lost attempt it is queued again
        if self.state in (State.STARTING, State.RUNNING):
            dispatcher.watch(self.fresh())

    def open_builds(self) -> list[Build]:
        return [build for build in self.fake.builds if not build.step.stored]

    # --- cc-ci

    @rule(times=st.integers(1, 3))
    def watched(self, times: int) -> None:
        for _ in range(times):
            self.tick()

    @rule(step=st.integers(0, 25))
    def dies_while_watching(self, step: int) -> None:
        try:
            with killed_at(step, [], STEPS):
                self.tick()
        except Killed:
            pass

    @rule(seconds=st.sampled_from([1, 40, 100, 400, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.fake.finish_late()
        self.time.shift(seconds)

    @rule(really=st.integers(0, 3))
    def somebody_cancels(self, really: int) -> None:
        if not really:
            lifecycle.want_stop(self.fresh(), State.CANCELLED, "enough")

    # --- the server

    @rule()
    def the_server_recovers(self) -> None:
        self.fake.faults = lambda method, path: None
        self.fake.active = self.fake.write = self.fake.matches = True

    @rule(how=st.sampled_from(LOST))
    def an_answer_is_lost(self, how: Fault) -> None:
        """The next create gets no answer, and makes a build at once, never, or a little later."""
        lost = iter([how])
        self.fake.faults = lambda method, path: next(lost, None) if method == "POST" else None
        self.tick()

    @rule(fault=st.sampled_from(FAULTS), method=st.sampled_from(["GET", "POST", "DELETE", ""]))
    def the_server_stumbles(self, fault: Fault | None, method: str) -> None:
        self.fake.faults = lambda one, path: fault if one.startswith(method) else None

    @rule(name=st.sampled_from(["active", "write", "matches"]), value=st.booleans())
    def somebody_changes_a_setting(self, name: str, value: bool) -> None:
        setattr(self.fake, name, value)

    @rule(seconds=st.sampled_from([-100_000, -600, 0, 600, 100_000]))
    def its_clock_jumps(self, seconds: int) -> None:
        self.fake.clock = seconds

    @precondition(lambda self: self.open_builds())
    @rule(
        status=st.sampled_from(["running", "blocked", "created", "waiting_on_dependencies", "novel", *ENDS]),
        pick=st.integers(0, 9),
    )
    def a_build_changes_its_state(self, status: str, pick: int) -> None:
        builds = self.open_builds()
        build = builds[pick % len(builds)]
        build.status = build.step.status = status
        build.started = 1

    @precondition(lambda self: self.open_builds())
    @rule(lines=reported, verdict=verdicts, status=statuses, pick=st.integers(0, 9))
    def a_build_ends(self, lines: str, verdict: Verdict, status: str, pick: int) -> None:
        builds = self.open_builds()
        self.end(builds[pick % len(builds)], lines, verdict, status)

    def end(self, build: Build, lines: str, verdict: Verdict, status: str) -> None:
        report = report_of(build, verdict)
        changed: dict[str, list[str]] = {
            "cut": report[:-1],
            "forged": report_of(build, verdict, key="0" * 64),
            "reversed": report[::-1],
            "noisy": [f"x{line}" for line in report],
            "none": [],
            "doubled": report * 2,
            "gap": report[:1] + report[2:],
        }
        build.step.lines += changed.get(lines, report)
        if lines in ("whole", "reversed", "noisy", "doubled"):
            self.truth[build.number] = verdict
        build.status = build.step.status = status
        build.started = 1
        build.step.stored = True

    @precondition(lambda self: self.fake.matches and self.fake.builds and not self.fake.builds[-1].parent)
    @rule()
    def somebody_restarts_a_build(self) -> None:
        number = len(self.fake.builds)
        self.fake.restart(number).parent = number

    # --- what always holds

    @invariant()
    def one_build_for_an_attempt(self) -> None:
        for attempt in (1, 2):
            assert len([build for build in self.fake.of(self.run.id, attempt) if not build.parent]) <= 1

    @invariant()
    def evidence(self) -> None:
        run = self.fresh()
        if run.state in VERDICT_OF:
            builds = self.fake.of(run.id, run.attempt)
            status = "success" if run.state == State.PASSED else "failure"
            ended = [build for build in builds if build.status == status]
            assert VERDICT_OF[State(run.state)] in [self.truth.get(build.number) for build in ended]
        if run.state == State.CANCELLED:
            assert run.stop_wanted or run.reason == "enough"  # while it was queued


@BOTH
@pytest.mark.slow(6)
def test_no_order_of_events_makes_two_builds_or_a_verdict_without_evidence(
    fake: FakeServer, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "SETTLE", timedelta(seconds=30))
    monkeypatch.setattr(builds, "LIVE", 0.02)
    more: dict[str, Any] = {"fake": fake, "row": row_for(fake)}
    profile = settings(
        max_examples=25,
        stateful_step_count=18,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(type("Life", (Life,), more), settings=profile)
