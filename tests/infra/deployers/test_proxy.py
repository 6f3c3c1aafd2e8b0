"""The server's proxy on the networks of runs, on a real Docker Swarm and with the real Traefik."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.deployers.compose.routes import lead_over
from infra.deployers.docker import proxy
from infra.deployers.docker.api import inspect
from infra.deployers.errors import DeployError
from infra.deployers.probe import Address, probe
from tests.docker import IMAGE, docker, need_swarm
from tests.e2e.traefik import traefik
from tests.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.xdist_group("proxy")]

HTTPD = ["httpd", "-f", "-p", "8080", "-h", "/www"]


class Stack:
    """A stack whose services are on a network of its own that the proxy can join, as a run's is."""

    def __init__(self, folder: Path, services: Callable[[str], dict[str, Any]], **network: Any) -> None:
        self.name = f"ccci-{uuid.uuid4().hex[:12]}"
        self.network = f"{self.name}_proxy"
        self._file = folder / f"{self.name}.yml"
        given = {"driver": "overlay", "attachable": True, **network}
        common = {"image": IMAGE, "command": HTTPD, "networks": ["proxy"], "stop_grace_period": "1ms"}
        document = {
            "version": "3.8",
            "services": {name: {**common, **service} for name, service in services(self.name).items()},
            "networks": {"proxy": given, "internal": {}},
        }
        self._file.write_text(yaml.safe_dump(document))

    def deploy(self) -> None:
        docker("stack", "deploy", "--resolve-image=never", f"--compose-file={self._file}", self.name)

    def container(self, service: str) -> str:
        """A running container of a service, as soon as there is one on the network."""

        def here() -> str:
            found = running(f"{self.name}_{service}")
            return found if found in attached(self.network) else ""

        return str(until(here))

    def remove_services(self) -> None:
        if services := docker("service", "ls", "--quiet", f"--filter=label=com.docker.stack.namespace={self.name}").split():
            docker("service", "rm", *services)
        until(lambda: not self._kill())

    def _kill(self) -> list[str]:
        found = docker("ps", "--all", "--quiet", f"--filter=label=com.docker.stack.namespace={self.name}").split()
        if found:
            docker("rm", "--force", *found, check=False)
        return found

    def networks(self) -> list[str]:
        return docker("network", "ls", "--format={{.Name}}", f"--filter=label=com.docker.stack.namespace={self.name}").split()

    def remove_networks(self) -> list[str]:
        """Ask for the removal of the networks once; which are there afterwards."""
        if found := self.networks():
            docker("network", "rm", *found, check=False)
        return self.networks()


def attached(network: str) -> dict[str, str]:
    """The containers on a network, with their addresses."""
    found = json.loads(docker("network", "inspect", "--format={{json .Containers}}", network)) or {}
    return {key: entry["IPv4Address"].partition("/")[0] for key, entry in found.items()}


def tcp(container: str, address: str, port: int) -> str:
    """What a server at that address says to a container that asks for /."""
    script = f"printf 'GET / HTTP/1.0\\r\\nHost: nobody\\r\\n\\r\\n' | busybox nc -w 3 {address} {port}"
    return docker("exec", container, "busybox", "sh", "-c", script, check=False)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Traefik's service in the Swarm."""
    need_swarm()
    with traefik(tmp_path_factory.mktemp("traefik")) as host:
        [found] = inspect("container", proxy.containers(f"http://{host}"))
        yield found["Config"]["Labels"]["com.docker.swarm.service.name"]


@pytest.fixture
def url(service: str) -> str:
    """Traefik's address, which is another one when its task was replaced."""
    return f"http://{until(lambda: _bridged(running(service)))}"


def _bridged(container: str) -> str:
    return attached("docker_gwbridge").get(container, "")


def running(service: str) -> str:
    """A running container of a service; empty when there is none."""
    listed = docker("ps", "--quiet", "--no-trunc", f"--filter=label=com.docker.swarm.service.name={service}").split()
    return listed[0] if listed else ""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    need_swarm()
    made: list[Stack] = []

    def make(services: Callable[[str], dict[str, Any]] = lambda name: {"app": {}}, **network: Any) -> Stack:
        made.append(Stack(tmp_path, services, **network))
        made[-1].deploy()
        return made[-1]

    yield make
    for one in made:
        proxy.leave(one.networks())
        one.remove_services()
        proxy.leave(one.networks())
        until(partial(lambda one: not one.remove_networks(), one))


@pytest.fixture
def plain() -> Iterator[str]:
    """A container that is no task of the Swarm, as a proxy may be."""
    need_swarm()
    name = f"ccci-test-plain-{uuid.uuid4().hex[:8]}"
    yield docker("run", "--detach", f"--name={name}", IMAGE, *HTTPD)
    docker("rm", "--force", name)


def test_the_proxy_is_known_by_its_address(url: str, stack: Callable[..., Stack]) -> None:
    [found] = proxy.containers(url)
    assert attached("proxy")[found] and attached("docker_gwbridge")[found] in url
    app = stack()
    other = until(partial(_bridged, app.container("app")))
    assert proxy.containers(f"http://{other}") == []  # not on the network proxy
    assert proxy.containers("http://127.0.0.1:9") == proxy.containers("") == []


def test_the_proxy_joins_and_leaves(url: str, stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch) -> None:
    run = stack(lambda name: {"app": {}, "db": {}})
    app, db = run.container("app"), run.container("db")
    [ident] = proxy.join([run.network], url)
    assert proxy.containers(url) == [ident]
    addresses = attached(run.network)
    assert {app, db, ident} <= set(addresses)

    # To a service's virtual address (where the kernel has them) and its tasks', and back.
    assert "404 Not Found" in tcp(app, addresses[ident], 80)
    services = inspect("service", [f"{run.name}_app", f"{run.name}_db"])
    virtual = [
        entry["Addr"].partition("/")[0] for service in services for entry in service["Endpoint"]["VirtualIPs"] if "Addr" in entry
    ]
    assert len(virtual) == 2
    for address in [addresses[app], addresses[db], *(virtual if Path("/proc/net/ip_vs").exists() else [])]:
        assert "404 Not Found" in tcp(app, address, 8080)
    # Its own is none that the Swarm gives away: of the last ones, not of the first.
    assert addresses[ident] not in virtual and int(addresses[ident].split(".")[3]) > 230

    with monkeypatch.context() as patch:
        patch.setattr(proxy, "call", None)  # it is there, so Docker is not asked for it
        assert proxy.join([run.network], url) == [ident]
    assert attached(run.network) == addresses

    proxy.leave([run.network])
    proxy.leave([run.network])
    assert set(addresses) - set(attached(run.network)) == {ident}
    assert app in attached(run.network)
    run.remove_services()
    until(lambda: not run.remove_networks())
    proxy.leave([run.network])
    with pytest.raises(DeployError, match=f"network {run.network} not found"):
        proxy.join([run.network], url)


def test_several_networks_at_once_and_two_that_join_at_once(url: str, stack: Callable[..., Stack]) -> None:
    runs = [stack(), stack()]
    for run in runs:
        run.container("app")
    networks = [run.network for run in runs]
    joined: list[list[str]] = []
    threads = [threading.Thread(target=lambda: joined.append(proxy.join(networks, url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert joined == [proxy.containers(url)] * 4
    assert all(joined[0][0] in attached(network) for network in networks)
    proxy.leave(networks)
    assert not any(joined[0][0] in attached(network) for network in networks)


def test_a_network_that_this_machine_does_not_have_yet_is_joined_later(url: str, stack: Callable[..., Stack]) -> None:
    run = stack(lambda name: {"app": {"deploy": {"replicas": 0}}})
    assert proxy.join([run.network], url) == []
    docker("service", "scale", "--detach", f"{run.name}_app=1")
    run.container("app")
    assert proxy.join([run.network], url) == proxy.containers(url) != []


def test_a_proxy_that_was_replaced_joins_again(url: str, service: str, stack: Callable[..., Stack]) -> None:
    run = stack()
    run.container("app")
    [first] = proxy.join([run.network], url)
    docker("rm", "--force", first)
    assert first not in proxy.join([run.network], url)  # nobody, or the next one already
    second = until(lambda: running(service))
    assert second != first
    now = f"http://{until(partial(_bridged, second))}"
    until(lambda: proxy.containers(now) == [second])
    assert proxy.join([run.network], now) == [second]
    proxy.leave([run.network])
    assert second not in attached(run.network)


def test_a_container_that_goes_meanwhile_is_no_error(
    url: str, stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stack()
    run.container("app")
    gone = {**inspect("container", proxy.containers(url))[0], "Id": "f" * 64}
    monkeypatch.setattr(proxy, "_proxies", lambda url, networks: [gone])
    assert proxy.join([run.network], url) == []


def test_a_proxy_that_is_no_task_joins_too_and_can_be_started_again(
    plain: str, stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stack()
    app = run.container("app")
    monkeypatch.setattr(proxy, "_proxies", lambda url, networks: inspect("container", [plain]))
    assert proxy.join([run.network], "http://x") == [plain]
    address = attached(run.network)[plain]
    assert "404 Not Found" in tcp(app, address, 8080)
    docker("stop", "--time=0", plain)
    proxy.leave([run.network])
    run.remove_services()
    until(lambda: not run.remove_networks())
    docker("start", plain)  # with the network in its settings still, Docker would refuse


def test_what_docker_refuses_is_said(plain: str, stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch) -> None:
    run = stack(attachable=False)
    run.container("app")
    monkeypatch.setattr(proxy, "_proxies", lambda url, networks: inspect("container", [plain]))
    with pytest.raises(DeployError, match=r"docker network connect: .*not manually attachable") as caught:
        proxy.join([run.network], "http://x")
    assert caught.value.kind == "tool_failed" and not caught.value.recipes_fault


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_network_that_docker_would_not_remove_any_more_is_cleared_away(
    by_hand: bool, url: str, stack: Callable[..., Stack]
) -> None:
    """The run's last container goes while the proxy is on its network: the Swarm keeps the network here for ever."""
    run = stack()
    run.container("app")
    assert proxy.join([run.network], url)
    run.remove_services()
    if by_hand:  # as with `docker stack rm`
        until(lambda: "not found" in _refused(run.network))
    time.sleep(1)
    assert run.network in run.networks()
    proxy.leave([run.network])
    until(lambda: not run.remove_networks())


def _refused(network: str) -> str:
    try:
        return docker("network", "rm", network)
    except AssertionError as error:
        return str(error)


def test_the_runs_own_containers_stay(stack: Callable[..., Stack], plain: str) -> None:
    run, other = stack(), stack()
    app, foreign = run.container("app"), other.container("app")
    docker("network", "connect", run.network, plain)
    docker("network", "connect", f"--ip={'.'.join(attached(run.network)[app].split('.')[:3])}.200", run.network, foreign)
    assert {app, plain, foreign} <= set(attached(run.network))
    proxy.leave([run.network, "ccci-nothing", other.network])
    assert app in attached(run.network) and not {plain, foreign} & set(attached(run.network))
    assert foreign in attached(other.network)


def _app(stack: str, name: str, **own: str) -> dict[str, Any]:
    """A service on two networks, of which Traefik is on one: without a label it takes any."""
    router = f"{stack}-{name}"
    labels = {
        "traefik.enable": "true",
        f"traefik.http.routers.{router}.rule": f"Host(`{router}.example.com`)",
        f"traefik.http.routers.{router}.entrypoints": "web",
        f"traefik.http.services.{router}.loadbalancer.server.port": "8080",
        **own,
    }
    command = ["sh", "-c", f"echo {router} > /www/index.html; exec {' '.join(HTTPD)}"]
    return {"command": command, "networks": ["internal", "proxy"], "deploy": {"labels": labels}}


def _answers(run: Stack, url: str, name: str) -> bool:
    """Whether Traefik leads to the service of that name."""
    router = f"{run.name}-{name}"
    answer = probe(Address(url.removeprefix("http://"), 80, proxied=True), f"{router}.example.com", timeout=20)
    return bool(answer and answer.body.strip() == router)


def test_traefik_leads_over_the_network_that_it_joined(url: str, stack: Callable[..., Stack]) -> None:
    """Whatever a recipe's own labels say, and though Traefik is told to take the network `proxy`."""
    variants = {
        "none": {},
        "docker": {"traefik.docker.network": "proxy"},
        "swarm": {"traefik.swarm.network": "proxy"},
        "twice": {"traefik.Docker.Network": "proxy", "traefik.docker.network": "proxy"},
        "both": {"traefik.docker.network": "proxy", "traefik.swarm.network": "proxy", "traefik.swarm.lbswarm": "false"},
    }

    def services(name: str) -> dict[str, Any]:
        found = {variant: _app(name, variant, **labels) for variant, labels in variants.items()}
        for service in found.values():
            lead_over(service["deploy"]["labels"], f"{name}_proxy")
        # Why that leaves one kind of label: Traefik passes over a service with both.
        both = ("traefik.docker.network", "traefik.swarm.network")
        return {**found, "unseen": _app(name, "unseen", **dict.fromkeys(both, f"{name}_proxy"))}

    run = stack(services)
    for variant in [*variants, "unseen"]:
        run.container(variant)
    assert proxy.join([run.network], url)
    for variant in variants:
        until(partial(_answers, run, url, variant))
    assert not _answers(run, url, "unseen")
    proxy.leave([run.network])
    assert not any(_answers(run, url, variant) for variant in variants)


def _fake(monkeypatch: pytest.MonkeyPatch, **things: Any) -> None:
    """A Docker with these things."""

    def found(kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
        return [thing for thing in things[kind] if {thing.get("Name"), thing.get("Id"), thing.get("ID")} & set(names)]

    monkeypatch.setattr(proxy, "inspect", found)


def _container(number: int, service: str = "", ports: Any = None, up: bool = True) -> dict[str, Any]:
    labels = {"com.docker.swarm.service.id": service} if service else None
    settings = {"Ports": ports}
    return {"Id": f"{number:064x}", "State": {"Running": up}, "Config": {"Labels": labels}, "NetworkSettings": settings}


def _network(name: str, **addresses: str) -> dict[str, Any]:
    entries = {key: {"IPv4Address": value, "IPv6Address": ""} for key, value in addresses.items()}
    return {"Name": name, "Id": f"id-{name}", "Containers": entries or None}


@pytest.mark.parametrize(
    ("url", "numbers"),
    [
        ("http://example.com", [1]),
        ("https://example.com", [2, 3]),
        ("https://example.com:8443", [1]),
        ("http://example.com:8080", []),  # UDP
        ("http://example.com:7000", []),  # another's
        ("http://172.18.0.4", [4]),  # the address alone decides
        ("http://172.18.0.4:443", [4]),
        ("http://172.18.0.5", [1]),  # the address of one that is not on the network proxy
        ("http://172.18.0.6", []),  # it is not running
        ("http://[fd00::4]:80", [1]),
        ("", []),
    ],
)
def test_the_proxy_is_known_by_a_port_that_it_publishes(url: str, numbers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    key = [f"{number:064x}" for number in range(9)]
    shared = _network("proxy", **dict.fromkeys([*key[1:5], key[6], "lb-proxy", "ep-1"], "10.0.1.2/24"))
    bridge = _network("docker_gwbridge", **{key[n]: f"172.18.0.{n}/16" for n in range(1, 7)})
    containers = [
        _container(
            1, ports={"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "80"}], "443/tcp": [{"HostPort": "8443"}], "9/tcp": None}
        ),
        _container(2, "s2", ports={}),
        _container(3, "s2"),
        _container(4, "s4", ports={"8080/udp": [{"HostPort": "8080"}]}),
        _container(5, ports={"80/tcp": [{"HostPort": "7000"}]}),
        _container(6, ports={"80/tcp": [{"HostPort": "80"}]}, up=False),
    ]
    host_mode = {"Protocol": "tcp", "PublishedPort": 80, "PublishMode": "host"}
    services = [
        {"ID": "s2", "Endpoint": {"Ports": [{"Protocol": "tcp", "PublishedPort": 443, "PublishMode": "ingress"}, host_mode]}},
        {"ID": "s4", "Endpoint": {"Ports": [{"Protocol": "udp", "PublishedPort": 8080, "PublishMode": "ingress"}]}},
    ]
    _fake(monkeypatch, network=[shared, bridge], container=containers, service=services)
    if url == "http://[fd00::4]:80":
        bridge["Containers"][key[1]]["IPv6Address"] = "fd00::4/64"
    assert proxy.containers(url) == [key[number] for number in numbers]


def test_without_the_network_proxy_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(monkeypatch, network=[_network("docker_gwbridge")], container=[])
    assert proxy.containers("http://x") == []
    _fake(monkeypatch, network=[_network("proxy"), _network("n")], container=[])
    assert proxy.containers("http://x") == proxy.join(["n"], "http://x") == []
