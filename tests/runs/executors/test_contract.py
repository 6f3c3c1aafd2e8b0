"""What every executor does, with real harness processes: started once, observed to its end, stopped, lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from django.conf import settings
from django.db import connections
from django.utils import timezone

from runs import dispatcher
from runs.executors import builds
from runs.executors.base import Executor, Observation
from runs.executors.select import executor_for
from runs.harness.protocol import FolderState, Verdict
from runs.models import State, TestRun
from tests.runs.executors.conftest import row_for
from tests.runs.executors.fakes import FakeServer
from tests.waiting import until
from tests.world import WEB, World

KINDS = [("local", "drone"), ("drone", "drone"), ("woodpecker", "woodpecker")]
pytestmark = [
    pytest.mark.django_db,
    pytest.mark.slow(0.3),
    pytest.mark.parametrize(("kind", "fake"), KINDS, indirect=["fake"], ids=[kind for kind, _ in KINDS]),
]


@dataclass
class Place:
    """An executor with a run that was claimed for it."""

    world: World
    run: TestRun
    folder: Path  #: where the harness works

    @property
    def executor(self) -> Executor:
        return executor_for(self.fresh())

    def fresh(self) -> TestRun:
        return TestRun.objects.select_related("executor", "repository__forge").get(pk=self.run.pk)

    def harnesses(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "runs.harness" in words and any(str(self.folder) in word for word in words) and "sweep" not in words:
                found.append(process)
        return found

    def until(self, done: Callable[[Observation], bool]) -> Observation:
        seen: list[Observation] = []

        def look() -> bool:
            seen.append(self.executor.observe(self.fresh()))
            return done(seen[-1])

        until(look)
        return seen[-1]


@pytest.fixture
def place(kind: str, world: World, fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(settings.CC_CI, "deployer", "process")
    monkeypatch.setattr(builds, "SETTLE", timedelta(seconds=1))
    slow = "import time\n\n\ndef test_it(app):\n    app.get('/')\n    print('hello from the test')\n    time.sleep(1.5)\n"
    files: dict[str, str | bytes] = {
        str(path.relative_to(WEB)): path.read_bytes() for path in WEB.rglob("*") if path.is_file() and "tests" not in path.parts
    }
    world.add_recipe("slow-web", files={**files, "tests/test_it.py": slow})
    world.enroll("recipes/slow-web")
    if kind != "local":
        row_for(fake).forges.add(world.forge)
    world.say("recipes/slow-web")
    world.hear()
    (run,) = dispatcher._claim()
    assert run.executor_name == ("" if kind == "local" else kind)
    return Place(world, run, tmp_path)


@pytest.mark.slow(8)
def test_a_run_is_started_once_and_observed_to_its_end(place: Place) -> None:
    assert place.executor.observe(place.fresh()).state is FolderState.NOT_STARTED
    place.executor.start(place.fresh())
    place.executor.start(place.fresh())
    kinds: list[str] = []
    text = ""
    seen = Observation(FolderState.RUNNING)

    def look() -> bool:
        nonlocal text, seen
        run = place.fresh()
        seen = place.executor.observe(run)
        kinds.extend(event.kind for event in seen.events)
        text += seen.log
        dispatcher.ingest.take_over(run, seen)
        return seen.state is FolderState.FINISHED

    until(look)
    assert seen.results and seen.results.verdict is Verdict.PASSED
    assert seen.results.run_id == str(place.run.id)
    assert seen.results.sha == place.run.sha
    assert kinds.count("begun") == 1 and kinds.count("finished") == 1
    assert (kinds.count("stage_started"), kinds.count("stage_finished")) == (2, 5)
    assert "== " in text and "cc-ci:1:" not in text
    assert {"results.json", "junit-custom.xml"} <= set(seen.files)
    place.executor.start(place.fresh())
    again = place.executor.observe(place.fresh())
    assert (again.state, again.events, again.log) == (FolderState.FINISHED, [], "")
    assert place.executor.longest(place.run) > timezone.timedelta(seconds=settings.CC_CI.run_seconds)


@pytest.mark.slow(8)
def test_a_run_that_is_stopped_tears_down(place: Place) -> None:
    TestRun.objects.filter(pk=place.run.pk).update(stop_wanted=State.CANCELLED)
    place.executor.start(place.fresh())
    place.until(lambda seen: bool(seen.events) or bool(place.harnesses()))
    place.executor.stop(place.fresh())
    place.executor.stop(place.fresh())
    seen = place.until(lambda seen: seen.state in (FolderState.FINISHED, FolderState.LOST))
    assert seen.results is None or seen.results.verdict is Verdict.CANCELLED
    until(lambda: not place.harnesses())


@pytest.mark.slow(8)
def test_a_killed_harness_is_lost(place: Place) -> None:
    place.executor.start(place.fresh())
    until(lambda: bool(place.harnesses()))
    for process in place.harnesses():
        process.send_signal(signal.SIGKILL)
    seen = place.until(lambda seen: seen.state is not FolderState.RUNNING)
    assert seen.state is FolderState.LOST
    assert seen.results is None
    assert seen.lost


@pytest.mark.slow(8)
@pytest.mark.django_db(transaction=True)
def test_two_workers_that_start_one_run_start_one_harness(place: Place, fake: FakeServer) -> None:
    def start() -> None:
        place.executor.start(place.fresh())
        connections.close_all()

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = place.until(lambda seen: seen.state is FolderState.FINISHED)
    assert [event.kind for event in seen.events].count("begun") == 1
    assert len(fake.builds) == (1 if place.run.executor_name else 0)
