"""Published ports: which ones a run gets, and that two runs of one recipe never fight for one."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.deployers.compose import ports
from infra.deployers.compose.ports import Leases, Port
from infra.deployers.context import Context
from infra.deployers.errors import DeployError
from infra.deployers.swarm import ephemeral
from tests.docker import need_swarm
from tests.infra.deployers.compose.reading import load, write

Make = Callable[..., Any]


def test_ports_are_read_as_docker_writes_them_out(tmp_path: Path) -> None:
    listed = ["22", "2222:22", "127.0.0.1:53:53/udp", "5000-5001:6000-6001", "{target: 80, published: 8080, mode: host}"]
    read = load(write(tmp_path, f"services: {{app: {{image: x, ports: [{', '.join(listed)}]}}}}"))
    assert ports.read(read.services["app"]["ports"]) == [
        Port(22),
        Port(22, 2222),
        Port(53, 53, "udp"),
        Port(6000, 5000),
        Port(6001, 5001),
        Port(80, 8080, "tcp", "host"),
    ]


def written(*entries: tuple[int, int, str, str]) -> dict[str, Any]:
    keys = ("published", "target", "protocol", "mode")
    return {"ports": [dict(zip(keys, entry, strict=True)) for entry in entries]}


def test_the_published_number_is_dropped_unless_it_is_exclusive() -> None:
    services = {
        "app": written(
            (80, 8080, "tcp", "ingress"), (2222, 22, "tcp", "ingress"), (2222, 22, "tcp", "ingress"), (2223, 22, "tcp", "host")
        ),
        "mail": written((25, 25, "tcp", "ingress"), (25, 25, "udp", "ingress")),
        "db": {},
    }
    assert ports.plan(services, ("app", 8080), {25}) == {
        "app": [Port(22), Port(22, mode="host")],
        "mail": [Port(25, 25), Port(25, 25, "udp")],
    }
    assert ports.plan({"app": written((80, 8080, "tcp", "ingress"))}, ("app", 8080), {80}) == {"app": [Port(8080, 80)]}
    assert Port(22).entry() == {"target": 22, "protocol": "tcp", "mode": "ingress"}
    assert Port(25, 25).entry()["published"] == 25


def context(folder: Path, **changes: Any) -> Context:
    return Context("0" * 32, "test", "x", folder, folder, locks=folder / "locks", **changes)


def test_a_leased_port_is_waited_for_and_that_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    checks = iter(range(3))
    first = Leases(context(tmp_path))
    first.take([25, 143])

    def check() -> None:
        if next(checks) == 2:
            first.release()

    second = Leases(context(tmp_path, report=said.append, check=check))
    second.take([25])
    assert said == ["Waiting for port 25, which another run is using"]
    second.take([25])  # one's own is no other's
    second.release()
    first.take([25])
    first.release()


def test_a_cancelled_wait_holds_nothing(tmp_path: Path) -> None:
    def check() -> None:
        raise InterruptedError

    first, second = Leases(context(tmp_path)), Leases(context(tmp_path, check=check))
    first.take([143])
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(InterruptedError):
        second.take([143, 25])
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1  # 25 is held until the teardown
    second.release()
    first.release()


def test_without_a_folder_for_locks_nothing_is_leased(tmp_path: Path) -> None:
    lone = context(tmp_path)
    lone.locks = None
    Leases(lone).take([25])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Two ports that are free now, for the recipe to ask for. Its service stays up: nobody has to watch it for long."""
    monkeypatch.setattr(ephemeral, "_QUIET_SECONDS", 0.2)
    with socket.socket() as one, socket.socket() as two:
        one.bind(("", 0))
        two.bind(("", 0))
        found = {"SSH_PORT": str(one.getsockname()[1]), "GIT_PORT": str(two.getsockname()[1])}
    yield found


@pytest.mark.docker
def test_two_runs_of_a_recipe_get_ports_of_their_own(deployer: Make, numbers: dict[str, str]) -> None:
    need_swarm()
    runs = [deployer("ports-ssh", env=numbers) for _ in range(2)]
    for run in runs:
        run.deploy()
    states = [run.settle() for run in runs]
    for state in states:
        assert set(state.ports) == {"app:22/tcp", "app:2222/tcp"}
        with urllib.request.urlopen(f"http://127.0.0.1:{state.ports['app:2222/tcp']}/hostname", timeout=240) as answer:
            assert answer.status == 200
    given = [port for state in states for port in state.ports.values()]
    assert len(set(given)) == 4
    assert not set(given) & {int(number) for number in numbers.values()}
    assert runs[0].state().ports == states[0].ports


@pytest.mark.docker
def test_runs_that_need_one_port_for_themselves_run_one_after_the_other(
    deployer: Make, numbers: dict[str, str], tmp_path: Path
) -> None:
    need_swarm()
    said: list[str] = []
    wanted = [int(number) for number in numbers.values()]
    first, second = (
        deployer("ports-ssh", env=numbers, exclusive_ports=wanted, locks=tmp_path / "locks", report=report)
        for report in (lambda text: None, said.append)
    )
    first.deploy()
    assert sorted(first.settle().ports.values()) == sorted(wanted)
    behind = threading.Thread(target=second.deploy)
    behind.start()
    until = time.monotonic() + 240
    while not said and time.monotonic() < until:
        time.sleep(0.02)
    assert said == [f"Waiting for port {min(wanted)}, which another run is using"]
    assert behind.is_alive()
    assert first.teardown() == []
    behind.join(240)
    assert sorted(second.settle().ports.values()) == sorted(wanted)


@pytest.mark.docker
def test_a_port_that_something_else_has_is_named(deployer: Make, numbers: dict[str, str]) -> None:
    need_swarm()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("", int(numbers["GIT_PORT"])))
        taken.listen()
        run = deployer("ports-ssh", env=numbers, exclusive_ports=[int(numbers["GIT_PORT"])])
        run.deploy()
        with pytest.raises(DeployError, match="A port of app is already in use on this host") as caught:
            run.settle()
    assert caught.value.kind == "port_taken"
    assert numbers["GIT_PORT"] in caught.value.message
    assert not caught.value.recipes_fault


@pytest.mark.docker
def test_an_ingress_port_that_another_service_has_is_named(deployer: Make, numbers: dict[str, str]) -> None:
    need_swarm()
    wanted = [int(numbers["SSH_PORT"])]
    first, second = (deployer("ports-ssh", env=numbers, exclusive_ports=wanted) for _ in range(2))
    first.deploy()
    with pytest.raises(DeployError, match=f"A published port is already in use: .*{wanted[0]}") as caught:
        second.deploy()
    assert caught.value.kind == "port_taken"
