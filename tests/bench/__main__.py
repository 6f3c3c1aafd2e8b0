"""`make bench`: what is measured, as counts, and as ratios against a floor that is measured in the same run."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"

import django

django.setup()

from django.conf import settings  # noqa: E402
from django.test.utils import setup_databases, teardown_databases  # noqa: E402
from django.utils import timezone  # noqa: E402

from enrollment.fakeforge.model import Repo  # noqa: E402
from enrollment.models import Repository  # noqa: E402
from tests.bench import control, pages  # noqa: E402
from tests.bench.harness import whole_runs  # noqa: E402
from tests.bench.infra import rebuild  # noqa: E402
from tests.bench.webhooks import idle_hours, receiver_ratio  # noqa: E402
from tests.chaos.test_crash import Machine  # noqa: E402
from tests.controlplane.trees import Database  # noqa: E402
from tests.waiting import until  # noqa: E402
from tests.world import WEB, World  # noqa: E402

OWNERS = 5
COMMENTS = 15
QUEUE = """
import django, time
django.setup()
from django.db import connection
from django_q.tasks import async_task, result
delays = []
for number in range(15):
    sent = time.time()
    task = async_task("time.time")
    delays.append(result(task, wait=10000) - sent)
    time.sleep(0.3)
print(" ".join(map(str, delays)))
"""
FIRST_EVENTS = """
import django
django.setup()
from runs.models import TestRun
for run in TestRun.objects.select_related("comment"):
    print(run.comment.forge_comment_id, run.comment.seen_at.isoformat(), run.events.order_by("id").first().at.isoformat())
"""


def idle_requests(folder: Path) -> None:
    """Requests of an idle tick at 1, 100 and 1,000 repositories of 5 owners."""
    print("Requests of an idle tick (5 owners; one search for each that has a repository)")
    for version in ("1.15", "1.22"):
        for size in (1, 100, 1000):
            world = World(folder / f"idle-{version}-{size}", version)
            world.connect()
            owners = [world.org, *(world.remote.add_org(f"org{number}", world.admin) for number in range(1, OWNERS))]
            first = world.remote.repo(world.add_recipe("r0"))
            rows = []
            for number in range(size):
                # Rows without a git repository of their own: a tick looks at no git.
                owner = owners[number % OWNERS]
                repo = first
                if number:
                    repo = Repo(
                        world.remote.tables.next_id("repos"), owner.id, owner.login, f"r{number}", first.created, first.updated
                    )
                    world.remote.tables.repos[repo.id] = repo
                now = timezone.now()
                rows.append(
                    Repository(
                        forge=world.forge,
                        forge_repo_id=repo.id,
                        owner=repo.owner,
                        owner_id=repo.owner_id,
                        name=repo.name,
                        enrolled_at=now,
                        net_due_at=now + timezone.timedelta(hours=3),
                    )
                )
            Repository.objects.bulk_create(rows)
            world.clock.move(minutes=10)
            world.poll()
            world.clock.move(minutes=10)
            before = len(world.own_requests())
            begun = time.perf_counter()
            world.poll()
            seconds = time.perf_counter() - begun
            count = len(world.own_requests()) - before
            print(f"  as Gitea {version}, {size:5} repositories: {count} requests  ({seconds * 1000:.0f} ms)")
            world.close()
            world.forge.delete()


def reaction(folder: Path) -> None:
    """From a comment to the first event of its run, as a multiple of the queue's own delay in the same tree."""
    world = World(folder / "reaction")
    data = folder / "reaction" / "data"
    data.mkdir()
    repo = world.remote.add_repo("recipes", "web", files=WEB)
    for number in range(COMMENTS):
        world.remote.push(repo, f"b{number}", {"notes.txt": str(number)}, "Change", "alice")
        world.remote.open_pull(repo, repo, f"b{number}", "alice")
    machine = Machine(data, Database(data), "bench")
    try:
        machine.command("migrate", "--verbosity=0")
        machine.command("forge", "add", "--url", world.server.url, "--token-env", "T", T=world.token)
        machine.command("enroll", "recipes/web")
        machine.start()
        delays = [float(word) for word in _python(machine, QUEUE).split()]
        said = {}
        for number in range(COMMENTS):
            comment = world.say("recipes/web", "!testme --stages install", number=number + 1)
            said[comment.id] = time.time()
            time.sleep(0.73)  # no multiple of the poll's second
        lines: list[list[str]] = []

        def all_there() -> bool:
            lines[:] = [line.split() for line in _python(machine, FIRST_EVENTS).splitlines()]
            return len(lines) == COMMENTS

        until(all_there)
        seen = {int(line[0]): (_seconds(line[1]), _seconds(line[2])) for line in lines}
        floor = statistics.median(delays)
        whole = statistics.median(event - said[number] for number, (_, event) in seen.items())
        ours = statistics.median(event - at for at, event in seen.values())
        print(f"The queue's own delay, task queued -> first line:   median {floor * 1000:.0f} ms  (the floor)")
        print(f"comment stored -> first event of its run:           median {ours * 1000:.0f} ms = {ours / floor:.1f} x the floor")
        print(
            f"comment written -> first event (polling every 1 s): median {whole * 1000:.0f} ms = {whole / floor:.1f} x the floor"
        )
    finally:
        machine.stop()
        machine.close()
        world.close()


def _python(machine: Machine, code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=machine.environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def main() -> None:
    databases = setup_databases(verbosity=0, interactive=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            settings.CC_CI.data_dir = Path(folder) / "data"
            idle_requests(Path(folder))
            idle_hours(Path(folder))
            receiver_ratio()
            control.fairness()
            control.cost()
            control.workers(Path(folder))
            reaction(Path(folder))
            whole_runs(Path(folder))
            rebuild(Path(folder))
        pages.compare()
    finally:
        teardown_databases(databases, verbosity=0)


main()
