"""Real processes, real SIGKILLs at random points: as many runs and reports as comments, none twice, none missing.

The quick form has 12 pull requests and 7 kills, the long one (`make test-long`) 200 and 50. On SQLite there is one `cc-ci
work`; on PostgreSQL (DATABASE_URL) there are three, each a machine of its own by name. One more pull request gets 20 comments.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from controlplane.config import BASE_DIR
from enrollment.fakeforge.store import Forge as SandboxForge
from tests.controlplane.trees import Database, Tree
from tests.waiting import PATIENCE, until
from tests.world import WEB, World

pytestmark = [pytest.mark.crash, pytest.mark.on_postgresql, pytest.mark.xdist_group("chaos"), pytest.mark.timeout(3600)]

RECIPES = 3
LOOK = """
import json, django
django.setup()
from enrollment.models import Comment, Forge
from runs.models import Report, TestRun
print(json.dumps({
    "runs": list(TestRun.objects.values("state", "attempt", "reason", "comment__forge_comment_id", "pull_request__number",
                                        "repository__name", "host", "teardown"), ),
    "comments": list(Comment.objects.values("forge_comment_id", "outcome", "reason")),
    "open_reports": list(Report.objects.filter(next_try_at__isnull=False).values("key", "last_error")),
    "problems": list(Forge.objects.values_list("last_error", flat=True)),
}))
"""


class Machine(Tree):
    """One `cc-ci work` of several that share a database."""

    def __init__(self, folder: Path, database: Database, host: str) -> None:
        self.folder, self.database, self.host = folder, database, host
        self.environment = {
            # What is killed tells no coverage, and measuring it would slow down all the rest.
            **{name: value for name, value in os.environ.items() if not name.startswith(("CC_CI_", "COVERAGE_"))},
            "CC_CI_ENV_FILE": "",
            "CC_CI_DATA_DIR": str(folder),
            "CC_CI_HOST": host,
            "CC_CI_POLL_SECONDS": "1",
            "CC_CI_SLOTS": "2",
            "CC_CI_WORKERS": "2",
            "CC_CI_DEPLOYER": "process",
            "CC_CI_QUEUE_TIMEOUT": "20",
            "CC_CI_QUEUE_RETRY": "25",
            "CC_CI_HTTP_TIMEOUT": "5",
            # Polled every second, what changed lately is read again each time: a budget made for 30 s would hold up all.
            "CC_CI_REQUESTS_PER_MINUTE": "0",
            "CC_CI_PICTURES": "false",
            "DATABASE_URL": database.url,
            "DJANGO_SETTINGS_MODULE": "controlplane.settings",
        }
        self.log = folder / f"work-{host}.log"
        self.process = None

    @property
    def lock(self) -> Path:
        return self.folder / f"work-{self.host}.lock" if self.database.server else self.database.file.with_suffix(".work")

    def revive(self) -> None:
        """Kill the supervisor, see its whole tree die with it, and start it anew."""
        self.kill_supervisor()
        until(lambda: not self.all(), why="the tree outlived its supervisor")
        self.start()

    def harnesses(self) -> list[psutil.Process]:
        """The harness processes of all machines that share the folder."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "runs.harness" in words and any(str(self.folder) in word for word in words):
                found.append(process)
        return found

    def look(self) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", LOOK], cwd=BASE_DIR, env=self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


def kill_something(machines: list[Machine], dice: random.Random) -> str:
    """SIGKILL one process of ours, and start a machine anew whose supervisor it was. Says what it was."""
    while True:
        machine = dice.choice(machines)
        kind = dice.choice(["supervisor", "queue", "worker", "ticker", "web", "harness", "harness", "harness"])
        if kind == "supervisor":
            machine.revive()
            return f"{kind} of {machine.host}"
        if kind == "harness":
            victims = machine.harnesses()
        elif kind == "worker":
            victims = machine.child("queue").children(recursive=True)
        else:
            victims = [machine.child(kind)]
        try:
            if victims:
                victim = dice.choice(victims)
                victim.kill()
                return f"{kind} {victim.pid} of {machine.host}"
        except psutil.NoSuchProcess:
            pass  # it ended by itself in this very moment: another one
        time.sleep(0.05)


@pytest.fixture
def forge(tmp_path: Path) -> World:
    world = World(tmp_path)
    # Without tests of its own a run is short, and all that is killed is ours.
    files: dict[str, str | bytes] = {
        str(path.relative_to(WEB)): path.read_bytes()
        for path in WEB.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files = {name: content for name, content in files.items() if not name.startswith("tests/")}
    for number in range(RECIPES):
        world.remote.add_repo("recipes", f"r{number}", files=files)
    return world


def open_pulls(remote: SandboxForge, count: int) -> list[tuple[str, int]]:
    pulls = []
    for number in range(count):
        recipe = f"recipes/r{number % RECIPES}"
        remote.push(recipe, f"change-{number}", {"notes.txt": f"change {number}\n"}, "Change", "alice")
        pulls.append((recipe, remote.open_pull(recipe, recipe, f"change-{number}", "alice").number))
    return pulls


@pytest.mark.parametrize(
    "size", [(12, 7), pytest.param((200, 50), marks=[pytest.mark.long, pytest.mark.timeout(7200)])], ids=["quick", "long"]
)
def test_every_comment_is_answered_exactly_once(forge: World, tmp_path: Path, size: tuple[int, int]) -> None:
    count, kills = size
    seed = int(os.environ.get("TEST_SEED") or time.time())
    dice = random.Random(seed)
    print(f"seed {seed}")
    data = tmp_path / "data"
    data.mkdir()
    database = Database(data)
    machines = [Machine(data, database, host) for host in (["a", "b", "c"] if database.server else ["a"])]
    first = machines[0]
    pulls = open_pulls(forge.remote, count)
    busy = open_pulls(forge.remote, 1)[0]
    begun = time.monotonic()
    try:
        for words in (
            ("migrate", "--verbosity=0"),
            ("forge", "add", "--url", forge.server.url, "--token-env", "FORGE_TOKEN"),
            ("enroll", *(f"recipes/r{number}" for number in range(RECIPES))),
        ):
            done = first.command(*words, FORGE_TOKEN=forge.token)
            assert done.returncode == 0, done.stderr
        for machine in machines:
            machine.start()
        told = []
        done_kills = 0
        while pulls_left := [pull for pull in pulls if pull not in told]:
            for recipe, number in pulls_left[: max(1, count // (kills + 2))]:
                forge.say(recipe, "!testme", number=number)
                told.append((recipe, number))
            forge.say(busy[0], dice.choice(["!testme", "!testme --stages install", "!testme status"]), number=busy[1])
            if done_kills < kills:
                time.sleep(dice.uniform(0.2, 2.0))
                print(f"{time.monotonic() - begun:6.1f} s  killed {kill_something(machines, dice)}")
                done_kills += 1
        for _ in range(kills - done_kills):
            print(f"{time.monotonic() - begun:6.1f} s  killed {kill_something(machines, dice)}")
            time.sleep(dice.uniform(0.2, 2.0))
        while len([c for c in comments(forge, busy) if c.user_id == forge.alice.id]) < 20:
            forge.say(busy[0], dice.choice(["!testme", "!testme --extra-tests"]), number=busy[1])
            time.sleep(0.2)

        def settled() -> bool:
            return all(verdicts(forge, pull) for pull in [*pulls, busy]) and quiet(database)

        try:
            until(settled, "not all were answered", seconds=500 + 20 * count)
        except AssertionError:
            seen = first.look()
            missing = [pull for pull in pulls if not verdicts(forge, pull)]
            pytest.fail(
                f"seed {seed}: no verdict at {missing}\n{json.dumps(seen, indent=1, default=str)[-6000:]}\n{first.said()[-3000:]}"
            )
        seen = first.look()
        print(f"{time.monotonic() - begun:6.1f} s  all answered; {Counter(run['state'] for run in seen['runs'])}")
        check_rows(forge, seen, pulls, busy)
        for machine in machines:
            assert machine.stop() == 0
        assert not first.harnesses()
        nothing_is_left(data)
    finally:
        for machine in machines:
            if machine.process and machine.process.poll() is None:
                machine.kill_supervisor()
        for process in first.harnesses():
            process.kill()
        database.drop()
        forge.close()


def comments(forge: World, pull: tuple[str, int]) -> list[Any]:
    return forge.remote.comments_of(forge.remote.issue(*pull))


def verdicts(forge: World, pull: tuple[str, int]) -> list[str]:
    return [text for text in forge.own_comments(*pull) if ":verdict -->" in text]


def quiet(database: Database) -> bool:
    """Nothing is left to be done."""
    return not any(
        database.run(f"SELECT 1 FROM {rows} LIMIT 1")
        for rows in (
            "runs_report WHERE next_try_at IS NOT NULL",
            "enrollment_comment WHERE outcome = ''",
            "runs_testrun WHERE state IN ('queued', 'starting', 'running')",
        )
    )


def check_rows(forge: World, seen: dict[str, Any], pulls: list[tuple[str, int]], busy: tuple[str, int]) -> None:
    """The database and the forge say the same: one comment, one run, one report."""
    outcome = {row["forge_comment_id"]: row["outcome"] for row in seen["comments"]}
    for pull in pulls:
        said = [row for row in comments(forge, pull) if row.user_id == forge.alice.id]
        assert len(said) == 1
        assert outcome[said[0].id] == "run"
        runs = [run for run in seen["runs"] if run["comment__forge_comment_id"] == said[0].id]
        assert len(runs) == 1, f"{pull}: {runs}"
        # A harness that was killed twice is our error, and told so; that is an answer, too.
        assert runs[0]["state"] == "passed" or "lost 2 times" in runs[0]["reason"], runs
        assert len(forge.own_comments(*pull)) == 1, f"{pull}: {forge.own_comments(*pull)}"
        assert forge.reactions(said[0]) == ["eyes"]
    said = [row for row in comments(forge, busy) if row.user_id == forge.alice.id]
    assert len(said) >= 20
    assert {outcome[row.id] for row in said} <= {"run", "joined", "reply"}
    replies = [row for row in said if outcome[row.id] == "reply"]
    texts = forge.own_comments(*busy)
    assert len([text for text in texts if "cc-ci:run:" in text]) == 1, "one report comment at the end"
    assert len([text for text in texts if "cc-ci:reply:" in text]) == len(replies)
    assert len(texts) == 1 + len(replies)


def nothing_is_left(data: Path) -> None:
    """No process that knows the data folder; no checkout."""

    def processes() -> list[str]:
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            words = " ".join(process.info["cmdline"] or [])
            if str(data) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(words[:200])
        return found

    until(lambda: not processes(), lambda: f"left over: {processes()}")
