"""Harnesses killed at each step of a run, and runs side by side: nothing of them is left, and nothing is shared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.deployers.docker.api import ids
from infra.deployers.docker.cli import LABEL_INSTALLATION, LABEL_RUN, docker
from runs.harness.protocol import FolderState, RunFolder, Verdict
from tests.docker import IMAGE, need_swarm
from tests.e2e.recipes import INSTALLATION, NEXT, Repository, folder_of, left

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[2]
#: How the event begins after which the harness is killed, one for each step of a run.
STEPS = (
    "Checked out",
    "Deploying",
    "Waiting",
    "Deployed after",
    "Upgrading",
    "Backing up",
    "Restoring",
    "Stage custom",
    "Running 1 test file",
    "Tearing down",
)
QUICK = ("Deploying", "Upgrading", "Restoring", "Tearing down")


@pytest.fixture(autouse=True)
def _swarm() -> None:
    need_swarm()


def harness(folder: RunFolder) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "runs.harness", "run", str(folder.path)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def killed_at(folder: RunFolder, process: subprocess.Popen[bytes], step: str) -> bool:
    """Kill the harness once it has said `step`; whether it has."""
    said = [event.text for event in folder.events()]
    if not any(text.startswith(step) for text in said):
        assert process.poll() is None, f"it ended before {step!r}: {said}"
        return False
    process.send_signal(signal.SIGKILL)
    process.wait(240)
    return True


def sweep(folder: Path) -> str:
    command = [sys.executable, "-m", "runs.harness", "sweep", "--installation", INSTALLATION, "--runs-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.crash
@pytest.mark.parametrize("steps", [pytest.param(QUICK, id="quick"), pytest.param(STEPS, id="all", marks=pytest.mark.long)])
def test_nothing_is_left_of_a_harness_killed_at_any_step(steps: Sequence[str], tmp_path: Path) -> None:
    recipe = Repository(tmp_path / "whole")
    source = recipe.pull(NEXT)
    neighbour = f"ccci-{os.getpid():012x}"  # our prefix, our label, another installation
    labels = [f"--label={LABEL_INSTALLATION}=another-one", f"--label={LABEL_RUN}={os.getpid():032x}"]
    docker("service", "create", "--quiet", "--detach", f"--name={neighbour}_app", *labels, IMAGE, "sleep", "1000000")
    try:
        for group in (steps[i : i + 4] for i in range(0, len(steps), 4)):
            waiting = {step: folder_of(tmp_path, source, recipe.main) for step in group}
            folders = list(waiting.values())
            processes = {step: harness(folder) for step, folder in waiting.items()}
            until = time.monotonic() + 600
            while waiting:
                assert time.monotonic() < until, f"never seen: {list(waiting)}"
                waiting = {step: f for step, f in waiting.items() if not killed_at(f, processes[step], step)}
                time.sleep(0.02)
            assert all(folder.state() is FolderState.LOST for folder in folders)
            sweep(tmp_path / "runs")
            assert [name for folder in folders for name in left(folder)] == []
            assert not [path for folder in folders for path in folder.path.glob("work")]
        assert ids("service", f"{LABEL_INSTALLATION}=another-one", labels[1].removeprefix("--label="))
    finally:
        docker("service", "rm", f"{neighbour}_app")


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])
def test_runs_at_once_share_nothing(tmp_path: Path, count: int) -> None:
    recipe = Repository(tmp_path / "whole")
    source = recipe.pull(NEXT)
    stages = ["install", "backup", "restore", "custom", "extra"]
    folders = [folder_of(tmp_path, source, recipe.main, stages=stages) for _ in range(count)]
    processes = [harness(folder) for folder in folders]
    assert [process.wait(600) for process in processes] == [0] * count
    for folder in folders:
        results = folder.results()
        assert results and results.verdict is Verdict.PASSED, results
        assert results.deployments == 1
        assert left(folder) == []
