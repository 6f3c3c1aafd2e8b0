"""A hostile recipe hunts for ten planted secrets and finds none; a hungry one meets its limits."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from runs.harness import events
from runs.harness.protocol import Limits, Results, RunFolder, Verdict
from tests.runs.harness.conftest import RECIPES, ROOT, git

pytestmark = pytest.mark.slow(1.3)

PLANTER = Path(__file__).with_name("planter.py")
KINDS = ["environment", "proc", "file", "git_config", "database", "dotenv", "socket", "keyring", "shared_memory", "descriptor"]


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The hostile recipe in a git repository, and the secrets, planted where a control plane may have them."""
    secrets = {kind: f"PLANTED-{kind}-{uuid.uuid4().hex}" for kind in KINDS}
    recipe = tmp_path / "hostile"
    shutil.copytree(RECIPES / "hostile", recipe)
    git(recipe, "init", "--quiet")
    git(recipe, "config", "remote.origin.url", f"https://bot:{secrets['git_config']}@forge.example.com/x.git")
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    for name, kind in (("token", "file"), (".env", "dotenv")):
        (data / name).write_text(secrets[kind])
        (data / name).chmod(0o600)
    with sqlite3.connect(data / "db.sqlite3") as connection:
        connection.execute("create table secrets (text)")
        connection.execute("insert into secrets values (?)", [secrets["database"]])
    connection.close()
    with ExitStack() as stack:
        port = _serve(stack, secrets["socket"], str(data / "s"), f"cc-ci-{data.stat().st_ino}")
        _share_memory(stack, secrets["shared_memory"])
        stack.enter_context(_process(secrets["proc"]))
        hints = {
            "file": str(data / "token"),
            "git_config": str(recipe / ".git" / "config"),
            "database": str(data / "db.sqlite3"),
            "dotenv": str(data / ".env"),
            "socket": str(data / "s"),
            "abstract_socket": f"cc-ci-{data.stat().st_ino}",
            "port": port,
        }
        (recipe / "hints.json").write_text(json.dumps(hints))
        git(recipe, "add", ".")
        git(recipe, "commit", "--quiet", "-m", "Hunt")
        yield recipe, secrets


def _serve(stack: ExitStack, secret: str, path: str, abstract: str) -> int:
    """Tell the secret to whoever connects: by a unix socket, an abstract one, and loopback. Gives the port."""

    def tell(listener: socket.socket) -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            with stream, suppress(OSError):
                stream.sendall(secret.encode())

    port = 0
    for kind, address in ((socket.AF_UNIX, path), (socket.AF_UNIX, "\0" + abstract), (socket.AF_INET, ("127.0.0.1", 0))):
        listener = stack.enter_context(socket.socket(kind, socket.SOCK_STREAM))
        listener.bind(address)
        listener.listen()
        port = listener.getsockname()[1] if kind == socket.AF_INET else port
        thread = threading.Thread(target=tell, args=(listener,), daemon=True)
        thread.start()
        # In this order: one that was only closed would go on waiting, at a number that is another socket's by then.
        stack.callback(thread.join)
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
    return port


def _share_memory(stack: ExitStack, secret: str) -> None:
    shared = Path("/dev/shm") / f"cc-ci-test-{uuid.uuid4().hex}"
    shared.write_text(secret)
    shared.chmod(0o600)
    stack.callback(shared.unlink)
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    number = libc.shmget(0, 4096, 0o1600)
    address = libc.shmat(number, None, 0)
    ctypes.memmove(address, secret.encode(), len(secret))
    stack.callback(lambda: libc.shmctl(number, 0, None))


def _process(secret: str) -> Any:
    """A process of the control plane with a secret on its command line and in its environment."""
    stack = ExitStack()
    command = ["/bin/sh", "-c", "sleep 300 & wait", secret]
    process = subprocess.Popen(command, env={**os.environ, "TOKEN": secret}, start_new_session=True)
    stack.callback(process.wait)
    stack.callback(lambda: os.killpg(process.pid, 9))
    return stack


def _planter(secrets: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(PLANTER), json.dumps(secrets), sys.executable, *command]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)


def test_ten_planted_secrets_are_found_without_a_sandbox_and_none_within(
    planted: tuple[Path, dict[str, str]], make_folder: Callable[..., RunFolder]
) -> None:
    recipe, secrets = planted

    control = _planter(secrets, str(recipe / "hunt.py"))
    assert json.loads(control.stdout or "{}") == dict.fromkeys(KINDS, True), control.stderr

    source = {"url": str(recipe), "sha": git(recipe, "rev-parse", "HEAD")}
    folder = make_folder(recipe, source=source, trusted=False)
    done = _planter(secrets, "-m", "runs.harness", "run", str(folder.path))
    results = folder.results()
    assert results, done.stdout + done.stderr
    custom = results.stages[1]
    assert {case.name: case.message for case in custom.cases if case.status != "passed"} == {}
    assert {f"test_{kind}" for kind in KINDS} < {case.name for case in custom.cases}
    assert results.verdict is Verdict.PASSED
    assert results.sandbox == "bubblewrap"
    written = "".join(path.read_text(errors="replace") for path in folder.path.iterdir() if path.is_file())
    assert not [kind for kind in KINDS if secrets[kind] in written]


LIMITS = Limits(memory_mb=128, processes=40, disk_mb=32)


def _hungry(make_recipe: Callable[..., Path], run: Callable[..., Results], test: str, limits: Limits = LIMITS) -> Results:
    return run(make_recipe({"test_hungry": test}), limits=limits, trusted=False)


def test_a_fork_bomb_is_held(make_recipe: Any, run: Any) -> None:
    test = """
import os, time
def test_bomb():
    children = 0
    try:
        for _ in range(1000):
            if os.fork() == 0:
                time.sleep(1000)
                os._exit(0)
            children += 1
    except OSError:
        pass
    assert 1 <= children < 40
"""
    results = _hungry(make_recipe, run, test)
    assert results.verdict is Verdict.PASSED, results.reason
    assert (results.finished - results.started).total_seconds() < 500  # the bomb's children do not outlive it


def test_a_memory_hog_is_ended(make_recipe: Any, run: Any) -> None:
    results = _hungry(make_recipe, run, "def test_hog():\n    held = b'x' * (1 << 30)\n    assert held\n")
    assert results.verdict is Verdict.FAILED
    assert "memory" in results.reason.lower() or "MemoryError" in str(results.stages[1].cases)


def test_a_full_disk_is_the_recipes_own(make_recipe: Any, run: Any) -> None:
    test = """
import errno, os
def test_fill():
    written = 0
    try:
        for number in range(100):
            with open(f"/tmp/{number}", "wb") as file:
                written += file.write(b"x" * (1 << 20))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    for number in range(100):  # or the results find no room either
        if os.path.exists(f"/tmp/{number}"):
            os.unlink(f"/tmp/{number}")
    assert 1 << 20 < written <= 32 << 20
    assert not [path for path in ("/", "/usr", "/opt/cc-ci", "/recipe", "/dev", "/etc") if os.access(path, os.W_OK)]
"""
    results = _hungry(make_recipe, run, test)
    assert results.verdict is Verdict.PASSED, results.stages[1].cases


def test_an_endless_test_times_out(make_recipe: Any, run: Any) -> None:
    limits = LIMITS.model_copy(update={"stage_seconds": 2})
    results = _hungry(make_recipe, run, "def test_loop():\n    while True:\n        pass\n", limits)
    assert results.verdict is Verdict.TIMED_OUT
    assert results.reason == "The stage custom took longer than 2 s."
    assert results.stages[1].status == "failed"
    assert results.teardown.clean


def test_endless_output_is_cut(make_recipe: Any, make_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from runs.harness.engine import Engine

    monkeypatch.setattr(events, "LONGEST_LOG", 100_000)
    recipe = make_recipe({"test_loud": "import os\ndef test_loud():\n    os.system('yes | head -c 5000000 >&2')\n    assert 0\n"})
    folder = make_folder(recipe)
    assert Engine(folder).run().verdict is Verdict.FAILED
    assert folder.log.stat().st_size < 110_000
    assert "The log was cut here" in folder.log.read_text()


def test_a_log_is_cut_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of it, and how long that takes, is counted in bytes."""
    monkeypatch.setattr(events, "LONGEST_LOG", 100_000)
    journal = events.Journal(RunFolder(tmp_path))
    for _ in range(90):
        journal.log("字" * 1000)
    journal.close()
    assert 90_000 < RunFolder(tmp_path).log.stat().st_size < 110_000


def test_nothing_privileged_is_left_in_the_sandbox(make_recipe: Any, run: Any) -> None:
    test = """
import os, socket, pytest
def test_rights():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    assert os.getuid() > 1_000_000 and os.getgroups() == []
    assert int(status["NoNewPrivs"]) == 1
    assert {status[key].strip() for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert not os.path.exists("/sys")
    with pytest.raises(OSError):
        os.setuid(0)
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert not os.path.exists("/var/run/docker.sock") and not os.path.exists("/root/.ssh")
"""
    results = run(make_recipe({"test_rights": test}), trusted=False)
    assert results.verdict is Verdict.PASSED, results.stages[1].cases
