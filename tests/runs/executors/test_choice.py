"""Which executor a run has, what people type and click for that, and what is found before a run needs it."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db.models import ProtectedError
from django.test import Client
from django.urls import reverse

from controlplane.cli import Exit
from enrollment.models import Repository
from runs.executors import check
from runs.executors.check import pipeline_problem
from runs.executors.drone import Drone
from runs.executors.engine import CAPABILITIES
from runs.executors.select import ENGINES, choose
from runs.executors.woodpecker import Woodpecker
from runs.models import ExecutorChoice, RemoteExecutor, State, TestRun
from tests.factories import RepositoryFactory
from tests.runs.executors.conftest import row_for
from tests.runs.executors.fakes import FakeServer, Fault
from tests.runs.executors.scripts import claimed
from tests.runs.executors.test_builds import BOTH
from tests.world import World

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.3)]

DOCS = Path(check.__file__).parents[2] / "docs" / "executors"
PIPELINE = "kind: pipeline\ntype: exec\nname: t\ntrigger:\n  event: [custom]\nsteps:\n- name: t\n  commands: [cc-ci harness]\n"
BOMB = "l0: &l0 [x]\n" + "".join(f"l{n + 1}: &l{n + 1} [{', '.join([f'*l{n}'] * 10)}]\n" for n in range(9))


def typed(*words: str) -> str:
    out = StringIO()
    call_command("executor", *words, stdout=out)
    return out.getvalue()


@pytest.fixture
def row(fake: FakeServer, data_dir: Path) -> RemoteExecutor:
    return row_for(fake)


def test_the_repositorys_choice_precedes_its_forges_and_this_machine_is_the_default(row: RemoteExecutor) -> None:
    repository: Repository = RepositoryFactory()
    assert choose(repository) is None
    row.forges.add(repository.forge)
    assert choose(repository) == row
    ExecutorChoice.objects.create(repository=repository, executor=None)
    assert choose(repository) is None
    row.forges.clear()
    ExecutorChoice.objects.update(executor=row)
    assert choose(repository) == row


@BOTH
def test_an_executor_is_added_used_and_left_by_command(fake: FakeServer, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository: Repository = RepositoryFactory()
    monkeypatch.setenv("DRONE", fake.token)
    text = typed("add", "ours", "--kind", fake.kind, "--url", fake.url, "--repository", fake.repository, "--token-env", "DRONE")
    assert "Added ours." in text and f"ok: executor ours: {ENGINES[fake.kind].label}" in text
    row = RemoteExecutor.objects.get()
    assert row.reveal_token() == fake.token
    assert fake.token not in text + repr(row.token)
    add = ("add", "ours", "--kind", fake.kind, "--url", fake.url, "--repository", fake.repository, "--token-env", "DRONE")
    typed(*add, "--slots", "3")
    typed(*add)  # changes what it names
    assert RemoteExecutor.objects.get().slots == 3
    with pytest.raises(CommandError, match="invalid"):
        typed(*add, "--slots", "0")
    typed("use", "ours")
    assert choose(repository) == row
    typed("use", "local", "--repository", repository.full_name)
    assert choose(repository) is None
    assert f"ours\t{fake.kind}\t{fake.url}" in typed("list")
    typed("use", "ours", "--repository", repository.full_name, "--inherit")
    assert choose(repository) == row
    typed("use", "local")
    assert choose(repository) is None
    with pytest.raises(CommandError, match="There is no executor 'our'"):
        typed("use", "our")


@BOTH
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("token", "another", "does not accept the token"),
        ("repository", "ci/renamed", "sees no repository ci/runner"),
        ("active", False, "is disabled in"),
        ("write", False, "may not start builds"),
        ("visibility", "public", "is public in"),
        ("visibility", "internal", "is internal in"),
        ("visibility", None, "is public in"),
        ("closed", False, "pull requests and forks of ci/runner"),
        ("timeout", 15, "ends builds of ci/runner after 15 minutes"),
    ],
)
def test_each_trap_is_found_beforehand_with_what_to_do(
    row: RemoteExecutor, fake: FakeServer, name: str, value: object, words: str
) -> None:
    setattr(fake, name, value)
    found = [finding for finding in check.check_executors() if finding.level != "ok"]
    assert [words in finding.text for finding in found] == [True]
    assert found[0].fix
    if found[0].level == "error":
        with pytest.raises(Exit):
            typed("check")


def test_what_a_server_says_does_nothing_in_a_terminal(row: RemoteExecutor, fake: FakeServer) -> None:
    fake.version = "2\x1b]0;x\x07"
    shown = typed("check") + typed("list")
    assert shown.count("2 ]0;x ") == 2 and "\x1b" not in shown
    fake.faults = lambda method, path: Fault(status=503, body=json.dumps({"message": "\x1b[2J down"}))
    (finding,) = check.check_executors()
    shown = finding.text + typed("list")
    assert "( [2J down)" in finding.text and "\x1b" not in shown


def test_a_server_that_is_down_is_found(row: RemoteExecutor) -> None:
    RemoteExecutor.objects.update(url="http://127.0.0.1:1")
    (finding,) = check.check_executors()
    assert (finding.level, "does not answer" in finding.text) == ("error", True)


def test_builds_that_no_runner_takes_are_found(row: RemoteExecutor, fake: FakeServer) -> None:
    fake.script = lambda fake, build: None
    fake.create({})
    assert all(finding.level == "ok" for finding in check.check_executors())
    fake.builds[0].created -= 700
    assert "waiting for a runner" in next(iter(check.check_executors())).text


@BOTH
def test_the_pipeline_is_read_at_our_forge(world: World, fake: FakeServer) -> None:
    row_for(fake)
    fake.secrets["forge"] = f"{world.server.url}/ci/runner.git"
    assert f"has no {fake.file}" in next(iter(check.check_executors())).text
    right = PIPELINE if fake.kind == "drone" else f"when: {{event: manual}}\n{STEP}"
    world.remote.add_org("ci", world.admin)
    repo = world.remote.add_repo("ci", "runner", files={fake.file: right.replace(fake.event, "push")})
    assert f"{fake.event}`" in next(iter(check.check_executors())).text
    world.remote.push(repo, "main", {fake.file: right}, "Fix", world.admin)
    assert [finding.level for finding in check.check_executors()] == ["ok"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PIPELINE, ""),
        (PIPELINE.replace("trigger:\n  event: [custom]\n", ""), ""),
        (PIPELINE.replace("[custom]", "custom"), ""),
        (PIPELINE.replace("[custom]", "{exclude: [pull_request]}"), ""),
        (PIPELINE.replace("event: [custom]", "branch: [main, release/*]"), ""),
        (PIPELINE.replace("[custom]", "[push, cron]"), "add `custom`"),
        (PIPELINE.replace("[custom]", "{exclude: [cus*]}"), "add `custom`"),
        (PIPELINE.replace("[custom]", "[custom]\n  branch: release/*"), "of the branch main"),
        (PIPELINE + "environment:\n  STAGES: install\n", "hides the build's parameter STAGES"),
        (PIPELINE + "  environment: {CC_CI_KEY: x}\n", "hides the build's parameter CC_CI_KEY"),
        (PIPELINE + "environment: 5\n", ""),
        (PIPELINE + "environment: [{a: b}]\n", ""),
        (PIPELINE.replace("steps:", "clone: 5\nsteps:\n- 7"), ""),
        ("kind: pipeline\nsteps: 5\n# harness\n", ""),
        (f"kind: secret\n---\n{PIPELINE}---\n7\n", ""),
        (PIPELINE + "a: " + "[" * 5000, "invalid YAML"),
        (PIPELINE + "a: 2026-99-99\n", "invalid YAML"),
        (PIPELINE + BOMB, "invalid YAML"),
        (PIPELINE + "#" * 100_000, "longer than"),
        (PIPELINE.replace("cc-ci harness", "make"), "no step calls"),
        ("kind: secret\n", "it has no pipeline"),
        ("", "it has no pipeline"),
        ("a: [", "invalid YAML"),
    ],
)
def test_a_pipeline_that_would_not_run_is_found(text: str, words: str) -> None:
    found = pipeline_problem(Drone, text, "main")
    assert words in found
    assert bool(words) == bool(found)


STEP = "steps:\n- name: t\n  commands: [cc-ci harness]\n"
LOGIN = "  environment: {CC_CI_GIT_TOKEN: {from_secret: x}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"when: {{event: manual}}\n{STEP}", ""),
        (f"when:\n- event: [push]\n- event: [cron, manual]\n  branch: main\n{STEP}", ""),
        (STEP, ""),
        (f"when: 5\n{STEP}", ""),
        ("when: {event: manual}\nsteps:\n  t: {commands: [cc-ci harness]}\n", ""),
        (f"when: {{event: [push, pull_request]}}\n{STEP}", "add `event: manual`"),
        ("when: [7]\nsteps: 7\n# harness", ""),
        (f"when: []\n{STEP}", ""),
        (f"when: {{event: manual, branch: other}}\n{STEP}", "of the branch main"),
        (f"when:\n- event: manual\n  branch: other\n- event: push\n{STEP}", "of the branch main"),
        (f"{STEP}{LOGIN}}}\n", "could send CC_CI_GIT_TOKEN anywhere"),
        (f"{STEP}{LOGIN}, CI_REPO_CLONE_URL: x}}\n", "could send CC_CI_GIT_TOKEN anywhere"),
        (f"{STEP}{LOGIN}, CI_REPO_CLONE_URL: '${{CI_REPO_CLONE_URL}}'}}\n", ""),
        (f"{STEP}  environment: {{STAGES: x}}\n", "hides the build's parameter STAGES"),
        ("when: {event: manual}\nsteps: [{name: t, commands: [make]}]\n", "no step calls"),
        ("kind: pipeline\n", "it has no steps"),
        ("", "it has no steps"),
        ("a: [", "invalid YAML"),
        (f"{STEP}{BOMB}", "invalid YAML"),
    ],
)
def test_a_pipeline_of_woodpecker_that_would_not_run_is_found(text: str, words: str) -> None:
    found = pipeline_problem(Woodpecker, text, "main")
    assert words in found
    assert bool(words) == bool(found)


@pytest.mark.parametrize("kind", ENGINES)
def test_the_pipeline_of_the_docs_runs(kind: str) -> None:
    text = (DOCS / f"{kind}.md").read_text()
    pipelines = [part.split("```")[0] for part in text.split("```yaml\n")[1:]]
    assert pipelines
    assert [pipeline_problem(ENGINES[kind], one, "main") for one in pipelines] == [""] * len(pipelines)


@pytest.mark.parametrize("kind", ENGINES)
def test_the_docs_say_what_a_kind_can_do(kind: str) -> None:
    rows = re.findall(r"^\| ([a-z]+) \| (yes|no) \|", (DOCS / f"{kind}.md").read_text(), re.MULTILINE)
    assert rows == [(word, "yes" if word in ENGINES[kind].can else "no") for word in CAPABILITIES]
    assert set(RemoteExecutor.Kind.values) == set(ENGINES)


@BOTH
def test_what_a_server_is_and_can_is_kept_and_shown(row: RemoteExecutor, fake: FakeServer) -> None:
    fake.version = f"{ENGINES[fake.kind].major}.9.1"
    typed("check")
    row.refresh_from_db()
    assert (row.version, set(row.capabilities)) == (fake.version, ENGINES[fake.kind].can)
    assert f"{fake.version}\t" in typed("list") and "cancel, logs" in typed("list")
    fake.write = False
    list(check.check_executors())
    row.refresh_from_db()
    assert "cancel" not in row.capabilities
    fake.write, fake.version = True, "1.0.0"
    assert f"1.0.0, and cc-ci knows {ENGINES[fake.kind].major}.x" in next(iter(check.check_executors())).text
    fake.version = "next-0123456789"
    assert {found.level for found in check.check_executors()} == {"ok"}


def test_the_admin_shows_no_token_and_keeps_it(admin_client: Client, row: RemoteExecutor, fake: FakeServer) -> None:
    url = reverse("admin:runs_remoteexecutor_change", args=[row.pk])
    assert fake.token not in admin_client.get(url).content.decode()
    fields = {
        "name": "renamed",
        "kind": "drone",
        "url": f"{fake.url}/",
        "repository": "ci/runner",
        "branch": "main",
        "slots": 2,
        "token": "",
    }
    assert admin_client.post(url, fields).status_code == 302
    row.refresh_from_db()
    assert (row.name, row.url, row.slots, row.reveal_token()) == ("renamed", fake.url, 2, fake.token)
    answer = admin_client.post(
        reverse("admin:runs_remoteexecutor_changelist"), {"action": "check_now", "_selected_action": [row.pk]}, follow=True
    )
    assert "starts builds of ci/runner" in answer.content.decode()


def test_another_address_needs_the_token_again(admin_client: Client, row: RemoteExecutor, fake: FakeServer) -> None:
    url = reverse("admin:runs_remoteexecutor_change", args=[row.pk])
    fields = {
        "name": "drone",
        "kind": "drone",
        "url": "https://evil.example.org",
        "repository": "ci/runner",
        "branch": "main",
        "slots": 2,
    }
    assert "enter the token again" in admin_client.post(url, {**fields, "token": ""}).content.decode()
    with pytest.raises(CommandError, match="is empty or not set"):
        typed("add", "drone", "--url", "https://evil.example.org", "--repository", "ci/runner", "--token-env", "NOTHING_SET")
    row.refresh_from_db()
    assert row.url == fake.url
    assert admin_client.post(url, {**fields, "token": "another"}).status_code == 302
    row.refresh_from_db()
    assert (row.url, row.reveal_token()) == ("https://evil.example.org", "another")


def test_an_executor_with_a_run_under_way_is_not_deleted(admin_client: Client, row: RemoteExecutor) -> None:
    run = claimed(row)
    with pytest.raises(ProtectedError):
        row.delete()
    url = reverse("admin:runs_remoteexecutor_delete", args=[row.pk])
    assert f"{run} is under way on drone: cancel it" in admin_client.post(url, {"post": "yes"}).content.decode()
    assert RemoteExecutor.objects.exists()
    TestRun.objects.update(state=State.PASSED)
    assert admin_client.post(url, {"post": "yes"}).status_code == 302
    assert (TestRun.objects.get().executor, TestRun.objects.get().executor_name) == (None, "drone")
