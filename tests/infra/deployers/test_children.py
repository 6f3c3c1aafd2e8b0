"""Children of the harness: each ends with everything it started, in time, and with its parent, however that ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.deployers.isolation import children
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]
ENV = {"PATH": os.environ["PATH"]}
#: A child, one in the background, and one that has left its group, its session and its parent.
FAMILY = "sleep 1000 & setsid sh -c 'sleep 1001 & exit' & sleep 1002; wait"


def _run(*command: str, **options: Any) -> children.Done:
    return children.run(command, env=ENV, **{"seconds": 30, **options})


def _sleepers(mark: str) -> list[psutil.Process]:
    """The processes whose environment holds this mark, but for guards."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK") == mark and process.name() == "sleep" and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def starter(request: pytest.FixtureRequest) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts a Python process that runs `FAMILY` by `children`, and waits until all of the family is there."""
    started = []

    def start(call: str) -> tuple[subprocess.Popen[str], str]:
        mark = f"{os.getpid()}-{time.monotonic_ns()}"
        program = (
            f"import os, time\nfrom infra.deployers.isolation import children\n"
            f"family = ['sh', '-c', {FAMILY!r}]\nenv = {{'PATH': os.environ['PATH'], 'MARK': {mark!r}}}\n{call}\n"
        )
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, text=True, stderr=subprocess.PIPE)
        started.append(process)
        until(lambda: len(_sleepers(mark)) == 3)
        return process, mark

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.crash
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_all_of_it_ends_with_who_started_it(number: signal.Signals, starter: Any) -> None:
    # What a shell starts in the background ignores SIGINT, these tests too.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process, mark = starter(f"{heard}children.run(family, env=env, seconds=1000)")
    process.send_signal(number)
    process.wait(240)
    until(lambda: not _sleepers(mark))


@pytest.mark.crash
def test_it_ends_with_the_process_and_not_with_the_thread_that_started_it(starter: Any) -> None:
    process, mark = starter(
        "import threading\nthread = threading.Thread(target=lambda: children.start(family, env=env))\n"
        "thread.start()\nthread.join()\ntime.sleep(1000)"
    )
    time.sleep(0.5)
    assert len(_sleepers(mark)) == 3
    process.kill()
    until(lambda: not _sleepers(mark))


@pytest.mark.crash
def test_the_time_counts_though_who_started_it_hangs(starter: Any) -> None:
    process, mark = starter("children.start(family, env=env, seconds=8)\ntime.sleep(1000)")
    process.send_signal(signal.SIGSTOP)
    until(lambda: not _sleepers(mark))


@pytest.mark.crash
def test_a_guard_that_is_killed_takes_the_program_with_it() -> None:
    process = children.start(["sleep", "1000"], env=ENV)
    child = until(lambda: psutil.Process(process.pid).children())[0]
    until(lambda: child.name() == "sleep")
    process.kill()
    process.wait()
    psutil.wait_procs([child], timeout=240)
    assert not child.is_running()


def test_who_is_asked_to_end_may_take_its_leave() -> None:
    leave = "trap 'echo leaving; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    for grace, code, said in ((20.0, 7, b"leaving\n"), (0.0, -signal.SIGKILL, b"")):
        process = children.start(["sh", "-c", leave], env=ENV, grace=grace, stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline() == b"ready\n"
        children.end(process, 30)
        assert (process.returncode, process.stdout.read()) == (code, said)
        process.stdout.close()


def test_what_came_out_and_how_it_ended() -> None:
    assert _run("sh", "-c", "echo out; echo err >&2; exit 3") == children.Done(3, b"out\n", b"err\n")
    assert _run("sh", "-c", "kill -SEGV $$").code == -signal.SIGSEGV
    assert _run("cat", given=b"x" * 3_000_000).out == b"x" * 3_000_000
    assert _run("true", given=b"x" * 3_000_000).code == 0  # it does not read it
    assert _run("sh", "-c", "echo a; echo b >&2", stderr=subprocess.STDOUT).out == b"a\nb\n"
    assert _run("sh", "-c", "seq 100000", last=12).out == b"99999\n100000\n"[-12:]
    with pytest.raises(FileNotFoundError):
        _run("no-such-program")


def test_it_has_this_environment_and_no_other() -> None:
    assert children.run(["/usr/bin/env"], env={"A": "b\nc", "EMPTY": ""}, seconds=30).out == b"A=b\nc\nEMPTY=\n"
    assert children.run(["/usr/bin/env"], env={}, seconds=30).out == b""


def test_it_holds_no_descriptor_of_ours_and_bounds_of_its_own(tmp_path: Path) -> None:
    limits = "ulimit -c; ulimit -d; ulimit -n; ls /proc/self/fd"
    core, data, files, *handles = _run("sh", "-c", limits, memory_mb=100).out.decode().split()
    assert (core, data) == ("0", str(100 << 10))
    assert int(files) <= 4096
    assert handles == ["0", "1", "2", "3"]  # the last is of ls
    hog = "x = bytearray(1 << 30)"
    assert b"MemoryError" in _run(sys.executable, "-c", hog, memory_mb=200).err
    write = ["dd", "if=/dev/zero", f"of={tmp_path}/file", "bs=1M", "count=3"]
    assert _run(*write, file_mb=1).code == -signal.SIGXFSZ
    assert (tmp_path / "file").stat().st_size == 1 << 20


def test_too_long_and_too_much_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(children.TooLong, match=r"it did not finish within 0\.5 s"):
        _run("sh", "-c", FAMILY, seconds=0.5)
    with pytest.raises(children.TooMuch, match="it printed more than 1 MB"):
        _run("yes", most=1 << 20)
    assert time.monotonic() - began < 200


def test_whoever_waits_is_heard() -> None:
    class Stop(Exception):
        pass

    def check() -> None:
        if time.monotonic() > began + 0.3:
            raise Stop

    began = time.monotonic()
    with pytest.raises(Stop):
        _run("sleep", "1000", check=check)
    assert time.monotonic() - began < 200


#: How a process can be started in Python.
_STARTING = re.compile(
    r"\b(?:subprocess\.(?:Popen|run|call|check_call|check_output|getoutput|getstatusoutput)"
    r"|os\.(?:fork|forkpty|system|popen|spawn\w+|posix_spawnp?|exec\w+)\b"
    r"|(?:asyncio\.)?create_subprocess_\w+|pty\.\w+|multiprocessing)(?:\(\))?"
)


def _starts(path: Path) -> list[str]:
    """The calls that start a process, as they are written. (`Popen[…]` in an annotation starts none.)"""
    text = re.sub(r"subprocess\.Popen\[", "", path.read_text())
    assert not re.search(r"from (?:subprocess|os|pty) import", text)
    return _STARTING.findall(text)


def test_nothing_else_starts_a_process() -> None:
    """Programs of `guest/` run within: they are the children. `daemonize` forks the harness itself."""
    found = []
    for folder in ("runs/harness", "infra/deployers"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "guest" not in path.relative_to(ROOT).parts:
                found += [f"{path.relative_to(ROOT)}: {line}" for line in _starts(path)]
    assert found == [
        "runs/harness/daemonize.py: os.fork()",
        "runs/harness/daemonize.py: os.fork()",
        "infra/deployers/isolation/children.py: subprocess.Popen",
    ]
