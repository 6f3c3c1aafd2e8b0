"""Quick runs on a real Docker Swarm, from a comment to its answer: they start on the data of a run that passed, which stays."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

import pytest
from django.conf import settings

from controlplane.installation import installation_id
from enrollment.fakeforge import git
from infra.deployers.docker.api import ids
from infra.deployers.docker.cli import LABEL_INSTALLATION, LABEL_RUN
from infra.deployers.docker.stacks import LABEL_STACK
from runs import manual
from runs.harness import known_good
from runs.harness.protocol import RunFolder
from runs.known_good import SEALED, start_of
from runs.models import Report, State, TestRun
from tests.docker import IMAGE, docker, need_swarm
from tests.world import World

pytestmark = [pytest.mark.docker, pytest.mark.django_db, pytest.mark.slow(35)]

#: A recipe with little to wait for.
RECIPE: git.Files = {
    "compose.yml": f"""version: "3.8"
services:
  app:
    image: {IMAGE}
    command: [httpd, -f, -p, "8080", -h, /]
    stop_grace_period: 1s
    secrets: [key]
    volumes: [uploads:/uploads]
    deploy:
      labels:
        - traefik.http.services.${{STACK_NAME}}.loadbalancer.server.port=8080
        - coop-cloud.${{STACK_NAME}}.version=1.0.0+1
volumes:
  uploads:
secrets:
  key:
    external: true
    name: ${{STACK_NAME}}_key_${{SECRET_KEY_VERSION}}
""",
    ".env.sample": "SECRET_KEY_VERSION=v1\nDOMAIN=quick.example.com\n",
    # What the known-good run leaves in its app, bound to its secret; and a link that leads out of the volume.
    "tests/test_more.py": """
def test_leaves_something(app):
    assert app.exec("md5sum /run/secrets/key > /uploads/key; ln -s /etc/passwd /uploads/out", service="app").code == 0
""",
}
COMPOSE = str(RECIPE["compose.yml"])
#: Another version, whose test finds that, with the secret that it was made with.
CHANGE: git.Files = {
    "compose.yml": COMPOSE.replace("1.0.0+1", "1.1.0+1"),
    "tests/test_more.py": """
def test_finds_it(app):
    assert app.exec("md5sum -c /uploads/key", service="app").code == 0
    assert app.exec("readlink /uploads/out", service="app").output.strip() == "/etc/passwd"
""",
}
#: One that loses the data.
LOSES: git.Files = {
    "compose.yml": COMPOSE.replace("[uploads:/uploads]", "[files:/uploads]").replace("  uploads:\n", "  files:\n")
}


def digest(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file of a folder: its SHA-256 and its mode."""
    return {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode) for path in folder.iterdir()}


def ask(world: World, branch: str, change: git.Files) -> tuple[TestRun, str]:
    """Open a pull request and ask for a quick run there: the run once it ended, and the answer."""
    world.remote.push("recipes/quick", branch, change, "Change", "alice")
    pull = world.remote.open_pull("recipes/quick", "recipes/quick", branch, "alice", "A change")
    world.say("recipes/quick", "!testme --quick", number=pull.number)
    world.hear()
    world.run_all()
    run = TestRun.objects.get(pull_request__number=pull.number)
    (answer,) = world.own_comments("recipes/quick", pull.number)
    return run, answer


def test_quick_runs_start_on_what_a_passed_run_left_and_change_nothing_in_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_swarm()
    monkeypatch.setattr(settings.CC_CI, "deployer", "swarm")
    world.remote.add_repo("recipes", "quick", files=RECIPE)
    (row,) = world.enroll("recipes/quick")

    # A full run of the default branch.
    made = manual.run_repository(row, "alice")
    world.run_all()
    made.refresh_from_db()
    assert made.state == State.PASSED, f"{made.reason}\n{made.log[-5000:]}"
    data = Path(start_of(row.pk)[0])
    before = digest(data)
    assert sorted(before) == ["00.tar", known_good.FILE, SEALED]
    assert {mode & 0o777 for _, mode in before.values()} == {0o600}, before

    # A quick one that passes: upgraded on that data, with the secrets and under the names of back then.
    # A killed one left a volume of that name.
    stack = known_good.read(data).stack
    marks = {LABEL_INSTALLATION: installation_id(), LABEL_RUN: uuid.uuid4().hex, LABEL_STACK: stack}
    docker("volume", "create", *(f"--label={key}={value}" for key, value in marks.items()), f"{stack}_uploads")
    run, answer = ask(world, "good", CHANGE)
    assert run.state == State.PASSED, f"{run.reason}\n{run.log[-5000:]}"
    assert "passed" in answer and made.sha[:10] in answer
    assert [(stage.name, stage.status) for stage in run.stage_results.all()] == [("upgrade", "passed"), ("custom", "passed")]
    assert "the data is still there" in run.stage_results.get(name="upgrade").cases.values_list("name", flat=True)
    results = RunFolder(run.folder).results()
    assert results and (results.upgraded_from, results.version, results.deployments) == (made.sha[:12], "1.1.0+1", 1)
    assert results.known_good and (results.known_good.run_id, results.known_good.sha) == (made.id, made.sha)
    assert (results.level, run.teardown["clean"]) == (None, True)
    assert digest(data) == before

    # One that loses the data.
    run, answer = ask(world, "bad", LOSES)
    assert run.state == State.FAILED
    assert "on the volume uploads and is now on files" in run.stage_results.get(name="upgrade").reason
    assert "failed" in answer
    assert digest(data) == before

    # Data that is not what was saved is not used; nor is there anything left of all these.
    os.truncate(data / "00.tar", 1024)
    run, answer = ask(world, "again", CHANGE)
    assert (run.state, run.attempt) == (State.ERRORED, 2)
    assert f"The known-good commit {made.sha[:12]} cannot be started on its data" in run.reason
    assert not Report.objects.filter(kind=Report.Kind.STATUS, run__quick=True).exists()
    assert ids("volume", f"{LABEL_INSTALLATION}={installation_id()}") == []
