"""The sandbox itself: found or missing, in words, for root and for others, with and without cgroups."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.deployers import limits, sandbox

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    sandbox.available.cache_clear()
    yield
    sandbox.available.cache_clear()


def _path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def _needed() -> None:
    here = sandbox.available()
    if not here.ok:
        if os.environ.get("CI") == "true":
            pytest.fail(here.reason)
        pytest.skip(here.reason)


def test_a_machine_that_can() -> None:
    _needed()
    assert sandbox.available() == sandbox.Availability(True)


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _path(tmp_path, monkeypatch)
    assert sandbox.available() == sandbox.Availability(False, "There is no bubblewrap (bwrap) on this machine.", sandbox.FIX)
    sandbox.available.cache_clear()
    (tmp_path / "bin" / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "bwrap").chmod(0o755)
    assert sandbox.available().reason == "There is no setpriv on this machine."


def test_a_bubblewrap_that_may_not_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "#!/bin/sh\necho 'bwrap: No permissions to create new namespace'\nexit 1\n"
    _path(tmp_path, monkeypatch, bwrap=refusal, setpriv="#!/bin/sh\n", prlimit="#!/bin/sh\n")
    here = sandbox.available()
    assert not here.ok
    assert "No permissions to create new namespace" in here.reason
    assert "unprivileged" in here.fix


def test_a_bubblewrap_that_isolates_nothing_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _path(tmp_path, monkeypatch, bwrap="#!/bin/sh\necho 0\n", setpriv="#!/bin/sh\n", prlimit="#!/bin/sh\n")
    assert not sandbox.available().ok


def _inside(script: str, **options: int) -> tuple[int, str]:
    place = sandbox.Sandbox(f"ccci-test-{uuid.uuid4().hex[:8]}", bubblewrap=True, **options)
    box = place.spawn(["/bin/sh", "-c", script])
    try:
        output, _ = box.communicate(timeout=20)
    finally:
        place.end(box)
    assert not list(limits.existing(place.name))
    return box.returncode, output.decode()


def test_without_cgroups_limits_hold_by_process(monkeypatch: pytest.MonkeyPatch) -> None:
    _needed()
    monkeypatch.setattr(limits, "_bases", list)
    code, output = _inside("ulimit -v; ulimit -p", memory_mb=256, processes=50)
    assert (code, output.split()) == (0, [str(256 * 1024), "50"])


def test_two_sandboxes_have_two_uids() -> None:
    assert sandbox.Sandbox("ccci-a", True).uid != sandbox.Sandbox("ccci-b", True).uid


def test_everything_ends_with_the_sandbox() -> None:
    _needed()
    place = sandbox.Sandbox(f"ccci-test-{uuid.uuid4().hex[:8]}", bubblewrap=True)
    box = place.spawn(["/bin/sh", "-c", "setsid sleep 100 & setsid sleep 100 & echo ready; wait"])
    assert box.stdout and box.stdout.readline() == b"ready\n"
    assert place.cgroup is None or len(place.cgroup.pids()) >= 5
    place.end(box)
    box.stdout.close()
    assert not list(limits.existing(place.name))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs an interpreter that everybody may read")
def test_somebody_who_is_not_root_gets_a_sandbox_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    _needed()
    version = subprocess.run(["/usr/bin/python3", "--version"], capture_output=True, text=True, check=True).stdout
    if not version.startswith(("Python 3.11", "Python 3.12", "Python 3.13", "Python 3.14")):
        pytest.skip(version)
    folder = Path("/tmp") / f"cc-ci-test-{uuid.uuid4().hex}"  # pytest's own folders are closed to others
    try:
        shutil.copytree(ROOT / "infra", folder / "infra", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "probe.py").write_text(
            "import os\nfrom infra.deployers import sandbox\nprint(sandbox.available())\n"
            "place = sandbox.Sandbox('ccci-test-other', bubblewrap=True)\n"
            "box = place.spawn(['/bin/sh', '-c', 'id -u; ls /home /root; cat /proc/1/environ /proc/2/environ'])\n"
            "print(place.uid)\nprint(box.communicate()[0].decode())\n"
        )
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", str(folder / "probe.py")]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "SECRET": "PLANTED"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=30)
    finally:
        shutil.rmtree(folder)
    if "allow unprivileged user namespaces" in done.stdout:
        pytest.skip("this kernel keeps namespaces for root")
    lines = done.stdout.splitlines()
    assert lines[0] == "Availability(ok=True, reason='', fix='')", done.stderr
    assert lines[1] == lines[2]  # the uid inside
    assert "PLANTED" not in done.stdout


def test_the_interpreter_is_the_real_one() -> None:
    assert Path(sandbox.interpreter()).is_file()
    assert not Path(sandbox.interpreter()).is_symlink()
    assert Path(sys.executable).resolve() == Path(sandbox.interpreter())


def test_a_virtual_environment_under_tmp_is_seen_and_its_neighbours_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project may lie under /tmp, over which the sandbox has a /tmp of its own."""
    venv = Path(tempfile.mkdtemp(prefix="cc-ci-venv-", dir="/tmp"))
    try:
        (venv / "venv").mkdir(mode=0o755)
        (venv / "venv" / "marker").write_text("the environment")
        (venv / ".env").write_text("SECRET=1")
        monkeypatch.setattr(sys, "prefix", str(venv / "venv"))
        place = sandbox.Sandbox("ccci-test-venv", bubblewrap=True)
        box = place.spawn(["/bin/sh", "-c", f"cat {venv}/venv/marker; ls -a {venv}; touch {venv}/venv/x /tmp/mine && ls /tmp"])
        try:
            said = box.communicate(timeout=20)[0].decode()
        finally:
            place.end(box)
        assert "the environment" in said
        assert ".env" not in said
        assert "Read-only file system" in said
    finally:
        shutil.rmtree(venv)
