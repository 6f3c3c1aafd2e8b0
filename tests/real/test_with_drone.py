"""The whole way from a comment at a real Gitea to a verdict made by a real Drone, and the fake one's answers held against its."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from django.conf import settings

from runs.executors.base import ExecutorError
from runs.executors.check import check_executor
from runs.executors.select import executor_for
from runs.models import RemoteExecutor, State, TestRun
from tests.real.drone import NEEDED, RealDrone, pipeline
from tests.real.forge import RealWorld
from tests.runs.executors.conftest import row_for
from tests.runs.executors.fakes import FakeDrone
from tests.runs.executors.scripts import claimed, does_nothing
from tests.runs.executors.test_harness_command import add_recipe

GIVEN = {name: os.environ.get(name, "") for name in ("FORGE", "FORGE_ADMIN", "DRONE")}
if unset := [name for name, value in GIVEN.items() if not value]:
    pytest.skip(f"{', '.join(unset)} not set: {NEEDED}", allow_module_level=True)
pytestmark = [pytest.mark.django_db, pytest.mark.slow(20)]
FAILS = "def test_it(app):\n    assert False, 'no teapot'\n"
EXTRA = {"tests/extra/test_load.py": "def test_load(app):\n    assert app.get('/').status_code == 200\n"}
SLEEPS = "import time\n\n\ndef test_it(app):\n    time.sleep(600)\n"


@pytest.fixture
def world(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealWorld]:
    monkeypatch.setattr(settings.CC_CI, "data_dir", tmp_path / "data")
    monkeypatch.setattr(settings.CC_CI, "http_timeout", 60.0)
    world = RealWorld(tmp_path, GIVEN["FORGE"], GIVEN["FORGE_ADMIN"])
    try:
        world.connect()
        yield world
    finally:
        world.close()


@pytest.fixture
def owner(world: RealWorld) -> RealDrone:
    """Who owns the runner repository, and has activated it."""
    # Drone knows repositories by name for longer than one of these tests lasts.
    name, forge = f"runner-{os.urandom(4).hex()}", world.remote
    forge.add_org("ci", world.admin)
    repository = forge.add_repo("ci", name, private=True, files={".drone.yml": pipeline()}).full_name
    forge.add_collaborator(repository, world.bot, "write")
    owner = RealDrone(GIVEN["DRONE"], world.remote, world.admin.login, repository)  # type: ignore[arg-type]
    owner.activate()
    return owner


@pytest.fixture
def drone(world: RealWorld, owner: RealDrone) -> Iterator[RealDrone]:
    """cc-ci's user there."""
    drone = RealDrone(owner.url, world.remote, world.bot.login, owner.repository)  # type: ignore[arg-type]
    drone.sync()
    yield drone
    for build in owner.builds():
        owner.call("DELETE", f"{owner.path}/builds/{build['number']}")
    owner.deactivate()


@pytest.fixture
def row(world: RealWorld, drone: RealDrone) -> RemoteExecutor:
    row = row_for(drone)  # type: ignore[arg-type]
    row.forges.add(world.forge)
    return row


def add_writable(world: RealWorld, name: str, tests: dict[str, str]) -> None:
    """A recipe where cc-ci may set statuses."""
    add_recipe(world, name, tests)
    world.remote.add_collaborator(f"recipes/{name}", world.bot, "write")


def harnesses(run: TestRun) -> list[psutil.Process]:
    """The processes of the run on this machine."""
    return [one for one in psutil.process_iter(["cmdline"]) if str(run.id) in " ".join(one.info["cmdline"] or [])]


# --- whole runs


def test_extra_tests_asked_for_in_a_comment_run_as_a_build(
    world: RealWorld, owner: RealDrone, drone: RealDrone, row: RemoteExecutor
) -> None:
    add_writable(world, "far", {"tests/test_it.py": "def test_it(app):\n    app.get('/')\n", **EXTRA})
    world.remote.set_private("recipes/far")
    owner.add_secret("CC_CI_GIT_TOKEN", world.token)
    assert [(finding.level, finding.text) for finding in check_executor(row) if finding.level != "ok"] == []
    comment = world.say("recipes/far", "!testme --extra-tests")
    world.hear()
    world.run_all(300)
    run = TestRun.objects.get()
    assert run.state == State.PASSED, run.reason
    (build,) = drone.builds()
    assert (build["status"], build["params"]["EXTRA_TESTS"]) == ("success", "1")
    assert dict(run.stage_results.values_list("name", "status"))["extra"] == "passed"
    assert run.build_url == f"{drone.url}/{drone.repository}/{build['number']}"
    assert "junit-extra.xml" in run.artefacts.values_list("name", flat=True)
    (text,) = world.own_comments("recipes/far")
    assert "passed" in text
    assert world.reactions(comment) == ["eyes"]
    assert world.remote.statuses_of("recipes/far", run.sha)[0].state == "success"
    printed = drone.log(build)
    assert "cc-ci:1:" in printed
    assert world.token not in printed and build["params"]["CC_CI_KEY"] not in printed
    assert not harnesses(run)


def test_a_test_that_fails_makes_the_run_fail(world: RealWorld, drone: RealDrone, row: RemoteExecutor) -> None:
    add_writable(world, "far", {"tests/test_it.py": FAILS})
    world.say("recipes/far", "!testme")
    world.hear()
    world.run_all(300)
    run = TestRun.objects.get()
    assert (run.state, run.attempt) == (State.FAILED, 1), run.reason
    assert [build["status"] for build in drone.builds()] == ["failure"]
    (text,) = world.own_comments("recipes/far")
    assert "no teapot" in text
    assert world.remote.statuses_of("recipes/far", run.sha)[0].state == "failure"


def test_a_cancel_leaves_no_process(world: RealWorld, drone: RealDrone, row: RemoteExecutor) -> None:
    add_recipe(world, "far", {"tests/test_it.py": SLEEPS})
    world.say("recipes/far", "!testme")
    world.hear()

    def tests_run() -> bool:
        world._step()
        return "custom" in TestRun.objects.get().log

    world.until(tests_run, 120)
    run = TestRun.objects.get()
    assert harnesses(run), "the runner is on another machine"
    world.say("recipes/far", "!testme cancel")
    world.hear()
    world.run_all(120)
    assert TestRun.objects.get().state == State.CANCELLED
    assert [build["status"] for build in drone.builds()] == ["killed"]
    world.until(lambda: not harnesses(run), 120)


# --- what keeps a run from starting


@pytest.mark.parametrize(
    ("what", "words", "found"),
    [
        ("disabled", "is disabled in Drone: activate it at", "is disabled in Drone"),
        ("wrong token", "Drone does not accept the token", "Drone does not accept the token"),
        ("no event filter", "accepted the build and started none", "add `custom` to its `trigger: event:`"),
        ("no write access", "give the user write access at the forge", "may not start builds"),
        ("no branch", "with a branch nowhere", "on nowhere"),
        ("unreadable", "Drone cannot use the pipeline", "invalid YAML"),
    ],
)
def test_what_is_wrong_is_said(
    what: str, words: str, found: str, world: RealWorld, owner: RealDrone, drone: RealDrone, row: RemoteExecutor
) -> None:
    texts = {"no event filter": pipeline().replace("[custom]", "[push]"), "unreadable": "kind: pipeline\nsteps: {\n"}
    if what == "disabled":
        owner.deactivate()
    elif what == "wrong token":
        row.token = "0" * 32
    elif what == "no write access":
        world.remote.add_collaborator(drone.repository, world.bot, "read")
        drone.sync()
    elif what == "no branch":
        row.branch = "nowhere"
    else:
        world.remote.push(drone.repository, "main", {".drone.yml": texts[what]})
    row.save()
    run = claimed(row)
    with pytest.raises(ExecutorError) as error:
        executor_for(run).start(run)
    assert words in str(error.value)
    assert any(found in finding.text for finding in check_executor(row)), "and a check finds it beforehand"
    assert not [build for build in drone.builds() if build["status"] != "error"]


# --- the fake one's answers


def kind(value: Any) -> Any:
    """The shape of JSON: types, and names of fields. A list is like its first element."""
    if isinstance(value, dict):
        return {name: kind(one) for name, one in value.items()}
    if isinstance(value, list):
        return [kind(value[0])] if value else []
    return type(value).__name__


def missing(fake: Any, real: Any, where: str = "answer") -> list[str]:
    """What the fake has in its answer otherwise than the real one. It may leave out what cc-ci does not read."""
    if isinstance(fake, dict) and isinstance(real, dict):
        return [
            text
            for name, value in fake.items()
            for text in ([f"{where} has no {name}"] if name not in real else missing(value, real[name], f"{where}.{name}"))
        ]
    if isinstance(fake, list) and isinstance(real, list):
        return missing(fake[0], real[0], f"{where}[0]") if fake and real else []
    return [] if fake == real else [f"{where} is {real}, not {fake}"]


class Both:
    """The same requests to a fake Drone and the real one, and what differs."""

    def __init__(self, fake: FakeDrone, real: RealDrone) -> None:
        self.fake, self.real, self.different = fake, real, list[str]()

    def ask(self, method: str, path: str, *, as_: str = "user", **query: object) -> Any:
        """The real answer's JSON."""
        answers = []
        for url, token in ((self.fake.url, self.fake.token), (self.real.url, self.real.token)):
            headers = {"user": {"Authorization": f"Bearer {token}"}, "wrong": {"Authorization": "Bearer 0123"}, "guest": {}}[as_]
            session = requests.Session()
            session.trust_env = False
            with session.request(method, url + path, params=query, headers=headers, timeout=60, stream=True) as answer:
                if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                    lines = (line for line in answer.iter_lines() if line.startswith(b"data: {"))
                    answers.append((answer.status_code, json.loads(next(lines, b"data: null")[6:])))
                else:
                    answers.append((answer.status_code, answer.json() if answer.content else ""))
        (status, fake), (real_status, real) = answers
        name = f"{method} {path} {query} as {as_}"
        if status != real_status:
            self.different.append(f"{name}: {real_status} {str(real)[:200]}, not {status} {str(fake)[:200]}")
        else:
            self.different += [f"{name}: {text}" for text in missing(kind(fake), kind(real))]
        return real

    def same(self, name: str, fake: object, real: object) -> None:
        if fake != real:
            self.different.append(f"{name}: {real}, not {fake}")


def test_the_fake_answers_as_drone_does(world: RealWorld, owner: RealDrone, drone: RealDrone, tmp_path: Path) -> None:
    slow = (
        pipeline()
        .replace("exec cc-ci harness", "echo begun; exec sleep $SECONDS_TO_SLEEP")
        .replace("disable: true", "disable: false")
    )
    for hook in world.remote.listed(f"/repos/{drone.repository}/hooks"):  # what is pushed here shall make no builds
        world.remote.call("DELETE", f"/repos/{drone.repository}/hooks/{hook['id']}")
    world.remote.push(drone.repository, "main", {".drone.yml": slow})
    fake = FakeDrone(tmp_path / "fake", does_nothing)
    fake.repository = drone.repository
    fake.secrets["forge"] = f"{world.server.url}/{drone.repository}.git"
    both = Both(fake, drone)
    repo, builds = f"/api/repos/{drone.repository}", f"/api/repos/{drone.repository}/builds"
    try:
        both.ask("GET", "/version")
        for as_ in ("user", "wrong", "guest"):
            both.ask("GET", "/api/user", as_=as_)
            both.ask("GET", repo, as_=as_)
            both.ask("GET", builds, as_=as_)
            both.ask("GET", "/api/repos/ci/none", as_=as_)
        both.ask("GET", f"{builds}/1")

        def shown(number: int) -> dict[str, Any]:
            return dict(drone.call("GET", f"{builds}/{number}"))

        given: dict[str, Any] = {"branch": "main", "A": ["1", "2"], "EMPTY": "", "message": "hello", "SECONDS_TO_SLEEP": "600"}
        for as_ in ("wrong", "guest"):
            both.ask("POST", builds, as_=as_, **given)
        made = both.ask("POST", builds, **given)
        both.same("params", fake.builds[0].params, made["params"])
        both.same("event", fake.event, made["event"])
        world.until(lambda: any((step["name"], step["status"]) == ("test", "running") for step in steps(shown(1))), 120)
        fake.builds[0].status = fake.builds[0].step.status = "running"
        fake.builds[0].step.lines.append("begun\n")
        build = both.ask("GET", f"{builds}/1")
        both.ask("GET", builds, page=1, per_page=1)
        both.ask("GET", builds, as_="wrong")
        numbers = [(step["name"], stage["number"], step["number"]) for stage in build["stages"] for step in stage["steps"]]
        fake_steps = [
            (step["name"], stage["number"], step["number"])
            for stage in fake.shown(fake.builds[0], steps=True)["stages"]
            for step in stage["steps"]
        ]
        both.same("steps", fake_steps, numbers)
        at = next(f"{stage}/{step}" for name, stage, step in numbers if name == "test")
        both.ask("GET", f"{builds}/1/logs/{at}")
        both.ask("GET", f"/api/stream/{drone.repository}/1/{at}")
        both.ask("GET", f"{builds}/1/logs/9/9")
        both.ask("DELETE", f"{builds}/1", as_="wrong")
        both.ask("DELETE", f"{builds}/1")
        both.same("a cancelled one", fake.builds[0].status, shown(1)["status"])
        both.ask("DELETE", f"{builds}/1")
        both.ask("DELETE", f"{builds}/99")
        both.ask("POST", builds, branch="main", SECONDS_TO_SLEEP="0")
        world.until(lambda: shown(2)["status"] == "success", 120)
        fake.builds[1].step.lines.append("begun\n")
        fake.end(fake.builds[1], "success")
        both.ask("GET", f"{builds}/2")
        both.ask("GET", f"{builds}/2/logs/{at}")
        for page, asked in ((1, 1), (2, 1), (9, 1), (0, 0), (1, 101)):
            answer = both.ask("GET", builds, page=page, per_page=asked)
            size = asked if 1 <= asked <= 100 else 25
            both.same(f"page {page} of {size}", len(fake.builds[(max(page, 1) - 1) * size :][:size]), len(answer))
        # What keeps a build from starting.
        world.remote.push(drone.repository, "main", {".drone.yml": slow.replace("[custom]", "[push]")})
        fake.matches = False
        both.ask("POST", builds, branch="main")
        world.remote.push(drone.repository, "main", {".drone.yml": "kind: pipeline\nsteps: {\n"})
        fake.matches, fake.pipeline_error = True, "yaml: line 2"
        both.ask("POST", builds, branch="main", A="1")
        both.ask("GET", f"{builds}/3")
        owner.call("PATCH", owner.path, {"visibility": "public"})
        fake.visibility = "public"
        for as_ in ("user", "wrong", "guest"):
            both.ask("GET", repo, as_=as_)
            both.ask("GET", builds, as_=as_)
            both.ask("GET", f"{builds}/2", as_=as_)
            both.ask("GET", f"{builds}/2/logs/{at}", as_=as_)
        for as_ in ("wrong", "guest"):
            both.ask("POST", builds, as_=as_, branch="main")
            both.ask("DELETE", f"{builds}/2", as_=as_)
        owner.deactivate()
        fake.active, fake.pipeline_error = False, ""
        world.remote.push(drone.repository, "main", {".drone.yml": slow})
        both.ask("GET", repo)
        both.ask("POST", builds, branch="main", SECONDS_TO_SLEEP="0")
        world.remote.add_collaborator(drone.repository, world.bot, "read")
        drone.sync()
        fake.write = False
        both.ask("GET", repo)
        both.ask("POST", builds, branch="main")
        both.ask("DELETE", f"{builds}/1")
    finally:
        fake.close()
    assert not both.different, "\n".join(both.different)


def steps(build: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for stage in build.get("stages") or [] for step in stage.get("steps") or []]
