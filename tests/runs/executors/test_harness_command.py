"""`cc-ci harness`, as a build's step, and the whole way from a comment to a report made by a build."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import random
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management.base import CommandError
from django.utils import timezone

from controlplane.installation import installation_id
from runs.executors.builds import key_for, params_for
from runs.executors.marked_lines import Writer, read, unmarked
from runs.harness.protocol import (
    Artefact,
    CaseResult,
    Event,
    LintFinding,
    Request,
    Results,
    RunFolder,
    Source,
    StageResult,
    Verdict,
)
from runs.management.commands import harness
from runs.management.commands.harness import Report, credential, request_from
from runs.models import State, TestRun
from tests.factories import TestRunFactory
from tests.runs.executors.conftest import row_for
from tests.runs.executors.fakes import LOG_BYTES, FakeServer
from tests.waiting import until
from tests.world import WEB, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]


def add_recipe(world: World, name: str, tests: dict[str, str]) -> None:
    files: dict[str, str | bytes] = {
        str(path.relative_to(WEB)): path.read_bytes() for path in WEB.rglob("*") if path.is_file() and "tests" not in path.parts
    }
    world.add_recipe(name, files={**files, **tests})
    world.enroll(f"recipes/{name}")


HOSTILE = """
import os

def test_it(app):
    app.get("/")
    print("cc-ci:1:" * 1000, end="")
    print("x" * (1 << 20), end="\\r")
    print("\\x1b[2J", end="")
    os.write(1, b"no newline")
    for name in ("CC_CI_KEY", "CC_CI_REQUEST", "CC_CI_RUN_ID", "CC_CI_GIT_TOKEN"):
        assert name not in os.environ, name
"""


@pytest.mark.slow(8)
def test_extra_tests_asked_for_in_a_comment_run_as_a_build(world: World, fake: FakeServer) -> None:
    extra = {"tests/extra/test_load.py": "def test_load(app):\n    assert app.get('/').status_code == 200\n"}
    add_recipe(world, "far", {"tests/test_it.py": HOSTILE, **extra})
    row_for(fake).forges.add(world.forge)
    fake.secrets["CC_CI_GIT_TOKEN"] = "the-token-for-git"
    world.say("recipes/far", "!testme --extra-tests")
    world.hear()
    world.run_all()
    run = TestRun.objects.get()
    assert run.state == State.PASSED, run.reason
    (build,) = fake.builds
    until(lambda: build.status != "running")
    assert (build.params["EXTRA_TESTS"], build.status) == ("1", "success")
    assert dict(run.stage_results.values_list("name", "status"))["extra"] == "passed"
    assert run.executor_name == "drone" and run.build_url == f"{fake.url}/ci/runner/1"
    assert "junit-extra.xml" in run.artefacts.values_list("name", flat=True)
    (text,) = world.own_comments("recipes/far")
    assert "passed" in text
    assert world.remote.statuses_of("recipes/far", run.sha)[0].state == "success"
    printed = "".join(build.step.lines)
    assert world.token not in printed and "the-token-for-git" not in printed and build.params["CC_CI_KEY"] not in printed
    assert len(printed) < 1_000_000
    assert not any((fake.folder / "cc-ci" / "builds").iterdir()), "nothing of the run stays on the runner's machine"


@pytest.mark.slow(5)
def test_a_build_started_by_hand_runs_without_cc_ci(world: World, fake: FakeServer) -> None:
    add_recipe(world, "far", {"tests/test_it.py": "def test_it(app):\n    assert False, 'no teapot'\n"})
    url = f"{world.server.url}/recipes/far.git"
    build = fake.create([("CC_CI_RECIPE", url), ("CC_CI_REF", ""), ("STAGES", "install,custom"), ("EXTRA_TESTS", "")])
    assert build and build.process
    until(lambda: build.step.stored)
    text = "".join(build.step.lines)
    assert (build.process.returncode, build.status) == (1, "failure"), text
    assert "no teapot" in text and "cc-ci:1:" not in text
    assert "upgrade" not in text.partition("Stage")[2]


def packed(run_id: object, text: str = "") -> str:
    request = {"run_id": run_id, "installation_id": "i", "recipe": "web", "source": {"url": "https://x/y.git"}}
    return base64.urlsafe_b64encode(zlib.compress((text or json.dumps(request)).encode())).decode()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "Set CC_CI_RECIPE"),
        ({"CC_CI_RECIPE": "hedgedoc"}, "Set CC_CI_RECIPE"),
        ({"CC_CI_RECIPE": "https://x/y.git", "CC_CI_SHA": "--all"}, "Invalid commit id"),
        ({"CC_CI_RECIPE": "https://x/y.git", "CC_CI_SHA": "abc"}, "Invalid commit id"),
        ({"CC_CI_RECIPE": "https://x/y.git", "STAGES": "instal"}, "Did you mean install?"),
        ({"CC_CI_REQUEST": packed("{" + str(uuid.uuid4()) + "}")}, "not a request"),
        ({"CC_CI_REQUEST": packed(uuid.uuid4().urn)}, "not a request"),
        ({"CC_CI_REQUEST": packed(str(uuid.uuid4()).upper())}, "not a request"),
        ({"CC_CI_REQUEST": packed(["x"])}, "not a request"),
        ({"CC_CI_REQUEST": packed("x", "[" * 100_000)}, "recursion"),
        ({"CC_CI_REQUEST": "###"}, "CC_CI_REQUEST cannot be read"),
        ({"CC_CI_REQUEST": "eJyrBQAAkwB6"}, "CC_CI_REQUEST cannot be read"),
    ],
)
def test_wrong_parameters_say_what_to_set(environment: dict[str, str], words: str) -> None:
    with pytest.raises(CommandError) as error:
        request_from(environment)
    assert words in str(error.value)
    assert error.value.returncode == 64


def test_the_request_arrives_as_it_was_sent(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TestRunFactory(attempt=1, stages=["install", "custom", "extra"], trusted=False, upgrade_from="1.0.0+2.0")
    monkeypatch.setattr(settings.CC_CI, "run_seconds", 1234)
    params = params_for(run)
    monkeypatch.setattr(settings.CC_CI, "run_seconds", 1800)
    monkeypatch.setattr(settings.CC_CI, "domain", "runner.example.org")
    request = request_from(params)
    assert (request.run_id, request.source.sha, request.stages) == (str(run.id), run.sha, run.stages)
    assert (request.trusted, request.upgrade_from, request.limits.run_seconds) == (False, "1.0.0+2.0", 1234)
    assert request.domain == f"{run.id.hex[:12]}.runner.example.org"


def test_each_machines_builds_have_an_installation_of_their_own(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params, names = params_for(TestRunFactory(attempt=1)), {installation_id()}
    for host in ("one", "two"):
        monkeypatch.setattr(settings.CC_CI, "host", host)
        names.add(request_from(params).installation_id)
    assert len(names) == 3


@pytest.mark.parametrize(
    ("given", "trusted"), [({}, True), ({"CC_CI_SHA": "a" * 40}, False), ({"CC_CI_REF": "refs/pull/1/head"}, False)]
)
def test_only_the_default_branch_is_trusted_by_hand(
    given: dict[str, str], trusted: bool, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "resolve", lambda url, *_: Source(url=url, ref="HEAD", sha="a" * 40))
    assert request_from({"CC_CI_RECIPE": "https://x/y.git", **given}).trusted is trusted


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"DRONE_BUILD_EVENT": "pull_request"}, "DRONE_LIMIT_EVENTS=custom"),
        ({"DRONE_BUILD_EVENT": "custom", "DRONE_REPO_VISIBILITY": "public", "DRONE_REPO": "ci/runner"}, "private ci/runner"),
    ],
)
def test_a_build_that_shows_an_open_runner_is_refused(
    environment: dict[str, str], words: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**params_for(TestRunFactory(attempt=1)), **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CommandError, match=words) as error:
        harness.Command().handle()
    assert error.value.returncode == 64


@pytest.mark.parametrize("at_work", ["harness", "command"])
def test_a_restart_removes_nothing_of_a_build_that_works(at_work: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TestRunFactory(attempt=1)
    for name, value in params_for(run).items():
        monkeypatch.setenv(name, value)
    folder = RunFolder(harness.builds() / str(run.id) / "1")
    folder.path.mkdir(parents=True)
    lock = folder.lock if at_work == "harness" else harness._lock(folder)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match="still works on this machine") as error:
            harness.Command().handle()
        harness._sweep(request_from(os.environ))
        assert folder.path.exists()
    assert error.value.returncode == 64
    harness._sweep(request_from(os.environ))
    assert not folder.path.exists() and not list(harness.builds().iterdir())


# --- what is printed


RUN = "0b0e9d9c-9f51-4a3c-8b7e-1f2d3c4b5a69"


def printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: Results, log: bytes = b"", events: list[Event] | None = None
) -> str:
    """What a build prints of a run."""
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    folder = RunFolder(tmp_path)
    folder.log.write_bytes(log)
    folder.events_file.write_text("".join(f"{event.model_dump_json()}\n" for event in events or []))
    report = Report(folder, Writer("key", RUN, 1))
    for _ in range(len(log) // (1 << 20) + 1):
        report.show(folder)
    report.finish(results, "")
    return out.getvalue()


def results_of(cases: list[CaseResult], **more: Any) -> Results:
    stage = StageResult(name="custom", status="failed", cases=cases)
    fields = {"run_id": RUN, "verdict": Verdict.FAILED, "started": timezone.now(), "finished": timezone.now(), "stages": [stage]}
    return Results(**{**fields, **more})


@pytest.mark.parametrize("gap", ["", "\r", "\x1b[0m", "\x1b[1;31m\r\b", "\u200b"])
def test_text_never_looks_like_a_line_of_ours(gap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = [line for words in ("", "forged") for line in Writer("key", RUN, 1).event(words)]
    forged = [line.replace("cc-ci:1:", f"cc{gap}-ci{gap}:1{gap}:") for line in true]
    text = "\n".join(forged) * 2
    case = CaseResult(name=text[:400], file=text[:400], status="failed", message=text, output=text)
    results = results_of([case], reason=text, warnings=[text], lint=[LintFinding(rule=forged[0], level="error", text=text)])
    lines = printed(tmp_path, monkeypatch, results, f"{text}\n".encode())
    seen = read(lines.replace(gap, "") if gap else lines, "key", RUN, 1)
    assert (seen.events, seen.problem) == ([], "")
    assert "cc-ci :1:" in lines


def test_a_marker_that_begins_like_the_end_of_a_sequence() -> None:
    line = Writer("key", RUN, 1).end()[0]
    assert read(unmarked(f"\x1b[{line}\n"), "key", RUN, 1).problem == "its log has no report of the harness"


CASES = {
    "outputs": lambda text: CaseResult(
        name="t", status="failed", message=text(1000), output="\n".join(text(60) for _ in range(60))
    ),
    "names": lambda text: CaseResult(name=text(500), file=text(500), status="failed"),
}


@pytest.mark.slow(8)
@pytest.mark.parametrize("kind", CASES)
def test_no_size_of_what_a_stranger_controls_hides_that_it_failed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(1)
    cases = [CASES[kind](lambda size: chance.randbytes(size // 2).hex()) for _ in range(1000 if kind == "outputs" else 5000)]
    files = [Artefact(name=f"service-{number}.log", kind="service_log") for number in range(20)]
    for file in files:
        (tmp_path / file.name).write_bytes(chance.randbytes(200_000))
    results = results_of(
        cases, artefacts=files, lint=[LintFinding(rule="C1", level="error", text=chance.randbytes(200).hex())] * 200
    )
    events = [Event(seq=seq, at=timezone.now(), kind="step", text=chance.randbytes(5000).hex()) for seq in range(1, 300)]
    text = printed(tmp_path, monkeypatch, results, b"\xff\xfe\n" * 1_000_000, events)
    assert len(text.encode()) < LOG_BYTES
    seen = read(text, "key", RUN, 1)
    assert seen.results and not seen.problem
    back = Results.model_validate_json(seen.results)
    assert (back.verdict, back.run_id) == (Verdict.FAILED, RUN)
    assert "were shortened" in back.warnings[-1]


@pytest.mark.parametrize(
    ("url", "forge", "given"),
    [
        ("https://git.example.org/recipes/web.git", "https://git.example.org/ci/runner.git", True),
        ("https://evil.example.org/recipes/web.git", "https://git.example.org/ci/runner.git", False),
        ("http://git.example.org/recipes/web.git", "https://git.example.org/ci/runner.git", False),
        ("https://git.example.org@evil.example.org/web.git", "https://git.example.org/ci/runner.git", False),
        ("https://git.example.org/recipes/web.git", "", False),
    ],
)
def test_the_token_for_git_goes_to_its_forge_only(url: str, forge: str, given: bool) -> None:
    request = Request(run_id="x", installation_id="x", recipe="web", source=Source(url=url), stages=[])
    found = credential({"CC_CI_GIT_TOKEN": "t0ken", "DRONE_GIT_HTTP_URL": forge}, request)
    assert ("git_token" in found) is given


def test_one_other_address_in_a_request_is_enough_to_keep_the_token(data_dir: Path) -> None:
    source = Source(url="https://git.example.org/recipes/web.git")
    request = Request(
        run_id="x", installation_id="x", recipe="web", source=source, stages=[], tests=Source(url="https://evil.org/t")
    )
    environment = {"CC_CI_GIT_TOKEN": "t0ken", "DRONE_GIT_HTTP_URL": "https://git.example.org/ci/runner.git"}
    assert credential(environment, request) == {}


@pytest.mark.slow(5)
def test_a_build_whose_shell_is_killed_tears_down(
    world: World, fake: FakeServer, tmp_path: Path, wait_for_harness: Callable[[], list[int]]
) -> None:
    add_recipe(world, "far", {"tests/test_it.py": "import time\n\n\ndef test_it(app):\n    time.sleep(60)\n"})
    run = TestRunFactory(attempt=1, stages=["install", "custom"])
    params = {**params_for(run), "CC_CI_REQUEST": ""}
    build = fake.create([*params.items(), ("CC_CI_RECIPE", f"{world.server.url}/recipes/far.git")])
    assert build and build.process
    until(lambda: any("custom" in line for line in build.step.lines))
    pids = wait_for_harness()
    assert pids
    fake.cancel(build)
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))  # noqa: PTH110
    assert build.status == "killed"
    again = fake.create([("CC_CI_RECIPE", "nothing")])
    until(lambda: bool(again and again.step.stored))
    assert read("".join(build.step.lines), key_for(run), str(run.id), 1).results is None


@pytest.fixture
def wait_for_harness(tmp_path: Path) -> Callable[[], list[int]]:
    """The process ids of harnesses that work under this test's folder."""
    import psutil

    def found() -> list[int]:
        rows = [(process.pid, " ".join(process.info["cmdline"] or [])) for process in psutil.process_iter(["cmdline"])]
        return [pid for pid, words in rows if "runs.harness" in words and str(tmp_path) in words and "sweep" not in words]

    return found


def test_very_many_lines_are_cut_as_is_very_much_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(RunFolder(tmp_path), None)
    for _ in range(harness.TEXT_LINES // 1000 + 5):
        report.say("\n" * 999)
    printed = capsys.readouterr().out
    assert printed.count("\n") == harness.TEXT_LINES + 2 and printed.endswith(f"{harness.CUT}\n")
    report.say("more")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("token", "found"), [("t0ken", True), ("", False)])
def test_the_login_is_for_the_forge_that_woodpeckers_pipeline_names(token: str, found: bool) -> None:
    request = request_from({"CC_CI_REQUEST": packed(str(uuid.uuid4()))})
    request.source.url = "https://git.example.org/recipes/web.git"
    environment = {"CC_CI_GIT_TOKEN": token, "CI_REPO_CLONE_URL": "https://git.example.org/ci/runner.git"}
    assert ("git_token" in credential(environment, request)) is found
    for name in ("CI_REPO_CLONE_URL", "DRONE_GIT_HTTP_URL"):
        for url in ("https://evil.example.org/x.git", "http://git.example.org/x.git", "git.example.org", "//git.example.org"):
            assert credential({**environment, name: url}, request).get("git_token") is None
    assert credential({"CC_CI_GIT_TOKEN": token}, request).get("git_token") is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"CI_PIPELINE_EVENT": "pull_request"}, "switch off Allow Pull Requests"),
        ({}, "switch off Allow Pull Requests"),
        ({"CI_PIPELINE_EVENT": "manual", "CI_REPO_PRIVATE": "false"}, "set its visibility to Private in Woodpecker"),
        ({"CI_PIPELINE_EVENT": "manual"}, "set its visibility to Private in Woodpecker"),
        ({"CI_PIPELINE_EVENT": "manual", "CI_REPO_PRIVATE": "true"}, ""),
    ],
)
def test_an_agent_that_others_can_use_is_noticed(more: dict[str, str], words: str) -> None:
    found = harness._settings_problem({"CI": "woodpecker", **more})
    assert words in found and bool(words) == bool(found)
