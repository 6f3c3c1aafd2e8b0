"""Quick runs on a real Docker Swarm: they start on the data of a run that passed, which stays as it is."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

import pytest

from infra.deployers.docker.api import ids
from infra.deployers.docker.cli import LABEL_INSTALLATION, LABEL_RUN
from infra.deployers.docker.stacks import LABEL_STACK
from runs.harness import known_good
from runs.harness.engine import Engine
from runs.harness.protocol import Results, RunFolder, Source, Verdict
from tests.docker import IMAGE, docker, need_swarm
from tests.e2e.recipes import INSTALLATION, Repository, folder_of, left
from tests.runs.harness.conftest import git

pytestmark = [pytest.mark.docker, pytest.mark.slow(25)]

#: A recipe with little to wait for.
RECIPE = {
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
#: Another version, whose test finds that, with the secret that it was made with.
CHANGE = {
    "compose.yml": {"1.0.0+1": "1.1.0+1"},
    "tests/test_more.py": """
def test_finds_it(app):
    assert app.exec("md5sum -c /uploads/key", service="app").code == 0
    assert app.exec("readlink /uploads/out", service="app").output.strip() == "/etc/passwd"
""",
}


@pytest.fixture(autouse=True)
def _swarm() -> None:
    need_swarm()


def run(folder: RunFolder, secrets: str = "{}") -> Results:
    results = Engine(folder, {"known_good": secrets}).run()
    assert left(folder) == []
    return results


def digest(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file of a folder: its SHA-256 and its mode."""
    return {path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode) for path in folder.iterdir()}


def test_quick_runs_start_on_what_a_passed_run_left_and_change_nothing_in_it(tmp_path: Path) -> None:
    recipe = Repository(tmp_path / "quick", "web", published="")
    git(recipe.folder, "rm", "-rq", ".")
    recipe.edit(RECIPE)
    sha = recipe.commit("Begin anew")
    main = Source(url=recipe.main.url, ref="refs/heads/main", sha=sha)
    made = folder_of(tmp_path, main, recipe.main, stages=["install", "custom"], known_good_mb=50)
    results = run(made)
    assert results.verdict is Verdict.PASSED, results.reason
    data = made.path / known_good.FOLDER
    before = digest(data)
    assert sorted(before) == ["00.tar", known_good.FILE, known_good.SECRETS]
    assert {mode & 0o777 for _, mode in before.values()} == {0o600}, before
    secrets = (data / known_good.SECRETS).read_text()

    # One that passes: upgraded on that data, with the secrets and under the names of back then.
    good = recipe.pull(CHANGE)
    quick = {"stages": ["upgrade", "custom"], "quick": str(data)}
    # A killed one left a volume of that name.
    stack = known_good.read(data).stack
    marks = {LABEL_INSTALLATION: INSTALLATION, LABEL_RUN: uuid.uuid4().hex, LABEL_STACK: stack}
    docker("volume", "create", *(f"--label={key}={value}" for key, value in marks.items()), f"{stack}_uploads")
    folder = folder_of(tmp_path, good, recipe.main, **quick)
    results = run(folder, secrets)
    assert results.verdict is Verdict.PASSED, results.reason
    assert [(stage.name, stage.status) for stage in results.stages] == [("upgrade", "passed"), ("custom", "passed")]
    assert "the data is still there" in [case.name for case in results.stages[0].cases]
    assert (results.upgraded_from, results.version, results.deployments) == (sha[:12], "1.1.0+1", 1)
    assert results.known_good and (results.known_good.run_id.hex, results.known_good.sha) == (made.request().run_id, sha)
    assert results.level is None
    assert digest(data) == before

    # One that loses the data.
    bad = recipe.pull({"compose.yml": {"[uploads:/uploads]": "[files:/uploads]", "  uploads:\n": "  files:\n"}})
    results = run(folder_of(tmp_path, bad, recipe.main, **quick), secrets)
    assert results.verdict is Verdict.FAILED
    assert "on the volume uploads and is now on files" in results.stages[0].reason
    assert digest(data) == before

    # Data that is not what was saved is not used; nor is there anything left of all these.
    os.truncate(data / "00.tar", 1024)
    results = run(folder_of(tmp_path, good, recipe.main, **quick), secrets)
    assert results.verdict is Verdict.ERRORED
    assert f"The known-good commit {sha[:12]} cannot be started on its data" in results.reason
    assert ids("volume", f"{LABEL_INSTALLATION}={INSTALLATION}") == []
