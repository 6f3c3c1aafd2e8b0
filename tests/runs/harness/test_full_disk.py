"""A full disk ends a run with a message, its teardown and exit code 2; its results are written if possible."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.deployers.context import stack_name
from infra.deployers.isolation import cgroups
from runs.harness import disk_full
from runs.harness.protocol import CaseResult, Request, Results, RunFolder, Source, StageResult, Verdict
from tests.runs.harness.conftest import RECIPES, ROOT, git
from tests.waiting import until

pytestmark = pytest.mark.slow(1.3)

KB = 1 << 10
LOUD = "sh -c 'yes {} | head -c 8000000 & busybox httpd -f -p 127.0.0.1:${{PORT}} -h www'".format("x" * 1000)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes a disk of so many kB, of which so many are free."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount one")
    mounted = []

    def make(size: int, free: int | None = None) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k,mode=700", "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr}")
        mounted.append(folder)
        if free is not None:
            fill(folder, free)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, free: int = 0) -> None:
    """Leave so many kB."""
    with (folder / "filler").open("ab", buffering=0) as file:
        left = os.statvfs(folder)
        file.write(bytes(max(left.f_bavail * left.f_frsize - free * KB, 0)))


def _cc_ci(data: Path, *arguments: str | Path, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env |= {"CC_CI_DATA_DIR": str(data), "CC_CI_DEPLOYER": "process", "CC_CI_ENV_FILE": os.devnull, "CC_CI_PICTURES": "no"}
    command = [*prefix, sys.executable, str(ROOT / "manage.py"), *map(str, arguments)]
    printed = data.parent / "printed"
    with printed.open("w") as output:
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=output, stderr=output)
    family: set[psutil.Process] = set()
    while process.poll() is None:
        try:
            family |= set(psutil.Process(process.pid).children(recursive=True))
        except psutil.Error:
            pass
        time.sleep(0.05)
    _, alive = psutil.wait_procs(list(family), timeout=240)
    assert not alive
    assert not list(data.glob("local-runs/*"))
    return process.returncode, " ".join(printed.read_text().split())


def _recipe(make_recipe: Any, kind: str) -> Path:
    files = {"big": os.urandom(1 << 20).hex()} if kind in ("big", "commit") else {}
    recipe: Path = make_recipe(files=files)
    if kind == "loud":
        text = (recipe / "compose.yml").read_text()
        before = next(line for line in text.splitlines() if "x-cc-ci-process" in line)
        (recipe / "compose.yml").write_text(text.replace(before, f"    x-cc-ci-process: {LOUD}"))
    elif kind == "commit":
        git(recipe, "init", "--quiet", "--initial-branch=main")
        git(recipe, "add", ".")
        git(recipe, "commit", "--quiet", "-m", "One")
    return recipe


@pytest.mark.parametrize("command", ["run", "test"])
@pytest.mark.parametrize(
    ("kind", "size", "free"),
    [
        pytest.param("small", 200, 0, id="nothing is free"),
        pytest.param("small", 200, 8, id="the request has room and nothing else"),
        pytest.param("small", 600, None, id="there is no room to keep for the results"),
        pytest.param("big", 2200, None, id="the folder does not fit"),
        pytest.param("commit", 1900, None, id="what is fetched does not fit"),
        pytest.param("commit", 3000, None, id="the checkout does not fit"),
        pytest.param("loud", 3000, None, id="the log does not fit"),
    ],
)
def test_a_command_ends_in_words(command: str, kind: str, size: int, free: int | None, small: Any, make_recipe: Any) -> None:
    recipe = _recipe(make_recipe, kind)
    if kind == "commit" and command == "test":
        pytest.skip("it takes a folder as it is")
    source = f"file://{recipe}" if kind == "commit" else recipe
    code, said = _cc_ci(small(size, free), command, source)
    assert code == 2, said
    assert "The disk is full" in said or "No space left on device" in said, said
    assert "Traceback" not in said


def test_a_limit_on_files_ends_in_words_too(make_recipe: Any, tmp_path: Path) -> None:
    """Whoever is not root has such a limit, or a quota, rather than a full disk."""
    code, said = _cc_ci(tmp_path / "data", "run", _recipe(make_recipe, "small"), prefix=("prlimit", f"--fsize={200 * KB}"))
    assert (code, "The disk is full" in said, "Traceback" in said) == (2, True, False), said


def _request(recipe: Path, run_id: str) -> Request:
    source = Source(url=str(recipe))
    stages = ["install", "custom"]
    return Request(
        run_id=run_id, installation_id="test", recipe="web", source=source, stages=stages, deployer="process", picture=False
    )


def _start(folder: RunFolder) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runs.harness", "start", str(folder.path)]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)


@pytest.mark.crash
def test_a_disk_that_fills_up_meanwhile_leaves_room_for_the_results(small: Any, make_recipe: Any) -> None:
    """As the control plane starts it: by somebody else the disk is filled to the last byte."""
    slow = (
        "import time\ndef test_slow(app):\n    for number in range(3000):\n"
        "        print('x' * 2000, flush=True)\n        time.sleep(0.02)\n"
    )
    recipe = make_recipe({"test_slow": slow}, {"pytest.ini": "[pytest]\naddopts = -s\n"})
    data, run_id = small(20_000), os.urandom(16).hex()
    folder = RunFolder(data / "runs" / run_id / "1")
    folder.write_request(_request(recipe, run_id))
    assert _start(folder).returncode == 0
    until(lambda: folder.log.exists() and "xxxx" in folder.log.read_text())
    fill(data)
    until(folder.results_file.exists)
    results = folder.results()
    assert results
    assert results.verdict is Verdict.ERRORED
    assert results.reason.startswith("The disk is full: ")
    assert results.teardown.clean
    assert [stage.status for stage in results.stages] == ["passed", "errored"]
    assert not (folder.path / "work").exists()
    assert not (folder.path / disk_full.ROOM).exists()
    assert not list(cgroups.existing(stack_name(run_id)))
    assert "Traceback" not in (folder.path / "harness.err").read_text()


@pytest.mark.crash
def test_a_harness_that_cannot_start_says_why_to_who_starts_it(small: Any) -> None:
    data = small(200)
    folder = RunFolder(data / "runs" / "0" / "1")
    folder.write_request(_request(RECIPES / "process-web", "0" * 32))
    fill(data)
    done = _start(folder)
    assert done.returncode == 1
    assert done.stderr == f"The harness did not start: Cannot write {folder.path}: No space left on device.\n"
    assert not folder.begun.exists()


def _results() -> Results:
    now = datetime.now(UTC)
    cases = [CaseResult(name=f"test_{number}", status="failed", output="x" * 8000) for number in range(300)]
    stages = [StageResult(name="install", status="failed", reason="1 of 300 tests failed", cases=cases)]
    return Results(run_id="1", verdict=Verdict.FAILED, reason="install: no", started=now, finished=now, stages=stages)


def test_results_that_do_not_fit_are_written_short(small: Any) -> None:
    folder = RunFolder(small(1600))
    disk_full.keep_room(folder)
    folder.log.write_text("x" * 100_000)
    fill(folder.path)
    disk_full.write(folder, _results())
    found = folder.results()
    assert found
    assert (found.verdict, found.reason, found.stages[0].reason) == (Verdict.FAILED, "install: no", "1 of 300 tests failed")
    assert found.stages[0].cases == []
    assert found.warnings == ["The disk was full: the logs and the individual test results were lost."]
    assert not folder.log.exists()


def test_where_nothing_can_be_written_words_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "results.json"))

    monkeypatch.setattr(RunFolder, "write_results", full)
    with pytest.raises(
        disk_full.DiskFull, match=rf"The disk is full: cannot write to {tmp_path} \(\d+ MB are free\)\. Free some space there"
    ):
        disk_full.write(RunFolder(tmp_path), _results())
    assert disk_full.full(OSError(errno.EACCES, "no"), tmp_path) is None
