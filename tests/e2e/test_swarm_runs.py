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

from infra.deployers.docker_cli import LABEL_RUN
from infra.deployers.engine import KINDS, ids
from runs.harness.protocol import FolderState, Limits, Request, RunFolder, Source, Verdict
from tests.docker import need_swarm

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
        "limits": Limits(run_seconds=120, settle_seconds=60),
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
    assert harness("run", folder.path).wait(120) == 0
    results = folder.results()
    assert results and results.verdict is Verdict.PASSED
    assert results.deployer == "swarm"
    assert [(stage.name, stage.status, len(stage.cases)) for stage in results.stages] == [
        ("install", "passed", 1),
        ("custom", "passed", 3),
    ]
    assert results.teardown.clean
    assert left(folder) == []


def test_a_failed_pull_is_our_error_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path, "image-missing")
    assert harness("run", folder.path).wait(120) == 2
    results = folder.results()
    assert results and results.verdict is Verdict.ERRORED
    assert "missing:1" in results.reason and "could not be pulled" in results.reason
    assert [stage.status for stage in results.stages] == ["errored", "skipped"]
    assert left(folder) == []


@pytest.mark.crash
def test_a_killed_harness_leaves_a_stack_that_the_sweep_takes(tmp_path: Path) -> None:
    folder = make(tmp_path, "no-web-port", limits=Limits(run_seconds=120))
    process = harness("run", folder.path)
    until = time.monotonic() + 60
    while not ids("container", f"{LABEL_RUN}={folder.request().run_id}"):
        assert time.monotonic() < until
        time.sleep(0.1)
    sweep = ("sweep", "--installation", INSTALLATION, "--runs-dir", tmp_path)
    assert harness(*sweep).wait(60) == 0  # it lives: nothing happens
    assert ids("service", f"{LABEL_RUN}={folder.request().run_id}")
    os.kill(process.pid, 9)
    process.wait()
    assert folder.state() is FolderState.LOST
    assert left(folder)
    assert harness(*sweep).wait(60) == 0
    assert left(folder) == []


def test_a_cancelled_run_takes_its_stack_away(tmp_path: Path) -> None:
    folder = make(tmp_path, "never-healthy")
    process = harness("run", folder.path)
    until = time.monotonic() + 60
    while not ids("service", f"{LABEL_RUN}={folder.request().run_id}"):
        assert time.monotonic() < until
        time.sleep(0.1)
    folder.cancel.touch()
    assert process.wait(60) == 2
    results = folder.results()
    assert results and results.verdict is Verdict.CANCELLED
    assert left(folder) == []
