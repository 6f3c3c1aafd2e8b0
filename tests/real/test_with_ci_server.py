"""The whole way from a comment at a real Gitea to a verdict made by a real CI server, and the fake one's answers against its."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from django.conf import settings
from pytest_django.live_server_helper import LiveServer

from runs.executors import builds
from runs.executors.base import ExecutorError
from runs.executors.check import check_executor
from runs.executors.select import ENGINES, executor_for
from runs.models import RemoteExecutor, State, TestRun
from tests.real.ci_server import SERVERS, RealServer, RealWoodpecker
from tests.real.forge import RealWorld
from tests.runs.executors.conftest import FAKES, row_for
from tests.runs.executors.fakes import FakeDrone, FakeServer, FakeWoodpecker
from tests.runs.executors.scripts import claimed, does_nothing
from tests.runs.executors.test_harness_command import add_recipe
from tests.waiting import until

NEEDED = (
    "needs a Gitea that is there for tests alone (FORGE), its administrator's login (FORGE_ADMIN=name:password), and a CI server "
    "that works with it (DRONE or WOODPECKER): see CONTRIBUTING.md"
)
GIVEN = {name: os.environ.get(name, "") for name in ("FORGE", "FORGE_ADMIN")}
#: The address of each server.
URLS = {kind: os.environ.get(kind.upper(), "") for kind in SERVERS}
if not all(GIVEN.values()) or not any(URLS.values()):
    pytest.skip(NEEDED, allow_module_level=True)
HOOK = {name: os.environ.get(name, "") for name in ("DRONE_WEBHOOK_ENDPOINT", "DRONE_WEBHOOK_SECRET")}
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow(20)]
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


@pytest.fixture(params=SERVERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Of the CI server."""
    if not URLS[request.param]:
        pytest.skip(f"{request.param.upper()} is not set: {NEEDED}")
    return str(request.param)


@pytest.fixture(scope="module")
def listener() -> Iterator[None]:
    """cc-ci's pages, where Drone's webhooks go: it makes no builds of unreadable pipelines while nobody takes those."""
    address = urlsplit(HOOK["DRONE_WEBHOOK_ENDPOINT"]).netloc
    if not URLS["drone"] or not address:
        yield
        return
    server = LiveServer(address)  # one for all tests: its port is not free again at once
    yield
    server.stop()


@pytest.fixture
def owner(kind: str, world: RealWorld, listener: None) -> RealServer:
    """Who owns the runner repository, and has activated it."""
    # Drone knows repositories by name for longer than one of these tests lasts.
    name, forge, server = f"runner-{os.urandom(4).hex()}", world.remote, SERVERS[kind]
    forge.add_org("ci", world.admin)
    repository = forge.add_repo("ci", name, private=True, files={FAKES[kind].file: server.pipeline()}).full_name
    forge.add_collaborator(repository, world.bot, "write")
    owner = server(URLS[kind], world.remote, world.admin.login, repository)  # type: ignore[arg-type]
    owner.activate()
    for name, value in (("CC_CI_GIT_TOKEN", world.token), ("CC_CI_REGISTRY_LOGINS", '{"auths": {}}' + " " * 16)):
        owner.add_secret(name, value)
    return owner


@pytest.fixture
def server(world: RealWorld, owner: RealServer) -> Iterator[RealServer]:
    """The same, as cc-ci's user."""
    server = type(owner)(owner.url, owner.forge, world.bot.login, owner.repository)
    server.sync()
    yield server
    for build in owner.builds():
        owner.stop(build["number"])
    owner.deactivate()


@pytest.fixture
def row(world: RealWorld, server: RealServer) -> RemoteExecutor:
    row = row_for(server)  # type: ignore[arg-type]
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


def test_extra_tests_asked_for_in_a_comment_run_as_a_build(world: RealWorld, server: RealServer, row: RemoteExecutor) -> None:
    add_writable(world, "far", {"tests/test_it.py": "def test_it(app):\n    app.get('/')\n", **EXTRA})
    world.remote.set_private("recipes/far")
    assert [(finding.level, finding.text) for finding in check_executor(row) if finding.level != "ok"] == []
    comment = world.say("recipes/far", "!testme --extra-tests")
    world.hear()
    world.run_all()
    run = TestRun.objects.get()
    assert run.state == State.PASSED, run.reason
    (build,) = server.builds()
    params = build[server.params]
    assert (build["status"], params["EXTRA_TESTS"]) == ("success", "1")
    assert dict(run.stage_results.values_list("name", "status"))["extra"] == "passed"
    assert run.build_url == server.page(build["number"])
    assert "junit-extra.xml" in run.artefacts.values_list("name", flat=True)
    (text,) = world.own_comments("recipes/far")
    assert "passed" in text
    assert world.reactions(comment) == ["eyes"]
    assert world.remote.statuses_of("recipes/far", run.sha)[0].state == "success"
    printed = server.log(build)
    assert "cc-ci:1:" in printed
    assert world.token not in printed and params["CC_CI_KEY"] not in printed
    assert not harnesses(run)


def test_a_test_that_fails_makes_the_run_fail(world: RealWorld, server: RealServer, row: RemoteExecutor) -> None:
    add_writable(world, "far", {"tests/test_it.py": FAILS})
    world.say("recipes/far", "!testme")
    world.hear()
    world.run_all()
    run = TestRun.objects.get()
    assert (run.state, run.attempt) == (State.FAILED, 1), run.reason
    assert [build["status"] for build in server.builds()] == ["failure"]
    (text,) = world.own_comments("recipes/far")
    assert "no teapot" in text
    assert world.remote.statuses_of("recipes/far", run.sha)[0].state == "failure"


def test_a_cancel_leaves_no_process(world: RealWorld, server: RealServer, row: RemoteExecutor) -> None:
    add_recipe(world, "far", {"tests/test_it.py": SLEEPS})
    world.say("recipes/far", "!testme")
    world.hear()

    def tests_run() -> bool:
        world._step()
        return "custom" in TestRun.objects.get().log

    until(tests_run)
    run = TestRun.objects.get()
    assert harnesses(run), "the runner is on another machine"
    world.say("recipes/far", "!testme cancel")
    world.hear()
    world.run_all()
    assert TestRun.objects.get().state == State.CANCELLED
    assert [build["status"] for build in server.builds()] == ["killed"]
    until(lambda: not harnesses(run))


@pytest.mark.parametrize("kind", ["drone"], indirect=True)
def test_a_webhook_makes_cc_ci_look_at_once(
    world: RealWorld, server: RealServer, row: RemoteExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not all(HOOK.values()):
        pytest.skip(f"needs {' and '.join(HOOK)}, as Drone was started with: see CONTRIBUTING.md")
    assert urlsplit(HOOK["DRONE_WEBHOOK_ENDPOINT"]).path == f"/runs/executors/{row.name}/hook/"
    row.hook_secret = HOOK["DRONE_WEBHOOK_SECRET"]
    row.save()
    for name in ("SOONEST", "LATEST"):  # without a message, nothing is asked about a build for so many seconds
        monkeypatch.setattr(builds, name, 3600.0)
    add_recipe(world, "far", {"tests/test_it.py": "def test_it(app):\n    app.get('/')\n"})
    world.say("recipes/far", "!testme")
    world.hear()
    world.run_all()
    run = TestRun.objects.get()
    assert run.state == State.PASSED, run.reason
    assert run.woken_at


# --- what keeps a run from starting


@pytest.mark.parametrize(
    ("what", "words", "found"),
    [
        ("disabled", "is disabled in {label}: activate it at", "is disabled in {label}"),
        ("wrong token", "{label} does not accept the token", "{label} does not accept the token"),
        ("no event filter", "{trigger}", "add `"),
        ("no write access", "give the user write access at the forge", "may not start builds"),
        ("no branch", "branch nowhere", "on nowhere"),
        ("unreadable", "{label} cannot use the pipeline", "invalid YAML"),
    ],
)
def test_what_is_wrong_is_said(
    what: str, words: str, found: str, world: RealWorld, owner: RealServer, server: RealServer, row: RemoteExecutor
) -> None:
    engine, text = ENGINES[server.kind], server.pipeline()
    texts = {"no event filter": text.replace(engine.event, "tag"), "unreadable": "kind: pipeline\nsteps: {\n"}
    if what == "disabled":
        owner.deactivate()
    elif what == "wrong token":
        row.token = "0" * 32
    elif what == "no write access":
        world.remote.add_collaborator(server.repository, world.bot, "read")
        server.sync()
    elif what == "no branch":
        row.branch = "nowhere"
    else:
        world.remote.push(server.repository, "main", {FAKES[server.kind].file: texts[what]})
    row.save()
    run = claimed(row)
    with pytest.raises(ExecutorError) as error:
        executor_for(run).start(run)
    assert words.format(label=engine.label, trigger=engine.trigger) in str(error.value)
    findings = [finding.text for finding in check_executor(row)]
    assert any(found.format(label=engine.label) in text for text in findings), "and a check finds it beforehand"
    assert not [build for build in server.builds() if build["status"] != "error"]


# --- the fake one's answers


def shape(value: Any) -> Any:
    """Types, and names of fields. A list is like its first element."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
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


def parsed(answer: requests.Response) -> Any:
    """JSON, or a text."""
    try:
        return answer.json() if answer.content else ""
    except ValueError:
        return answer.text


class Both:
    """The same requests to a fake server and the real one, and what differs."""

    def __init__(self, fake: FakeServer, real: RealServer) -> None:
        self.fake, self.real, self.different = fake, real, list[str]()

    def ask(self, method: str, path: str, *, as_: str = "user", body: object = None, there: str = "", **query: object) -> Any:
        """The real answer. There its path may be another one."""
        answers = []
        for url, token in ((self.fake.url + path, self.fake.token), (self.real.url + (there or path), self.real.token)):
            headers = {"user": {"Authorization": f"Bearer {token}"}, "wrong": {"Authorization": "Bearer 0123"}, "guest": {}}[as_]
            session = requests.Session()
            session.trust_env = False
            with session.request(method, url, params=query, json=body, headers=headers, timeout=60, stream=True) as answer:
                if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                    lines = (line for line in answer.iter_lines() if line.startswith(b"data: {"))
                    answers.append((answer.status_code, json.loads(next(lines, b"data: null")[6:])))
                else:
                    answers.append((answer.status_code, parsed(answer)))
        (status, fake), (real_status, real) = answers
        name = f"{method} {path} {query} as {as_}"
        if status != real_status:
            self.different.append(f"{name}: {real_status} {str(real)[:200]}, not {status} {str(fake)[:200]}")
        else:
            self.different += [f"{name}: {text}" for text in missing(shape(fake), shape(real))]
        return real

    def same(self, name: str, fake: object, real: object) -> None:
        if fake != real:
            self.different.append(f"{name}: {real}, not {fake}")


@pytest.fixture
def both(world: RealWorld, server: RealServer, tmp_path: Path) -> Iterator[Both]:
    """With a pipeline that sleeps. What is pushed to its repository makes no builds."""
    for hook in world.remote.listed(f"/repos/{server.repository}/hooks"):
        world.remote.call("DELETE", f"/repos/{server.repository}/hooks/{hook['id']}")
    world.remote.push(server.repository, "main", {FAKES[server.kind].file: sleeping(server)})
    fake = FAKES[server.kind](tmp_path / "fake", does_nothing)
    fake.repository = server.repository
    fake.secrets["forge"] = f"{world.server.url}/{server.repository}.git"
    yield Both(fake, server)
    fake.close()


def sleeping(server: RealServer) -> str:
    return server.pipeline().replace("exec cc-ci harness", "echo begun; exec sleep $SECONDS_TO_SLEEP")


def running(server: RealServer, number: int) -> str:
    """The path to the log of its step, once that runs."""
    return next((at for name, status, at in server.steps(server.build(number)) if (name, status) == ("test", "running")), "")


@pytest.mark.parametrize("kind", ["drone"], indirect=True)
def test_the_fake_answers_as_drone_does(world: RealWorld, owner: RealServer, server: RealServer, both: Both) -> None:
    slow, fake = sleeping(server).replace("disable: true", "disable: false"), both.fake
    assert isinstance(fake, FakeDrone)
    world.remote.push(server.repository, "main", {".drone.yml": slow})
    repo, listed = f"/api/repos/{server.repository}", f"/api/repos/{server.repository}/builds"
    both.ask("GET", "/version")
    for as_ in ("user", "wrong", "guest"):
        both.ask("GET", "/api/user", as_=as_)
        both.ask("GET", repo, as_=as_)
        both.ask("GET", listed, as_=as_)
        both.ask("GET", "/api/repos/ci/none", as_=as_)
    both.ask("GET", f"{listed}/1")

    given: dict[str, Any] = {"branch": "main", "A": ["1", "2"], "EMPTY": "", "message": "hello", "SECONDS_TO_SLEEP": "600"}
    for as_ in ("wrong", "guest"):
        both.ask("POST", listed, as_=as_, **given)
    made = both.ask("POST", listed, **given)
    both.same("params", fake.builds[0].params, made["params"])
    both.same("event", fake.event, made["event"])
    until(lambda: bool(running(server, 1)))
    fake.builds[0].status = fake.builds[0].step.status = "running"
    fake.builds[0].step.lines.append("begun\n")
    build = both.ask("GET", f"{listed}/1")
    both.ask("GET", listed, page=1, per_page=1)
    both.ask("GET", listed, as_="wrong")
    numbers = [(step["name"], stage["number"], step["number"]) for stage in build["stages"] for step in stage["steps"]]
    fake_steps = [
        (step["name"], stage["number"], step["number"])
        for stage in fake.shown(fake.builds[0], steps=True)["stages"]
        for step in stage["steps"]
    ]
    both.same("steps", fake_steps, numbers)
    at = next(f"{stage}/{step}" for name, stage, step in numbers if name == "test")
    both.ask("GET", f"{listed}/1/logs/{at}")
    both.ask("GET", f"/api/stream/{server.repository}/1/{at}")
    both.ask("GET", f"{listed}/1/logs/9/9")
    both.ask("DELETE", f"{listed}/1", as_="wrong")
    both.ask("DELETE", f"{listed}/1")
    both.same("a cancelled one", fake.builds[0].status, server.build(1)["status"])
    both.ask("DELETE", f"{listed}/1")
    both.ask("DELETE", f"{listed}/99")
    both.ask("POST", listed, branch="main", SECONDS_TO_SLEEP="0")
    until(lambda: server.build(2)["status"] == "success")
    fake.builds[1].step.lines.append("begun\n")
    fake.end(fake.builds[1], "success")
    both.ask("GET", f"{listed}/2")
    both.ask("GET", f"{listed}/2/logs/{at}")
    for page, asked in ((1, 1), (2, 1), (9, 1), (0, 0), (1, 101)):
        answer = both.ask("GET", listed, page=page, per_page=asked)
        size = asked if 1 <= asked <= 100 else 25
        both.same(f"page {page} of {size}", len(fake.builds[(max(page, 1) - 1) * size :][:size]), len(answer))
    # What keeps a build from starting.
    world.remote.push(server.repository, "main", {".drone.yml": slow.replace("[custom]", "[push]")})
    fake.matches = False
    both.ask("POST", listed, branch="main")
    world.remote.push(server.repository, "main", {".drone.yml": "kind: pipeline\nsteps: {\n"})
    fake.matches, fake.pipeline_error = True, "yaml: line 2"
    both.ask("POST", listed, branch="main", A="1")
    both.ask("GET", f"{listed}/3")
    owner.set_visibility("public")
    fake.visibility = "public"
    for as_ in ("user", "wrong", "guest"):
        both.ask("GET", repo, as_=as_)
        both.ask("GET", listed, as_=as_)
        both.ask("GET", f"{listed}/2", as_=as_)
        both.ask("GET", f"{listed}/2/logs/{at}", as_=as_)
    for as_ in ("wrong", "guest"):
        both.ask("POST", listed, as_=as_, branch="main")
        both.ask("DELETE", f"{listed}/2", as_=as_)
    owner.deactivate()
    fake.active, fake.pipeline_error = False, ""
    world.remote.push(server.repository, "main", {".drone.yml": slow})
    both.ask("GET", repo)
    both.ask("POST", listed, branch="main", SECONDS_TO_SLEEP="0")
    world.remote.add_collaborator(server.repository, world.bot, "read")
    server.sync()
    fake.write = False
    both.ask("GET", repo)
    both.ask("POST", listed, branch="main")
    both.ask("DELETE", f"{listed}/1")
    assert not both.different, "\n".join(both.different)


@pytest.mark.parametrize("kind", ["woodpecker"], indirect=True)
def test_the_fake_answers_as_woodpecker_does(world: RealWorld, owner: RealServer, server: RealServer, both: Both) -> None:
    # A filter without an event is a bad habit, of which Woodpecker warns.
    slow, fake = sleeping(server).replace("  event: manual\n", "- event: manual\n- branch: main\n"), both.fake
    world.remote.push(server.repository, "main", {FAKES[server.kind].file: slow})
    assert isinstance(fake, FakeWoodpecker) and isinstance(server, RealWoodpecker)
    fake.number = server.number
    lookup, repo = f"/api/repos/lookup/{server.repository}", server.path
    pipelines = f"{repo}/pipelines"
    listed: dict[str, Any] = {"page": 1, "perPage": 50, "event": "manual"}
    both.ask("GET", "/version")
    for as_ in ("user", "wrong", "guest"):
        both.ask("GET", "/api/user", as_=as_)
        both.ask("GET", lookup, as_=as_)
        both.ask("GET", "/api/repos/lookup/ci/none", as_=as_)
        both.ask("GET", f"{repo}/permissions", as_=as_)
        both.ask("GET", pipelines, as_=as_, **listed)
    both.ask("GET", f"{pipelines}/1")

    def create(as_: str = "user", **variables: str) -> Any:
        return both.ask("POST", pipelines, as_=as_, body={"branch": "main", "variables": variables})

    for as_ in ("wrong", "guest"):
        create(as_, A="1")
    made = create(A="1", EMPTY="", SECONDS_TO_SLEEP="600")
    both.same("variables", fake.builds[0].params, made["variables"])
    both.same("event", fake.event, made["event"])
    until(lambda: bool(running(server, 1)))
    fake.builds[0].status = fake.builds[0].step.status = "running"
    fake.builds[0].started = 1
    fake.builds[0].step.lines.append("begun\n")
    both.ask("GET", f"{pipelines}/1")
    both.ask("GET", pipelines, **listed)
    both.ask("GET", pipelines, as_="wrong", **listed)

    def log(number: int, at: str, as_: str = "user") -> Any:
        return both.ask("GET", f"{repo}/logs/{number}/502", as_=as_, there=f"{repo}/logs/{number}/{at}")

    at = running(server, 1)
    until(lambda: bool(server.ask("GET", f"{repo}/logs/1/{at}").json()))
    log(1, at)
    both.ask("GET", f"{repo}/logs/1/999999")
    both.ask("POST", f"{pipelines}/1/cancel", as_="wrong")
    both.ask("POST", f"{pipelines}/1/cancel")
    both.same("a cancelled one", fake.builds[0].status, server.build(1)["status"])
    both.ask("POST", f"{pipelines}/1/cancel")
    both.ask("POST", f"{pipelines}/99/cancel")
    create(SECONDS_TO_SLEEP="0")
    until(lambda: server.build(2)["status"] == "success")
    fake.builds[1].step.lines.append("begun\n")
    fake.end(fake.builds[1], "success")
    at = next(at for name, _, at in server.steps(both.ask("GET", f"{pipelines}/2")) if name == "test")
    until(lambda: bool(server.ask("GET", f"{repo}/logs/2/{at}").json()))  # its agent sends it once a second
    log(2, at)
    for page, asked in ((1, 1), (2, 1), (9, 1)):
        answer = both.ask("GET", pipelines, page=page, perPage=asked)
        both.same(f"page {page} of {asked}", len(fake.builds[(page - 1) * asked :][:asked]), len(answer or []))
    # What keeps a pipeline from starting.
    world.remote.push(server.repository, "main", {fake.file: sleeping(server).replace("manual", "tag")})
    fake.matches = False
    create()
    world.remote.push(server.repository, "main", {fake.file: "kind: pipeline\nsteps: {\n"})
    fake.matches, fake.pipeline_error = True, "yaml: line 2"
    create(A="1")
    both.ask("GET", f"{pipelines}/3")
    owner.set_visibility("public")
    fake.visibility = "public"
    for as_ in ("user", "wrong", "guest"):
        both.ask("GET", lookup, as_=as_)
        both.ask("GET", f"{repo}/permissions", as_=as_)
        both.ask("GET", pipelines, as_=as_, **listed)
        both.ask("GET", f"{pipelines}/2", as_=as_)
        log(2, at, as_)
    for as_ in ("wrong", "guest"):
        create(as_, A="1")
        both.ask("POST", f"{pipelines}/2/cancel", as_=as_)
    owner.deactivate()
    fake.active, fake.pipeline_error = False, ""
    world.remote.push(server.repository, "main", {fake.file: slow})
    both.ask("GET", lookup)
    create(SECONDS_TO_SLEEP="0")
    owner.activate()
    world.remote.add_collaborator(server.repository, world.bot, "read")
    server.sync()
    fake.active, fake.write = True, False
    both.ask("GET", f"{repo}/permissions")
    create()
    both.ask("POST", f"{pipelines}/1/cancel")
    assert not both.different, "\n".join(both.different)
