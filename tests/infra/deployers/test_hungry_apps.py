"""What a stranger's image can use of the machine, on a real Swarm: it meets its limits, and a neighbour's app stays healthy."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.deployers.context import Bounds
from infra.deployers.docker import disk_usage
from infra.deployers.docker.api import inspect
from infra.deployers.docker.stacks import Owned
from infra.deployers.errors import DeployError
from infra.deployers.probe import probe
from infra.deployers.swarm.ephemeral import SwarmDeployer
from tests.docker import IMAGE, docker, need_swarm
from tests.infra.deployers.compose.reading import write
from tests.infra.deployers.conftest import deployers
from tests.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.xdist_group("hungry")]

SMALL = Bounds(memory_mb=64, cpus=0.5, processes=48, log_mb=4, volumes_mb=64)
#: It does not count as up before it has met its limit, however long that takes.
STARTING = ", healthcheck: {test: [CMD, 'true'], interval: 1h}"
_NEIGHBOUR = f"""
services:
  app:
    image: {IMAGE}
    command: ["httpd", "-f", "-p", "8080", "-h", "/bin"]
    ports: ["8080:8080"]
"""


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], bool]]:
    """Another run's app, beside all of them: says whether it answers."""
    need_swarm()
    folder = tmp_path_factory.mktemp("neighbour")
    with deployers(folder) as deployer:
        app = deployer(write(folder / "recipe", _NEIGHBOUR), health_path="/busybox")
        app.deploy()
        app.settle()
        address = app.address()
        assert address is not None

        def answers() -> bool:
            answer = probe(address, path="/busybox", timeout=20)
            return answer is not None and answer.status == 200

        yield answers


def hungry(deployer: Callable[..., SwarmDeployer], folder: Path, script: str, more: str = "", **changes: Any) -> SwarmDeployer:
    text = f"services: {{app: {{image: '{IMAGE}', command: [sh, -c, {json.dumps(script)}]{more}}}}}"
    app = deployer(write(folder / "hungry", text), bounds=SMALL, trusted=False, **changes)
    app.deploy()
    return app


def test_a_fork_bomb_meets_its_limit_of_processes(deployer: Any, neighbour: Any, tmp_path: Path) -> None:
    # The first process needs no other: it stays when there may be no more, and the kernel's count with it.
    bomb = hungry(deployer, tmp_path, "b() { b | b & }; b & exec sleep 1000")
    until(lambda: bomb.owned.containers("app"), "no container")
    container = bomb.owned.containers("app")[0]
    assert container["HostConfig"]["PidsLimit"] == SMALL.processes
    for _ in range(20):
        listed = docker("top", container["Id"], "-o", "pid", check=False).splitlines()
        assert len(listed) <= SMALL.processes + 1
        time.sleep(0.1)
    words = "It tried to start more than the 48 processes that it may have."
    until(lambda: words in bomb._last_lines("app"), "no limit met")
    assert neighbour()
    assert bomb.teardown() == []


def test_a_memory_hog_is_ended_and_that_is_said(deployer: Any, neighbour: Any, tmp_path: Path) -> None:
    hog = hungry(deployer, tmp_path, "x=x; while :; do x=$$x$$x; done", STARTING, settle_seconds=600)
    with pytest.raises(DeployError) as caught:
        hog.settle()
    assert caught.value.kind == "out_of_memory" and caught.value.recipes_fault
    assert "more than its limit of 64 MB" in caught.value.message
    assert neighbour()


def test_a_tmpfs_counts_as_memory(deployer: Any, neighbour: Any, tmp_path: Path) -> None:
    more = f"{STARTING}, volumes: [{{type: tmpfs, target: /t}}]"
    hog = hungry(deployer, tmp_path, "exec dd if=/dev/zero of=/t/x bs=1M count=2000", more, settle_seconds=600)
    with pytest.raises(DeployError) as caught:
        hog.settle()
    assert caught.value.kind == "out_of_memory"
    assert neighbour()


@pytest.mark.parametrize(
    ("target", "more"),
    [
        ("/data/x", ", volumes: ['data:/data']"),
        ("/x", ""),
        ("/anonymous/x", ", volumes: ['/anonymous']"),
        ("/etc/hosts", ""),
    ],
)
def test_a_disk_flood_ends_the_run(target: str, more: str, deployer: Any, neighbour: Any, tmp_path: Path) -> None:
    script = f"dd if=/dev/zero of={target} bs=1M count=200; exec sleep 1000"
    text = f"services: {{app: {{image: '{IMAGE}', command: [sh, -c, {json.dumps(script)}]{more}}}}}\nvolumes: {{data: }}"
    flood = deployer(write(tmp_path / "hungry", text), bounds=SMALL, trusted=False)
    flood.deploy()
    until(flood.exceeded, "nobody noticed")
    assert "more than the 64 MB that a run may write on this server (CC_CI_VOLUMES_MB)" in flood.exceeded()
    assert neighbour()
    assert flood.teardown() == []


class Disk:
    """What there is of 100 GB and a million files."""

    f_frsize, f_blocks, f_files = 4096, 100 * 2**18, 1_000_000

    def __init__(self, left: int, files: int) -> None:
        self.f_bavail, self.f_favail = left // self.f_frsize, files


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (Disk(2 << 30, 900_000), ""),
        (Disk(600 << 20, 900_000), "nearly full: 600 MB left at /x"),
        (Disk(90 << 30, 49_000), "nearly out of inodes: 49000 left at /x"),
    ],
)
def test_no_run_goes_on_until_the_disk_is_full(disk: Disk, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is deleted and still open is in no folder, and a million empty ones have no bytes."""
    real, looked, ours = os.statvfs, threading.Event(), Owned("x", "x")

    def measure(owned: Owned) -> tuple[int, bool]:
        if owned is ours:  # and not the neighbour
            looked.set()
        return 0, True

    monkeypatch.setattr("os.statvfs", lambda folder: disk if str(folder) == "/x" else real(folder))
    monkeypatch.setattr(disk_usage, "_SECONDS", 0.01)
    monkeypatch.setattr(disk_usage, "get", lambda path: {"DockerRootDir": "/x"})
    monkeypatch.setattr(disk_usage, "measure", measure)
    meter = disk_usage.Meter(ours, 64 << 20)
    meter.start()
    try:
        assert looked.wait(60)
        if not words:
            assert meter.exceeded() == ""
            return
        with pytest.raises(DeployError, match=words) as caught:
            meter.exceeded()
        assert not caught.value.recipes_fault
    finally:
        meter.stop()


def test_more_files_than_can_be_looked_at_end_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(disk_usage, "_SECONDS", 0.01)
    monkeypatch.setattr(disk_usage, "_DU_SECONDS", 0.0)
    monkeypatch.setattr(disk_usage, "get", lambda path: {"DockerRootDir": str(tmp_path)})
    monkeypatch.setattr(disk_usage, "measure", lambda owned: (disk_usage._du(["/usr"]), True))
    meter = disk_usage.Meter(Owned("x", "x"), 1 << 60)
    meter.start()
    try:
        until(meter.exceeded, "nobody noticed")
        assert "so many files" in meter.exceeded()
    finally:
        meter.stop()


def test_what_a_run_has_written_is_found_with_and_without_root(
    deployer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_swarm()
    script = "dd if=/dev/zero of=/data/x bs=1M count=20; exec sleep 1000"
    text = f"services: {{app: {{image: '{IMAGE}', command: [sh, -c, {json.dumps(script)}], volumes: ['data:/data']}}}}\n"
    app = deployer(write(tmp_path / "recipe", text + "volumes: {data: }"))
    app.deploy()
    app.settle()
    until(lambda: disk_usage.measure(app.owned)[0] >= 20 << 20, "not measured")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    used, walked = disk_usage.measure(app.owned)
    assert not walked and 20_000_000 <= used < 30_000_000


def test_a_log_flood_keeps_the_last_of_it(deployer: Any, neighbour: Any, tmp_path: Path) -> None:
    flood = hungry(deployer, tmp_path, "yes $$(seq 200) | head -c 50000000; exec sleep 1000")
    flood.settle()
    [container] = flood.owned.containers("app")
    log = Path(inspect("container", [container["Id"]])[0]["LogPath"])
    if not log.parent.is_dir():
        pytest.skip("Docker's folder is not to be seen here")
    until(lambda: any(path.stat().st_size > 1 << 20 for path in log.parent.glob(f"{log.name}*")), "no log")
    assert sum(path.stat().st_size for path in log.parent.glob(f"{log.name}*")) < 6 << 20
    assert neighbour()


def test_too_many_things_are_refused_before_anything_is_there(deployer: Any, tmp_path: Path) -> None:
    need_swarm()
    text = "services:\n" + "".join(f"  s{number}: {{image: '{IMAGE}', deploy: {{replicas: 20}}}}\n" for number in range(30))
    app = deployer(write(tmp_path / "recipe", text))
    with pytest.raises(DeployError, match=r"30 services, more than the 20 .* \(CC_CI_MOST_SERVICES\)") as caught:
        app.deploy()
    assert caught.value.recipes_fault and "600 tasks" in caught.value.message
    assert app.owned.services() == []


def test_each_folder_has_its_time_to_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def run(command: list[str], *, env: Any, seconds: float) -> Any:
        given.append(seconds)
        return SimpleNamespace(out=b"7\t/a\n7\ttotal\n")

    monkeypatch.setattr(disk_usage.children, "run", run)
    assert disk_usage._du(["/a"]) == 7
    assert disk_usage._du(["/a", "/b", "/c"]) == 7
    assert given[1] == 3 * given[0]
