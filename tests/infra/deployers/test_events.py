"""Docker's events of one stack: what is told, what wakes, and that nothing follows them for longer than the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.deployers.docker import events
from infra.deployers.docker.events import EventFollower, concerns, line
from tests.docker import docker, need_swarm
from tests.waiting import until

STACK = "ccci-06dacb6b1c78"
LABELS = {"com.docker.stack.namespace": STACK, "com.docker.swarm.service.name": f"{STACK}_app"}


def event(kind: str, action: str, name: str = f"{STACK}_app", scope: str = "swarm", **attributes: str) -> dict[str, Any]:
    """As `docker events --format '{{json .}}'` of Docker 20.10 gives them."""
    actor = {"ID": "vg90n2on304xgejs0xedsbj6q", "Attributes": {"name": name, **attributes}}
    return {"Type": kind, "Action": action, "Actor": actor, "scope": scope, "time": 1795512428, "timeNano": 1795512428515543268}


def container(action: str, **attributes: str) -> dict[str, Any]:
    return event("container", action, f"{STACK}_app.1.505b8k31hjo4kh3d5w6jtu7ny", "local", **{**LABELS, **attributes})


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (event("service", "create"), "09:27:08 service app create"),
        (event("service", "update"), "09:27:08 service app update"),
        (
            event("service", "update", **{"updatestate.old": "updating", "updatestate.new": "completed"}),
            "09:27:08 service app update: updating -> completed",
        ),
        (
            event("service", "update", **{"replicas.old": "1", "replicas.new": "0"}),
            "09:27:08 service app update: 1 -> 0 replicas",
        ),
        (event("secret", "create", f"{STACK}_key_v1"), "09:27:08 secret key_v1 create"),
        (event("network", "create", f"{STACK}_internal"), "09:27:08 network internal create"),
        (event("network", "create", f"{STACK}_internal", "local", type="overlay"), ""),
        (container("create"), "09:27:08 container app.1 create"),
        (container("die", exitCode="137"), "09:27:08 container app.1 die: exit code 137"),
        (container("kill", signal="9"), "09:27:08 container app.1 kill: signal 9"),
        (container("health_status: unhealthy"), "09:27:08 container app.1 health_status: unhealthy"),
        (container("exec_start: wget -q -O /dev/null http://127.0.0.1:8080/"), ""),
        (event("node", "update", "vm"), ""),
    ],
)
def test_an_event_is_a_line(heard: dict[str, Any], expected: str) -> None:
    assert line(heard, STACK) == expected


def test_only_the_stacks_own_concern_us() -> None:
    assert concerns(container("start"), STACK)
    assert concerns(event("volume", "create") | {"Actor": {"ID": f"{STACK}_data", "Attributes": {"driver": "local"}}}, STACK)
    assert not concerns(event("service", "create", "ccci-06dacb6b1c789_app"), STACK)
    assert not concerns(event("node", "update", "vm"), STACK)
    assert not concerns(event("container", "start", f"{STACK}_app.1.x", "local"), STACK)  # a name anybody may give


def test_what_is_no_event_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "docker"  # stands in for a daemon that writes rubbish, which a real one cannot be made to
    fake.write_text('#!/bin/sh\necho nonsense; echo "[]"; echo "{}"; echo \'{"Type":"container","Action":1,"Actor":null}\'\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    watcher = EventFollower(STACK)
    watcher.start()
    assert watcher._thread
    watcher._thread.join(240)
    assert not watcher._thread.is_alive()
    assert list(watcher.lines()) == []
    assert not watcher.wait(0)


@pytest.mark.docker
def test_a_watcher_wakes_up_and_ends_with_its_stop() -> None:
    need_swarm()
    name = f"cc-ci-events-{os.getpid()}"
    watcher = EventFollower(name)
    watcher.start()

    def told(what: str) -> bool:
        return any(what in text for text in watcher.lines())

    try:
        docker("run", "--detach", f"--label=com.docker.stack.namespace={name}", f"--name={name}", "cc-ci-test/busybox:1", "true")
        assert watcher.wait(240)
        until(lambda: told("die"))
    finally:
        docker("rm", "--force", name)
    until(lambda: told("destroy"))
    process = watcher._process
    assert process and process.poll() is None
    watcher.stop()
    assert process.poll() is not None
    texts = [text.split(" ", 1)[1] for text in watcher.lines()]
    assert texts[:3] == [f"container {name} create", f"container {name} start", f"container {name} die: exit code 0"]
    watcher.note("a failure that docker has no event for")
    assert watcher.lines()[-1].endswith(" a failure that docker has no event for")


@pytest.mark.docker
def test_the_stream_dies_with_a_harness_that_is_killed() -> None:
    need_swarm()
    program = (
        "import time\nfrom infra.deployers.docker.events import EventFollower\n"
        "EventFollower('x').start()\nprint(1, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as harness:
        assert harness.stdout and harness.stdout.readline()
        children: list[psutil.Process] = []
        until = time.monotonic() + 240
        while not children and time.monotonic() < until:
            time.sleep(0.02)
            children = psutil.Process(harness.pid).children()
        harness.send_signal(signal.SIGKILL)
    assert children
    gone, alive = psutil.wait_procs(children, timeout=240)
    assert gone and not alive


def test_what_is_kept_is_bounded() -> None:
    watcher = EventFollower("x")
    for number in range(events._KEPT + 5):
        watcher.note(str(number))
    assert len(watcher.lines()) == events._KEPT
    assert watcher.lines()[0].endswith(" 5")


@pytest.mark.docker
def test_a_wait_is_cancelled_within_a_moment(deployer: Callable[..., Any]) -> None:
    need_swarm()
    stop_at: list[float] = []

    def check() -> None:
        if stop_at and time.monotonic() > stop_at[0]:
            raise InterruptedError

    app = deployer("never-healthy", check=check)
    app.deploy()
    stop_at.append(time.monotonic() + 1)
    with pytest.raises(InterruptedError):
        app.settle()
    assert time.monotonic() - stop_at[0] < 30
