"""The harness as a process: started twice, cancelled, killed. Real processes, looked at from outside."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.deployers.context import stack_name
from infra.deployers.isolation import cgroups, trees
from infra.deployers.process.deployer import sweep
from runs.harness.protocol import FolderState, RunFolder, Verdict
from runs.harness.sweep import sweep as sweep_all
from tests.infra.deployers.test_trees import make_deep
from tests.runs.harness.conftest import RECIPES, ROOT
from tests.waiting import until

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("processes")]

SLOW = "import time\ndef test_slow(app):\n    print('now', flush=True)\n    time.sleep(30)\n"


def _started(folder: RunFolder, stage: str) -> bool:
    return any(event.kind == "stage_started" and event.stage == stage for event in folder.events())


def _processes_of(run_id: str) -> list[psutil.Process]:
    """Every process in a sandbox of this run."""
    pids = {pid for _, group in cgroups.existing(f"{stack_name(run_id)}-") for pid in group.pids()}
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def _start(folder: RunFolder, given: str = "") -> None:
    command = [sys.executable, "-m", "runs.harness", "start", str(folder.path)]
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def test_start_returns_at_once_and_the_harness_outlives_it(make_folder: Any) -> None:
    folder = make_folder(RECIPES / "process-web")
    assert folder.state() is FolderState.NOT_STARTED
    _start(folder, '{"git_username": "bot", "git_token": "s3cret-token"}')
    assert folder.results() is None, "it waited for the run, which starts a dozen processes"
    assert folder.state() is FolderState.RUNNING
    until(lambda: folder.state() is FolderState.FINISHED)
    assert folder.results().verdict is Verdict.PASSED
    assert "s3cret-token" not in "".join(path.read_text() for path in folder.path.iterdir() if path.is_file())


def test_two_starts_are_one_harness(make_folder: Any) -> None:
    folder = make_folder(RECIPES / "process-web")
    command = [sys.executable, "-m", "runs.harness", "start", str(folder.path)]
    starts = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL) for _ in range(4)]
    assert [start.wait(240) for start in starts] == [0, 0, 0, 0]
    until(lambda: folder.state() is FolderState.FINISHED)
    assert [event.kind for event in folder.events()].count("begun") == 1
    results = folder.results_file.read_bytes()
    _start(folder)  # a late one finds the results and leaves them alone
    time.sleep(0.3)
    assert folder.results_file.read_bytes() == results


def test_somebody_who_only_asks_is_not_mistaken_for_a_harness(make_folder: Any, harness: Any) -> None:
    folder = make_folder(RECIPES / "process-web")
    handle = os.open(folder.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_SH)
    process = harness("run", folder.path)
    time.sleep(0.5)
    os.close(handle)
    assert process.wait(240) == 0
    assert folder.results().verdict is Verdict.PASSED


@pytest.mark.parametrize("how", ["file", "signal"])
def test_a_cancelled_run_is_torn_down_and_says_so(how: str, make_folder: Any, make_recipe: Any, harness: Any) -> None:
    folder = make_folder(make_recipe({"test_slow": SLOW}))
    process = harness("run", folder.path)
    until(lambda: _started(folder, "custom"))
    run_id = folder.request().run_id
    assert _processes_of(run_id)
    if how == "file":
        folder.cancel.touch()
    else:
        process.send_signal(signal.SIGTERM)
    assert process.wait(240) == 2, "it did not wait for the test, which takes longer"
    assert folder.results().verdict is Verdict.CANCELLED
    assert folder.results().teardown.clean
    assert not _processes_of(run_id)


@pytest.mark.parametrize("bubblewrap", [True, False])
def test_a_killed_harness_is_lost_and_leaves_no_process(
    bubblewrap: bool, make_folder: Any, make_recipe: Any, harness: Any, path_without_bubblewrap: str
) -> None:
    folder = make_folder(make_recipe({"test_slow": SLOW}))
    path = os.environ["PATH"] if bubblewrap else path_without_bubblewrap
    process = harness("run", folder.path, env={"PATH": path})
    run_id = folder.request().run_id
    until(lambda: _started(folder, "custom") and "collected 1 item" in folder.log.read_text())
    mine = psutil.Process(process.pid).children(recursive=True)
    assert "busybox" in {child.name() for child in mine}
    assert bubblewrap == ("bwrap" in {child.name() for child in mine})
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(mine, timeout=240)
    assert not alive
    assert folder.state() is FolderState.LOST
    assert harness("run", folder.path).wait(240) == 3  # a lost run is not begun again in its folder
    assert folder.state() is FolderState.LOST

    def swept() -> bool:
        sweep(older_than=0, prefix=stack_name(run_id))  # a process that has just ended holds its cgroup for another moment
        return not list(cgroups.existing(stack_name(run_id)))

    until(swept)


def test_a_sweep_removes_the_work_of_lost_runs_only(make_folder: Any, make_recipe: Any, harness: Any) -> None:
    lost, living = (make_folder(make_recipe({"test_slow": SLOW})) for _ in range(2))
    processes = [harness("run", folder.path) for folder in (lost, living)]
    for folder in (lost, living):
        until(lambda folder=folder: _started(folder, "custom"))
    processes[0].kill()
    processes[0].wait()
    swept = harness("sweep", "--installation", lost.request().installation_id, "--runs-dir", lost.path.parent.parent)
    assert swept.wait(240) == 0
    assert not (lost.path / "work").exists()
    assert (living.path / "work").exists()
    living.cancel.touch()
    assert processes[1].wait(240) == 2
    assert living.results().verdict is Verdict.CANCELLED


def test_a_sweep_removes_the_deep_folders_of_a_lost_run(tmp_path: Path) -> None:
    work = tmp_path / "run" / "1" / "work"
    work.mkdir(parents=True)
    make_deep(work, 1900)
    try:
        sweep_all(f"test-{os.getpid()}", tmp_path)
        assert not work.exists()
    finally:
        trees.remove(work)  # else pytest, which removes its old folders as shutil does, could not


def test_a_request_of_another_version_is_answered(make_folder: Any, harness: Any) -> None:
    folder = make_folder(RECIPES / "process-web")
    folder.request_file.write_text('{"schema_version": 99}')
    assert harness("run", folder.path).wait(240) == 2
    assert folder.results().verdict is Verdict.ERRORED
    assert folder.results().reason.startswith("Cannot read the request")


def test_the_start_imports_nothing_heavy() -> None:
    code = "import sys, runs.harness.__main__, runs.harness.daemonize; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"pydantic", "yaml", "requests", "django", "subprocess"} & set(done.stdout.split())


def test_misuse_is_64(harness: Any, tmp_path: Path) -> None:
    process = harness("strat", tmp_path)
    assert process.wait(240) == 64
    assert "usage" in process.stdout.read()


def test_a_sweep_removes_an_empty_cgroup_and_no_young_one() -> None:
    name = "ccci-test-of-the-sweep"
    if cgroups.create(name, 64, 16) is None:
        pytest.skip("no cgroup can be made here")
    assert name not in sweep(older_than=60, prefix=name)
    assert list(cgroups.existing(name))
    assert name in sweep(older_than=0, prefix=name)
    assert not list(cgroups.existing(name))


def test_settings_of_pytest_above_the_run_do_not_count(
    make_folder: Any, make_recipe: Any, harness: Any, path_without_bubblewrap: str
) -> None:
    """Without a sandbox the run lies below the project, whose own pyproject.toml pytest would find."""
    folder = make_folder(make_recipe({"test_fine": "def test_fine(app):\n    assert app.get('/').ok\n"}))
    above = '[tool.pytest.ini_options]\naddopts = "--strict-config"\nno_such_option = 1\n'
    (folder.path / "pyproject.toml").write_text(above)
    process = harness("run", folder.path, env={"PATH": path_without_bubblewrap})
    assert process.wait(240) == 0, folder.log.read_text()
