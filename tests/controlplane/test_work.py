"""`cc-ci work` as real processes, killed for real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from controlplane.config import MARK
from tests.controlplane.trees import Tree, tree
from tests.waiting import PATIENCE, until

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("work")]

# As the harness does it: two forks and a session of its own.
DETACH = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(3600)
"""

# It holds SQLite's only lock for writing until it is ended.
LOCK = """
import pathlib, sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=300)
database.execute("BEGIN IMMEDIATE")
pathlib.Path(sys.argv[2]).touch()
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    with tree(tmp_path_factory.mktemp("work")) as made:
        made.start()
        yield made


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Tree]:
    with tree(tmp_path) as made:
        yield made


def get(url: str) -> int:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return int(answer.status)


def detached(running: Tree) -> psutil.Process:
    """Have a task start what outlives it."""
    note = running.folder / f"detached-{time.monotonic_ns()}"
    running.put(sys.executable, "-c", DETACH, str(note))
    return psutil.Process(int(until(lambda: note.exists() and note.read_text(), why="the task did not start it")))


def test_serves_the_pages(running: Tree) -> None:
    assert get(f"{running.address}/admin/login/") == 200


def test_main_process_of_the_queue_killed(running: Tree) -> None:
    old, *parts = running.child("queue"), *running.cluster()
    old.kill()
    until(lambda: not any(process.is_running() for process in parts), why="orphans go on")
    running.works_again()
    assert running.child("queue").pid != old.pid


def test_all_workers_killed_at_one_moment(running: Tree) -> None:
    for process in running.cluster()[:2]:
        process.kill()
    running.works_again()


def test_whole_cluster_killed_at_one_moment(running: Tree) -> None:
    for process in running.cluster():
        process.kill()
    running.works_again()


def test_one_idle_worker_killed(running: Tree) -> None:
    running.cluster()[0].kill()
    running.works_again()


def test_ticker_killed(running: Tree) -> None:
    running.child("ticker").kill()
    running.works_again()


def test_web_server_killed(running: Tree) -> None:
    old = running.child("web")
    old.kill()
    until(lambda: not old.is_running())
    # A request that the killed one had taken is lost; those that come later wait for the new one.
    assert get(f"{running.address}/admin/login/") == 200


def test_a_task_that_was_cut_off_comes_back_at_once(running: Tree) -> None:
    trace = running.folder / "trace"
    running.put("sh", "-c", f"echo begun >> {trace}; sleep 1.5; echo done >> {trace}")
    until(trace.exists)
    running.child("queue").kill()
    until(lambda: "done" in trace.read_text(), why="lost until CC_CI_QUEUE_RETRY")


def test_second_one_is_refused(running: Tree) -> None:
    second = running.command("work")
    assert second.returncode == 2
    assert f"another `cc-ci work` (process {running.process.pid})" in second.stderr  # type: ignore[union-attr]


def test_second_one_with_another_host_name(running: Tree) -> None:
    if not running.database.server:
        refused = running.command("work", CC_CI_HOST="other")
        assert refused.returncode == 2
        assert "PostgreSQL" in refused.stderr
        return
    running.environment["CC_CI_HOST"] = "other"
    second = Tree.__new__(Tree)
    second.__dict__.update(running.__dict__, log=running.folder / "other.log", process=None)
    try:
        second.start()
        assert second.stop() == 0
    finally:
        running.environment["CC_CI_HOST"] = "testhost"


def test_what_a_run_started_outlives_a_killed_queue_and_a_killed_supervisor(running: Tree) -> None:
    harness = detached(running)
    try:
        running.child("queue").kill()
        running.works_again()
        assert harness.is_running()
        running.kill_supervisor()
        until(lambda: not running.all(), why="part of the tree goes on")
        assert harness.is_running()
        running.start()
        assert harness.is_running()
        running.works_again()
    finally:
        harness.kill()


def test_stops_cleanly_and_lets_a_running_task_finish(running: Tree) -> None:
    trace = running.folder / "finished"
    running.put("sh", "-c", f"touch {trace}.begun; sleep 1.5; touch {trace}")
    until(Path(f"{trace}.begun").exists)
    assert running.stop() == 0
    assert trace.exists()
    assert not running.all()
    assert running.said().rstrip().endswith("Stopped.")


def test_left_overs_of_an_earlier_one_are_ended(idle: Tree) -> None:
    mark = {**idle.environment, MARK: f"{os.getsid(0)}:{idle.lock}"}
    orphan = subprocess.Popen(["sleep", "3600"], env=mark)
    harness = subprocess.Popen(["sleep", "3600"], env=mark, start_new_session=True)
    try:
        idle.start()
        assert orphan.wait(PATIENCE) == -signal.SIGKILL
        assert harness.poll() is None
        assert "Killed 1 processes" in idle.said()
    finally:
        orphan.kill()
        harness.kill()
        harness.wait()


@pytest.mark.parametrize("locked", [False, True])
def test_a_queue_that_stands_still_is_restarted(idle: Tree, locked: bool) -> None:
    if locked and idle.database.server:
        pytest.skip("about SQLite")
    idle.start()
    still = idle.cluster()
    if locked:
        idle.put(sys.executable, "-c", LOCK, str(idle.database.file), f"{idle.folder}/locked")
        until(Path(f"{idle.folder}/locked").exists)
    for process in still:
        process.suspend()
    until(lambda: not any(process.is_running() for process in still), why="the queue that stands still is there yet")
    idle.works_again()
    # On a very busy machine a queue that works is late enough for it, too.
    assert idle.database.run("SELECT restarts > 0 FROM controlplane_host") == [(True,)]
    assert "restarting the stalled queue" in idle.said()
    # Twice asked, it waits for nothing.
    idle.put("sh", "-c", f"touch {idle.folder}/begun; sleep 3600")
    until(Path(f"{idle.folder}/begun").exists)
    assert idle.process
    idle.process.send_signal(signal.SIGINT)
    until(lambda: "Stopping" in idle.said())
    idle.process.send_signal(signal.SIGINT)
    assert idle.process.wait(PATIENCE) == 0, "it did not wait for the task, which takes an hour"
    until(lambda: not idle.all())


def test_says_what_to_type_when_migrations_are_missing(tmp_path: Path) -> None:
    bare = Tree(tmp_path)
    try:
        done = bare.command("work")
    finally:
        bare.close()
    assert done.returncode == 2
    assert "Run: cc-ci migrate" in done.stderr


def test_says_so_when_the_address_is_taken(idle: Tree) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = idle.command("work", "--web", "--bind", address)
    assert done.returncode == 2
    assert f"cannot listen on {address}: Address already in use" in done.stderr
    assert idle.command("work", "--web", "--bind", "nonsense").returncode == 64
