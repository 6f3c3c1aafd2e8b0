"""Names in Docker's DNS: no stack answers to another's, whatever its services are called."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.deployers.docker.api import inspect
from infra.deployers.swarm.ephemeral import SwarmDeployer
from tests.docker import IMAGE, docker, need_swarm
from tests.e2e.traefik import traefik

pytestmark = [pytest.mark.docker, pytest.mark.xdist_group("proxy")]

NAMES = ("app", "db", "keycloak", "auth.example.com")

_RECIPE = """
version: "3.8"
services:
  app:
    image: {image}
    command: ["httpd", "-f", "-p", "8080", "-h", "/www"]
    networks: [{networks}]
    {app}
    deploy:
      labels:
        - "traefik.enable=true"
        - "traefik.http.services.${{STACK_NAME}}.loadbalancer.server.port=8080"
        - "traefik.http.routers.${{STACK_NAME}}.rule=Host(`${{DOMAIN}}`)"
        - "traefik.http.routers.${{STACK_NAME}}.entrypoints=web"
  db:
    image: {image}
    networks: [{networks}]
    {db}
  keycloak:
    image: {image}
    networks: [{networks}]
    {keycloak}
networks:
  proxy:
    external: true
  internal:
"""

_LONG_LIVED = """
version: "3.8"
services:
  keycloak:
    image: {image}
    command: ["httpd", "-f", "-p", "8080", "-h", "/www"]
    networks:
      proxy:
        aliases: [auth.example.com]
    stop_grace_period: 1ms
networks:
  proxy:
    external: true
"""


@dataclass(frozen=True)
class Place:
    """A stack: where its names can be asked for, and which addresses are its own."""

    stack: str
    containers: dict[str, str]  #: by service
    addresses: frozenset[str]

    def ask(self, name: str, service: str = "") -> set[str]:
        """What Docker's DNS gives for a name inside a container of the stack."""
        container = self.containers[service or next(iter(self.containers))]
        said = docker("exec", container, "busybox", "nslookup", name, "127.0.0.11", check=False)
        # The first address is the server's, with its port.
        return set(re.findall(r"^Address:\s+([0-9.]+)$", said.partition("Name:")[2], re.MULTILINE))


def place(stack: str) -> Place:
    label = f"--filter=label=com.docker.stack.namespace={stack}"
    services = inspect("service", docker("service", "ls", "--quiet", label).split())
    containers = inspect("container", docker("ps", "--quiet", "--no-trunc", label).split())
    virtual = {entry["Addr"] for service in services for entry in service["Endpoint"].get("VirtualIPs") or [] if "Addr" in entry}
    networks = [entry for container in containers for entry in container["NetworkSettings"]["Networks"].values()]
    addresses = {text.partition("/")[0] for text in virtual} | {entry["IPAddress"] for entry in networks}
    named = {str(one["Config"]["Labels"]["com.docker.swarm.service.name"]): str(one["Id"]) for one in containers}
    return Place(stack, {name.removeprefix(f"{stack}_"): ident for name, ident in named.items()}, frozenset(addresses - {""}))


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Place]]]:
    """Traefik's address, and long-lived stacks on the network `proxy`, with names before and after those of runs."""
    need_swarm()
    tmp = tmp_path_factory.mktemp("lived")
    stacks = [f"{letter}-test-names-{uuid.uuid4().hex[:8]}" for letter in "az"]
    with traefik(tmp) as host:
        (tmp / "compose.yml").write_text(_LONG_LIVED.format(image=IMAGE))
        try:
            for stack in stacks:
                docker("stack", "deploy", "--resolve-image=never", f"--compose-file={tmp / 'compose.yml'}", stack)
            until = time.monotonic() + 240
            while not all(len(place(stack).addresses) >= 2 for stack in stacks):
                assert time.monotonic() < until, "the long-lived stacks did not come up"
                time.sleep(0.1)
            yield host, [place(stack) for stack in stacks]
        finally:
            for stack in stacks:
                docker("stack", "rm", stack)
            until = time.monotonic() + 240
            while time.monotonic() < until and (left := [i for stack in stacks for i in place(stack).containers.values()]):
                docker("rm", "--force", *left, check=False)
                time.sleep(0.1)


@pytest.fixture
def run(lived: tuple[str, list[Place]], deployer: Callable[..., SwarmDeployer], tmp_path: Path) -> Callable[..., Place]:
    """Deploys a recipe as a run behind Traefik, and waits until it answers through it."""

    def make(networks: str, **hostnames: str) -> Place:
        checkout = tmp_path / f"recipe-{uuid.uuid4().hex[:8]}"
        checkout.mkdir()
        lines = {service: f"hostname: {hostnames[service]}" if service in hostnames else "" for service in NAMES[:3]}
        (checkout / "compose.yml").write_text(_RECIPE.format(image=IMAGE, networks=networks, **lines))
        app = deployer(checkout, proxy_url=f"http://{lived[0]}")
        app.deploy()
        assert app.settle().settled
        return place(app.stack)

    return make


def test_no_stack_answers_to_anothers_names(lived: tuple[str, list[Place]], run: Callable[..., Place]) -> None:
    """Two runs, each asked by the other, so that either is first in the alphabet once; and the long-lived ones around them."""
    first, second = run("proxy"), run("proxy, internal")
    places = [first, second, *lived[1]]
    assert len({one.stack for one in places}) == 4
    for one in (first, second):
        assert set(one.containers) == {"app", "db", "keycloak"} and len(one.addresses) >= 6
        others = [other for other in places if other is not one]
        assert not one.addresses & frozenset().union(*(other.addresses for other in others))
        for service in one.containers:
            for name in NAMES:
                found = one.ask(name, service)
                assert found <= one.addresses, f"{name} in {service} of {one.stack} is {found}"
            assert one.ask(f"{one.stack}_db", service)  # its full name is its own, and is known
            for other in others:
                assert one.ask(f"{other.stack}_keycloak", service) == set()
    # Where a recipe has a network of its own, its services find each other by their plain names.
    for name in NAMES[:3]:
        assert second.ask(name)
    # The long-lived ones share a network, and find each other there, but no run.
    together = frozenset().union(*(one.addresses for one in lived[1]))
    for one in lived[1]:
        assert one.ask("keycloak") and one.ask("keycloak") <= together
        assert one.ask("db") == one.ask(f"{first.stack}_app") == set()


def test_no_run_answers_the_proxy_to_a_name_of_the_servers_own(run: Callable[..., Place]) -> None:
    """The proxy is on a network of each run: a stranger's service must not be taken for one of the server's there."""
    place = run("proxy, internal", app="${STACK_NAME}-app", db="auth.example.com")
    beside = docker("run", "--detach", f"--network={_joined(place)}", IMAGE)
    try:
        asked = Place("", {"": beside}, frozenset())
        for name in (f"{place.stack}_app", f"{place.stack}-app"):
            assert asked.ask(name) and asked.ask(name) <= place.addresses
        assert {name: found for name in NAMES if (found := asked.ask(name))} == {}
    finally:
        docker("rm", "--force", beside)


def test_a_hostname_is_such_a_name_as_well(run: Callable[..., Place]) -> None:
    """Docker's DNS knows a container by its `hostname`, on each of its networks."""
    place = run("proxy, internal", app="keycloak")
    beside = docker("run", "--detach", f"--network={_joined(place)}", IMAGE)
    try:
        assert Place("", {"": beside}, frozenset()).ask("keycloak") == set()
    finally:
        docker("rm", "--force", beside)


def _joined(place: Place) -> str:
    """The network of a run that the proxy is on: one that holds a container which is not the run's."""
    label = f"--filter=label=com.docker.stack.namespace={place.stack}"
    networks = inspect("network", docker("network", "ls", "--quiet", label).split())
    foreign = {
        str(network["Name"]): {key for key in network.get("Containers") or {} if re.fullmatch("[0-9a-f]{64}", key)}
        - set(place.containers.values())
        for network in networks
    }
    [joined] = [name for name, containers in foreign.items() if containers]
    return joined
