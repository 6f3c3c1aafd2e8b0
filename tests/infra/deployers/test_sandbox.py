"""The sandbox itself: available or not, with the reason, for root and for others, with and without cgroups."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import pytest

from infra.deployers.isolation import bubblewrap, cgroups, syscalls

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    bubblewrap.available.cache_clear()
    yield
    bubblewrap.available.cache_clear()


def _path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def _needed() -> None:
    here = bubblewrap.available()
    if not here.ok:
        if os.environ.get("CI") == "true":
            pytest.fail(here.reason)
        pytest.skip(here.reason)


def test_a_machine_that_can() -> None:
    _needed()
    assert bubblewrap.available() == bubblewrap.Availability(True)


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _path(tmp_path, monkeypatch)
    assert bubblewrap.available() == bubblewrap.Availability(False, "bubblewrap (bwrap) is not installed.", bubblewrap.FIX)
    bubblewrap.available.cache_clear()
    (tmp_path / "bin" / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "bwrap").chmod(0o755)
    assert bubblewrap.available().reason == "setpriv is not installed."


def test_a_bubblewrap_that_may_not_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "#!/bin/sh\necho 'bwrap: No permissions to create new namespace'\nexit 1\n"
    _path(tmp_path, monkeypatch, bwrap=refusal, setpriv="#!/bin/sh\n", prlimit="#!/bin/sh\n")
    here = bubblewrap.available()
    assert not here.ok
    assert "No permissions to create new namespace" in here.reason
    assert "unprivileged" in here.fix


def test_a_bubblewrap_that_isolates_nothing_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _path(tmp_path, monkeypatch, bwrap="#!/bin/sh\necho 0\n", setpriv="#!/bin/sh\n", prlimit="#!/bin/sh\n")
    assert not bubblewrap.available().ok


def _inside(script: str, **options: int) -> tuple[int, str]:
    place = bubblewrap.Sandbox(f"ccci-test-{uuid.uuid4().hex[:8]}", bubblewrap=True, **options)
    box = place.spawn(["/bin/sh", "-c", script])
    try:
        output, _ = box.communicate(timeout=240)
    finally:
        place.end(box)
    assert not list(cgroups.existing(place.name))
    return box.returncode, output.decode()


def test_without_cgroups_limits_hold_by_process(monkeypatch: pytest.MonkeyPatch) -> None:
    _needed()
    monkeypatch.setattr(cgroups, "_bases", list)
    code, output = _inside("ulimit -v; ulimit -p", memory_mb=256, processes=50)
    assert (code, output.split()) == (0, [str(256 * 1024), "50"])


#: Says what comes of each way to new namespaces, and of what few programs need.
_ASKS = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
x86 = os.uname().machine == "x86_64"
def say(name, *call):
    back = libc.syscall(*call)
    if name.startswith("clone") and back == 0:
        os._exit(0)
    print(name, errno.errorcode[ctypes.get_errno()] if back < 0 else "done", flush=True)
for name in ("NS", "CGROUP", "UTS", "IPC", "USER", "PID", "NET"):
    flag = dict(NS=17, CGROUP=25, UTS=26, IPC=27, USER=28, PID=29, NET=30)[name]
    say("unshare " + name, 272 if x86 else 97, 1 << flag)
    say("clone " + name, 56 if x86 else 220, 1 << 28 | 1 << flag | 17, 0, 0, 0, 0)
say("unshare TIME", 272 if x86 else 97, 1 << 28 | 1 << 7)
say("clone3", 435, (ctypes.c_uint64 * 11)(1 << 28, 0, 0, 0, 17), 88)
for name, numbers in dict(io_setup=(206, 0), io_uring=(425, 425), bpf=(321, 280), perf=(298, 241), keyctl=(250, 219)).items():
    say(name, numbers[not x86], 1, ctypes.byref(ctypes.c_ulong()), 0, 0, 0)
if x86:
    say("x32", 1 << 30 | 272, 1 << 28)
"""


def test_no_namespaces_and_nothing_of_the_whole_machines() -> None:
    _needed()
    if not syscalls.program():
        pytest.skip("no filter on system calls here")
    code, output = _inside(f"exec {bubblewrap.interpreter()} -c {quote(_ASKS)}")
    said = dict(line.rsplit(" ", 1) for line in output.splitlines())
    assert code == 0 and len(said) >= 21, output
    assert {said.pop(name) for name in list(said) if name.startswith(("unshare", "clone "))} == {"EPERM"}
    assert set(said.values()) == {"ENOSYS"}, said


def test_nothing_leads_to_the_machine_below() -> None:
    """A virtual machine's own host, past all networks; the families of every day are there."""
    _needed()
    if not syscalls.program():
        pytest.skip("no filter on system calls here")
    program = """
import errno, socket
for family in (1, 2, 16, 40):
    try: print(socket.socket(family, 1 if family != 16 else 2).family and "there")
    except OSError as error: print(errno.errorcode[error.errno])
"""
    code, output = _inside(f"exec {bubblewrap.interpreter()} -c {quote(program)}")
    assert (code, output.split()) == (0, ["there", "there", "there", "EAFNOSUPPORT"])


def test_what_programs_do_every_day_is_allowed() -> None:
    """Threads, pools of processes, asyncio with a child, a shell; and all of it behind everybody else (nice)."""
    _needed()
    program = """
import asyncio, multiprocessing, os, subprocess, threading
threads = [threading.Thread(target=print, args=("thread",)) for _ in range(2)]
for one in threads: one.start(); one.join()
with multiprocessing.get_context("fork").Pool(2) as pool: print(sum(pool.map(abs, [-1, -2])))
async def child(): return (await (await asyncio.create_subprocess_exec("echo", "child", stdout=-1)).communicate())[0]
print(asyncio.run(child()).decode(), subprocess.check_output("echo shell", shell=True).decode(), os.nice(0))
"""
    code, output = _inside(f"exec {bubblewrap.interpreter()} -c {quote(program)}")
    assert (code, output.split()) == (0, ["thread", "thread", "3", "child", "shell", "10"])


def test_all_in_a_sandbox_is_in_the_group_that_holds_the_processors() -> None:
    _needed()
    if cgroups.lacking():
        pytest.skip("no cgroup holds the processors here")
    place = bubblewrap.Sandbox(f"ccci-test-{uuid.uuid4().hex[:8]}", bubblewrap=True)
    box = place.spawn(["/bin/sh", "-c", "setsid sleep 100 & echo ready; wait"])
    try:
        assert box.stdout and box.stdout.readline() == b"ready\n"
        assert place.cgroup
        for pid in place.cgroup.pids():
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            groups = {kind: path for _, kinds, path in (line.split(":") for line in lines) for kind in kinds.split(",")}
            assert (groups.get("cpu") or groups[""]).endswith(f"/cc-ci/{place.name}")
    finally:
        place.end(box)


def test_a_machine_without_a_filter_or_cgroups_still_has_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    _needed()
    monkeypatch.setattr(cgroups, "_bases", list)
    monkeypatch.setattr(syscalls, "_MACHINES", {})
    assert _inside("echo fine") == (0, "fine\n")
    assert [text for text, _ in bubblewrap.lacking()] == [
        "cgroups cannot limit the memory, processes and processors of a recipe's code here; "
        "the fallback is per-process limits and nice.",
        "A recipe's code can create its own namespaces here: system calls are not filtered.",
    ]


def test_two_sandboxes_have_two_uids() -> None:
    assert bubblewrap.Sandbox("ccci-a", True).uid != bubblewrap.Sandbox("ccci-b", True).uid


def test_everything_ends_with_the_sandbox() -> None:
    _needed()
    place = bubblewrap.Sandbox(f"ccci-test-{uuid.uuid4().hex[:8]}", bubblewrap=True)
    box = place.spawn(["/bin/sh", "-c", "setsid sleep 100 & setsid sleep 100 & echo ready; wait"])
    assert box.stdout and box.stdout.readline() == b"ready\n"
    assert place.cgroup is None or len(place.cgroup.pids()) >= 5
    place.end(box)
    box.stdout.close()
    assert not list(cgroups.existing(place.name))


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
            "import os\nfrom infra.deployers.isolation import bubblewrap\nprint(bubblewrap.available())\n"
            "place = bubblewrap.Sandbox('ccci-test-other', bubblewrap=True)\n"
            "box = place.spawn(['/bin/sh', '-c', 'id -u; ls /home /root; cat /proc/1/environ /proc/2/environ'])\n"
            "print(place.uid)\nprint(box.communicate()[0].decode())\n"
        )
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", str(folder / "probe.py")]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "SECRET": "PLANTED"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)
    finally:
        shutil.rmtree(folder)
    if "allow unprivileged user namespaces" in done.stdout:
        pytest.skip("this kernel keeps namespaces for root")
    lines = done.stdout.splitlines()
    assert lines[0] == "Availability(ok=True, reason='', fix='')", done.stderr
    assert lines[1] == lines[2]  # the uid inside
    assert "PLANTED" not in done.stdout


def test_the_interpreter_is_the_real_one() -> None:
    assert Path(bubblewrap.interpreter()).is_file()
    assert not Path(bubblewrap.interpreter()).is_symlink()
    assert Path(sys.executable).resolve() == Path(bubblewrap.interpreter())


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
        place = bubblewrap.Sandbox("ccci-test-venv", bubblewrap=True)
        box = place.spawn(["/bin/sh", "-c", f"cat {venv}/venv/marker; ls -a {venv}; touch {venv}/venv/x /tmp/mine && ls /tmp"])
        try:
            said = box.communicate(timeout=240)[0].decode()
        finally:
            place.end(box)
        assert "the environment" in said
        assert ".env" not in said
        assert "Read-only file system" in said
    finally:
        shutil.rmtree(venv)
