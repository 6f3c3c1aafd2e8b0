"""Whole runs of the harness on a real Docker Swarm."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.docker.api import KINDS, ids
from infra.deployers.docker.cli import LABEL_RUN
from runs.harness.protocol import FolderState, Images, Limits, Request, RunFolder, Source, Verdict
from tests.docker import IMAGE, need_swarm
from tests.e2e.recipes import ALL
from tests.registry import registry
from tests.runs.harness.conftest import git

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "tests" / "data" / "recipes"
INSTALLATION = f"e2e-{uuid.uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
def _swarm() -> None:
    need_swarm()


def make(tmp_path: Path, recipe: str, **changes: Any) -> RunFolder:
    run_id = uuid.uuid4().hex
    folder = RunFolder(tmp_path / run_id / "1")
    request = {
        "run_id": run_id,
        "installation_id": INSTALLATION,
        "recipe": recipe,
        "source": Source(url=str(RECIPES / recipe)),
        "stages": ["install", "custom"],
        "deployer": "swarm",
        "limits": Limits(run_seconds=600, settle_seconds=300),
        **changes,
    }
    folder.write_request(Request.model_validate(request))
    return folder


def harness(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "runs.harness", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def left(folder: RunFolder) -> list[str]:
    return [name for kind in KINDS for name in ids(kind, f"{LABEL_RUN}={folder.request().run_id}")]


def test_a_whole_run_of_a_web_recipe(tmp_path: Path) -> None:
    folder = make(tmp_path, "web", trusted=False)
    assert harness("run", folder.path).wait(800) == 0
    results = folder.results()
    assert results and results.verdict is Verdict.PASSED
    assert results.deployer == "swarm"
    assert [(image.name, image.digest) for image in results.images] == [(IMAGE, "")]
    assert [(stage.name, stage.status, len(stage.cases)) for stage in results.stages] == [
        ("install", "passed", 1),
        ("custom", "passed", 3),
    ]
    assert results.teardown.clean
    assert left(folder) == []


def test_a_failed_pull_is_our_error_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path, "image-missing")
    assert harness("run", folder.path).wait(800) == 2
    results = folder.results()
    assert results and results.verdict is Verdict.ERRORED
    assert "missing:1" in results.reason and "could not be pulled" in results.reason
    assert [stage.status for stage in results.stages] == ["errored", "skipped"]
    assert left(folder) == []


@pytest.mark.crash
def test_a_killed_harness_leaves_a_stack_that_the_sweep_takes(tmp_path: Path) -> None:
    folder = make(tmp_path, "no-web-port", limits=Limits(run_seconds=600))
    process = harness("run", folder.path)
    until = time.monotonic() + 800
    while not ids("container", f"{LABEL_RUN}={folder.request().run_id}"):
        assert time.monotonic() < until
        time.sleep(0.1)
    sweep = ("sweep", "--installation", INSTALLATION, "--runs-dir", tmp_path)
    assert harness(*sweep).wait(800) == 0  # it lives: nothing happens
    assert ids("service", f"{LABEL_RUN}={folder.request().run_id}")
    os.kill(process.pid, 9)
    process.wait()
    assert folder.state() is FolderState.LOST
    assert left(folder)
    assert harness(*sweep).wait(800) == 0
    assert left(folder) == []


def test_a_cancelled_run_takes_its_stack_away(tmp_path: Path) -> None:
    folder = make(tmp_path, "never-healthy")
    process = harness("run", folder.path)
    until = time.monotonic() + 800
    while not ids("service", f"{LABEL_RUN}={folder.request().run_id}"):
        assert time.monotonic() < until
        time.sleep(0.1)
    folder.cancel.touch()
    assert process.wait(800) == 2
    results = folder.results()
    assert results and results.verdict is Verdict.CANCELLED
    assert left(folder) == []


_COMPOSE = """version: "3.8"
services:
  app:
    image: %s
    command: [sleep, "100000"]
    deploy:
      labels: ["coop-cloud.${STACK_NAME}.version=%s"]
"""


def test_a_version_whose_image_is_gone_is_skipped_and_a_registry_that_is_away_is_ours(tmp_path: Path) -> None:
    with registry() as there:
        source = _history(tmp_path / "recipe", **{"1.0.0+1": f"{there.host}/gone-{uuid.uuid4().hex[:8]}:1", "1.1.0+1": IMAGE})
        folder = make(tmp_path, "moved", source=source, stages=ALL, images=Images(registries=[there.host]))
        assert harness("run", folder.path).wait(800) == 0
        results = folder.results()
        again = make(tmp_path, "moved", source=source, stages=ALL, images=Images(registries=[there.host]))
    assert results
    upgrade = results.stages[1]
    assert (upgrade.name, upgrade.status) == ("upgrade", "skipped")
    assert "1.0.0+1 can no longer be installed" in upgrade.reason and "manifest unknown" in upgrade.reason
    assert results.deployments == 1 and results.upgraded_from == ""
    assert harness("run", again.path).wait(800) == 2  # the registry has gone
    away = again.results()
    assert away and away.verdict is Verdict.ERRORED and "could not be pulled" in away.reason


@pytest.mark.parametrize("setting", ['ITS_IMAGE = "127.0.0.1:9/gone:1"', 'ITS_GRACE = "a while"'])
def test_a_commit_cannot_break_the_published_version_to_be_rid_of_the_upgrade(setting: str, tmp_path: Path) -> None:
    published = f"${{ITS_IMAGE:-{IMAGE}}}\n    stop_grace_period: ${{ITS_GRACE:-1s}}"
    source = _history(tmp_path / "recipe", **{"1.0.0+1": published, "1.1.0+1": IMAGE})
    repository = tmp_path / "recipe"
    (repository / "cc-ci.toml").write_text(f"[env]\n{setting}\n")
    git(repository, "checkout", "--quiet", "-b", "change")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "Break it")
    base = Source(url=source.url, ref="refs/heads/main")
    source = source.model_copy(update={"sha": git(repository, "rev-parse", "HEAD")})
    folder = make(tmp_path, "moved", source=source, base=base, stages=ALL)
    assert harness("run", folder.path).wait(800) == 1
    results = folder.results()
    assert results and results.verdict is Verdict.FAILED
    assert "1.0.0+1 does not work with the settings of this commit (cc-ci.toml changes env)" in results.reason


def test_the_version_to_upgrade_from_can_be_chosen(tmp_path: Path) -> None:
    source = _history(tmp_path / "recipe", **{"1.0.0+1": IMAGE, "1.1.0+1": "127.0.0.1:9/gone:1", "1.2.0+1": IMAGE})
    folder = make(tmp_path, "moved", source=source, stages=ALL, upgrade_from="1.0.0+1")
    assert harness("run", folder.path).wait(800) == 0
    results = folder.results()
    assert results and results.upgraded_from == "1.0.0+1"
    assert results.stages[1].status == "passed"
    folder = make(tmp_path, "moved", source=source, stages=ALL, upgrade_from="3.0.0+1")
    assert harness("run", folder.path).wait(800) == 1
    results = folder.results()
    assert results and "no published version 3.0.0+1 to upgrade from (newest: 1.1.0+1, 1.0.0+1)" in results.reason


def _history(folder: Path, **images: str) -> Source:
    """A repository with a version for each image, all published but the last."""
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / ".env.sample").write_text("TYPE=moved\nDOMAIN=moved.example.com\n")
    sha = ""
    for version, image in images.items():
        (folder / "compose.yml").write_text(_COMPOSE % (image, version))
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", version)
        sha = git(folder, "rev-parse", "HEAD")
        if version != list(images)[-1]:
            git(folder, "tag", "--annotate", "--message", version, version)
    return Source(url=f"file://{folder}", sha=sha)
