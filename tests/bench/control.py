"""The control of runs as counts and ratios: who waits how long, what a run costs, what more workers bring."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from uuid import uuid4

REQUESTS, REPOSITORIES, SLOTS = 500, 20, 4
#: What a worker does for the bench of several: runs that take a moment each, on an executor that does nothing.
WORKER = """
import sys, time
import django
django.setup()
from django.conf import settings
from tests.bench.control import Nothing
from runs import dispatcher
from runs.models import HOLDING, State, TestRun
settings.CC_CI.slots = 4
dispatcher.executor_for = lambda run: Nothing(2.0)
print("ready", flush=True)
sys.stdin.readline()
while TestRun.objects.filter(state__in=[State.QUEUED, *HOLDING]).exists():
    dispatcher.dispatch()
    dispatcher.supervise()
    time.sleep(0.1)
"""


class Nothing:
    """An executor whose runs pass after some seconds."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds

    def start(self, run: Any) -> None:
        pass

    def observe(self, run: Any) -> Any:
        from django.utils import timezone

        from runs.executors.base import Observation
        from runs.harness.protocol import Event, FolderState

        now = timezone.now()
        if run.started_at + timedelta(seconds=self.seconds) > now:
            return Observation(FolderState.RUNNING)
        kinds = ["begun", *(kind for stage in STAGES for kind in ("stage_started", "stage_finished"))]
        names = ["", *(stage for stage in STAGES for _ in range(2))]
        pairs = enumerate(zip(kinds, names, strict=True), 1)
        events = [Event(seq=seq, at=now, kind=kind, stage=name) for seq, (kind, name) in pairs]
        new = [event for event in events if event.seq > run.event_seq]
        return Observation(FolderState.FINISHED, new, "a line\n" * 200, run.log_offset + 1400, _results(run, now))

    def stop(self, run: Any) -> None:
        pass

    kill = stop

    def longest(self, run: Any) -> timedelta:
        return timedelta(hours=1)

    def sweep(self) -> None:
        pass


STAGES = ("install", "upgrade", "backup", "restore", "custom")


def _results(run: Any, now: datetime) -> Any:
    from runs.harness.protocol import CaseResult, Results, StageResult, Teardown, Verdict

    cases = [CaseResult(name=f"test_{number}", file="tests/test_app.py", status="passed", seconds=1) for number in range(10)]
    stages = [StageResult(name=name, status="passed", cases=cases, seconds=10) for name in STAGES]
    return Results(
        run_id=str(run.pk), verdict=Verdict.PASSED, started=now, finished=now, stages=stages, teardown=Teardown(clean=True)
    )


def _queue(repositories: list[Any], count: int) -> None:
    """Runs as a morning has them: a few repositories ask for most."""
    from runs.models import State, TestRun

    shares = [repositories[int(len(repositories) * (number / count) ** 2)] for number in range(count)]
    now = datetime.now(UTC)
    given = {"requested_by": "alice", "ref": "refs/heads/main", "stages": list(STAGES), "trusted": True, "state": State.QUEUED}
    rows = [TestRun(repository=row, sha=f"{number:040x}", **given) for number, row in enumerate(shares)]
    for number, run in enumerate(rows):
        run.created_at = now + timedelta(microseconds=number)
    TestRun.objects.bulk_create(rows)


def _repositories() -> list[Any]:
    from tests.factories import RepositoryFactory

    return [RepositoryFactory() for _ in range(REPOSITORIES)]


def fairness() -> None:
    """500 requests at once over 20 repositories with 4 slots: while several have something to run, how the starts are shared."""
    from django.conf import settings

    from runs import dispatcher
    from runs.models import HOLDING, State, TestRun

    TestRun.objects.all().delete()
    rows = _repositories()
    _queue(rows, REQUESTS)
    left = Counter(TestRun.objects.values_list("repository_id", flat=True))
    started: Counter[int] = Counter()
    most = worst = 0
    with mock.patch.object(settings.CC_CI, "slots", SLOTS), mock.patch.object(dispatcher, "executor_for", lambda run: Nothing()):
        while TestRun.objects.filter(state__in=[State.QUEUED, *HOLDING]).exists():
            for run in dispatcher.dispatch():
                left[run.repository_id] -= 1
                started[run.repository_id] += 1
            waiting = [started[key] for key, count in left.items() if count]
            if len(waiting) > 1:
                most, worst = max(most, max(waiting) - min(waiting)), max(worst, (max(waiting) + 1) / (min(waiting) + 1))
            dispatcher.supervise()
    print(
        f"{REQUESTS} requests at once, {REPOSITORIES} repositories, {SLOTS} slots: of those that still have some waiting, the one"
    )
    print(f"  with the most starts had {most} more than the one with the fewest, and {worst:.2f} times its share  (limit 2)")


class Silent:
    """A forge that takes every report at once."""

    server_time = None

    def __init__(self, bot: int) -> None:
        self.bot, self.bodies = bot, {}  # type: ignore[var-annotated]

    def post_comment(self, owner: str, name: str, number: int, body: str) -> Any:
        self.bodies[len(self.bodies) + 1] = body
        return SimpleNamespace(id=len(self.bodies))

    def edit_comment(self, owner: str, name: str, number: int, body: str) -> None:
        self.bodies[number] = body

    def delete_comment(self, owner: str, name: str, number: int) -> None:
        pass

    def pull_comments(self, *which: Any) -> list[Any]:
        number = len(self.bodies)
        return [SimpleNamespace(id=number, body=self.bodies[number], author=SimpleNamespace(id=self.bot))]

    def set_status(self, *which: Any, **what: Any) -> None:
        pass


def _statements(seen: Any) -> int:
    """The queries, without the beginnings and ends of transactions."""
    return sum(not query["sql"].startswith(("BEGIN", "SAVEPOINT", "RELEASE", "COMMIT")) for query in seen)


def cost(history: int = 20_000) -> None:
    """CPU and queries of one run to its verdict, and of sending its reports; with histories of several lengths."""
    from django.conf import settings
    from django.db import connection
    from django.test.utils import CaptureQueriesContext
    from django_q.models import OrmQ

    from runs import dispatcher, outcomes, reporting
    from runs.models import Report, State, TestRun
    from tests.factories import PullRequestFactory

    TestRun.objects.all().delete()
    pull = PullRequestFactory()
    forge = Silent(pull.repository.forge.bot_id)

    def run() -> None:
        dispatcher.dispatch()
        dispatcher.supervise()

    def create() -> None:
        more = {"requested_by": "alice", "trusted": True, "pull_request": pull}
        outcomes.create_run(pull.repository, sha=uuid4().hex, ref="refs/pull/1/head", stages=STAGES, **more)

    with mock.patch.object(dispatcher, "executor_for", lambda run: Nothing()):
        create(), run()  # the first makes this machine's row
    medians = []
    for before in (0, 1_000, history):
        if before:
            rows = [
                TestRun(id=uuid4(), repository=pull.repository, pull_request=pull, requested_by="alice", sha=f"{number:040x}")
                for number in range(before)
            ]
            for row in rows:
                row.state, row.stages, row.started_at = State.PASSED, list(STAGES), datetime.now(UTC)
                row.finished_at = row.started_at
            TestRun.objects.bulk_create(rows, batch_size=1000)
        spent: dict[str, list[float]] = {"control": [], "reports": []}
        queries: Counter[str] = Counter()
        for number in range(25):
            Report.objects.all().delete()
            OrmQ.objects.all().delete()
            with (
                mock.patch.object(dispatcher, "executor_for", lambda run: Nothing()),
                mock.patch.object(reporting, "client_for", lambda *which: forge),
                mock.patch.object(reporting, "update_facts", lambda *which: False),
                mock.patch.object(settings.CC_CI, "slots", 1),
            ):
                took: Counter[str] = Counter()
                for kind, step in (
                    ("control", create),
                    ("reports", reporting.send_due),
                    ("control", run),
                    ("reports", reporting.send_due),
                ):
                    with CaptureQueriesContext(connection) if not number else mock.MagicMock() as seen:
                        begun = time.process_time()
                        step()
                        took[kind] += time.process_time() - begun  # type: ignore[assignment]
                    queries[kind] += 0 if number else _statements(seen)
                assert not Report.objects.exclude(next_try_at=None).exists()
            for kind, seconds in took.items():
                spent[kind].append(seconds)
        for kind, what, limits in (
            ("control", "from its creation to its verdict", ("  (limit 30)", "  (limit 40)")),
            ("reports", "to tell of it twice, by comment and status", ("", "")),
        ):
            median = sorted(spent[kind])[len(spent[kind]) // 2] * 1000
            text = f"{median:5.1f} ms of CPU{limits[0]}, {queries[kind]} queries{limits[1]}"
            print(f"One run with {before:6} before it, {what}: {text}")
            medians.append(median)
    print(f"  long history / some: {medians[4] / medians[2]:.2f}, {medians[5] / medians[3]:.2f}")


def workers(folder: Path) -> None:
    """Runs per hour with 1, 2 and 4 workers on one PostgreSQL, each with 4 slots and runs of 2 s."""
    from tests.postgres import NoPostgres, postgres

    try:
        with postgres() as url:
            rates = {number: _rate(folder, url, number) for number in (1, 2, 4)}
    except NoPostgres as problem:
        print(f"Runs per hour with several workers: not measured. {problem}")
        return
    words = ", ".join(f"{number}: {rate:.0f}" for number, rate in rates.items())
    print(f"Runs per hour with so many workers of 4 slots, runs of 2 s, one PostgreSQL: {words}")
    print("  ÷ workers, against one: " + ", ".join(f"{rates[n] / n / rates[1]:.2f}" for n in (2, 4)) + "  (floor 0.95)")


def _rate(folder: Path, url: str, number: int) -> float:
    base = {
        **os.environ,
        "DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        "CC_CI_DATA_DIR": str(folder / "workers"),
        "CC_CI_ENV_FILE": "",
    }
    count = 60 * number  # enough that the last ones, which leave slots free, count little
    prepare = (
        "import django; django.setup()\nfrom django.core.management import call_command\n"
        "call_command('migrate', verbosity=0)\ncall_command('flush', verbosity=0, interactive=False)\n"
        "from tests.bench import control\n"
        f"control._queue(control._repositories(), {count})"
    )
    subprocess.run([sys.executable, "-c", prepare], env=base, check=True)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={**base, "CC_CI_HOST": f"bench-{name}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name in range(number)
    ]
    for one in started:
        assert one.stdout and one.stdout.readline()
    begun = time.monotonic()
    for one in started:
        assert one.stdin
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in started:
        one.wait(300)
    return count / (time.monotonic() - begun) * 3600
