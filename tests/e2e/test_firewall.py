"""A hostile image on a real Swarm tries to reach its surroundings, before and after `cc-ci firewall --apply`.

The Swarm is a second Docker in a network of its own, which is all of "this machine" here: its rules, ports and addresses are
nobody else's. Behind one cable of it is another network with all the rest: a private range, metadata, and the internet.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command

from controlplane.cli import Exit
from controlplane.registry import Finding
from infra.deployers.context import Context
from infra.deployers.docker import egress
from infra.deployers.probe import probe
from infra.deployers.swarm.ephemeral import SwarmDeployer
from infra.firewall import check, desired, nft
from infra.firewall import probe as tries
from infra.firewall.rules import Rules
from tests.docker import IMAGE, docker
from tests.e2e.second_docker import SecondDocker, need_second_docker
from tests.networks import Listeners, Network, ip, need_networks, within
from tests.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.django_db, pytest.mark.xdist_group("firewall")]

PROJECT = Path(__file__).resolve().parents[2]
GATEWAY, METADATA, PRIVATE, INTERNET = "192.168.66.1", "169.254.169.254", "10.66.0.5", "203.0.113.7"
ACCOMPLICE = "198.51.100.9"  #: on the internet, where nobody answers here
COMPOSE = f"""\
version: "3.8"
services:
  app:
    image: {IMAGE}
    command: ["httpd", "-f", "-p", "8080", "-h", "/www"]
    hostname: front
    deploy:
      labels: ["traefik.http.services.${{STACK_NAME}}.loadbalancer.server.port=8080"]
  db:
    image: {IMAGE}
    command: ["nc", "-ll", "-p", "5432", "-e", "/bin/echo", "hello"]
    hostname: rows
    networks: [default, backend]
    deploy: {{endpoint_mode: dnsrr}}
  shy:
    image: {IMAGE}
    command: ["sleep", "1000000"]
    networks: [backend]
networks:
  backend:
    internal: true
"""


@dataclass
class Server:
    """A machine with a Swarm, in a network of its own."""

    docker: SecondDocker
    outside: Network  #: what is around it
    folder: Path

    @property
    def pid(self) -> int:
        return int(self.docker.enter[1].split("/")[2])

    def firewall(self, *words: str) -> tuple[int, str]:
        """`cc-ci firewall` there: its exit code, and what it says."""
        out = io.StringIO()
        with within(self.pid):
            try:
                call_command("firewall", *words, stdout=out, stderr=out)
            except Exit as stop:
                return int(stop.code or 0), out.getvalue()
        return 0, out.getvalue()

    def typed(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The same as a person has it, in a process of its own. It finds no database."""
        env = {**os.environ, "DJANGO_SETTINGS_MODULE": "controlplane.settings", "CC_CI_DATA_DIR": str(self.folder)}
        command = [*self.docker.enter, sys.executable, "manage.py", "firewall", *words]
        return subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)

    def rules(self) -> str:
        """All rules of the machine, whoever made them."""
        with within(self.pid):
            return subprocess.run(["nft", "-s", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


class Run:
    """A deployed run of a stranger's recipe."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        recipe, work = folder / "recipe", folder / "work"
        recipe.mkdir(parents=True)
        work.mkdir()
        (recipe / "compose.yml").write_text(COMPOSE)
        (recipe / ".env.sample").write_text("DOMAIN=app.example.com\n")
        run_id = uuid.uuid4().hex
        given = {"domain": "app.example.com", "health_status": [200, 404], **changes}
        self.deployer = SwarmDeployer(Context(run_id, "test-firewall", "x", recipe, work, **given))
        self.deployer.deploy()
        self.deployer.settle()

    def container(self, service: str = "app") -> str:
        return self.deployer.owned.container(service)

    def address(self, service: str = "app") -> str:
        """On the bridge by which it leaves."""
        there = json.loads(docker("network", "inspect", egress.network(self.deployer.stack)))[0]["Containers"]
        return str(there[self.container(service)]["IPv4Address"].partition("/")[0])

    def reaches(self, address: str, port: int, service: str = "app") -> bool:
        return reaches(self.container(service), address, port)

    def answers(self) -> bool:
        """The harness, which is outside."""
        address = self.deployer.address()
        return bool(address and probe(address, "app.example.com"))


def reaches(container: str, address: str, port: int) -> bool:
    return docker("exec", container, "nc", "-w", "2", address, str(port), check=False) == "hello"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    need_second_docker()
    need_networks("nft")
    root = Path(tempfile.mkdtemp(prefix="cc-ci-fw-"))  # short: sockets
    one, outside = SecondDocker(root / "d"), Network()
    listeners = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", one.host)
        try:
            found = Server(one, outside, tmp_path_factory.mktemp("data"))
            ip(found.pid, f"link add uplink type veth peer name cable netns {outside.pid}")
            ip(found.pid, "address add 192.168.66.2/24 dev uplink", "link set uplink up", f"route add default via {GATEWAY}")
            # With each task its image's registry is looked up, which nobody answers here: let it be known at once.
            for resolver in desired.resolvers():
                ip(found.pid, *([] if ":" in resolver else [f"route add unreachable {resolver}"]))
            addresses = (f"{GATEWAY}/24", f"{METADATA}/32", f"{PRIVATE}/32", f"{INTERNET}/32")
            ip(outside.pid, "link set cable up", *(f"address add {address} dev cable" for address in addresses))
            (one.root / "config.json").write_text(json.dumps({"dns": [PRIVATE]}))
            one.start()
            one.make_swarm()
            listeners = Listeners(outside.pid, [(METADATA, 80), (PRIVATE, 8080), (INTERNET, 8080)])
            yield found
        finally:
            if listeners:
                listeners.close()
            one.close()
            outside.close()
            shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def run(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with within(server.pid):
        one = Run(tmp_path_factory.mktemp("run"))
    yield one
    with within(server.pid):
        assert one.deployer.teardown() == []


@pytest.fixture(autouse=True)
def no_rules(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(desired, "RESOLV", tmp_path / "none")
    monkeypatch.setattr(desired, "DAEMON", tmp_path / "none")
    yield
    with within(server.pid):
        nft.remove()


@pytest.fixture
def host(server: Server) -> Iterator[str]:
    """An address of the machine on docker_gwbridge, and a service there."""
    gateway = json.loads(docker("network", "inspect", egress.GATEWAY))[0]["IPAM"]["Config"][0]["Gateway"]
    listeners = Listeners(server.pid, [("0.0.0.0", 5555)])
    yield str(gateway)
    listeners.close()


def connects(container: str, address: str, port: int) -> bool:
    """Whether a port can be connected to, whatever it says then: the Swarm's own speak first when they are spoken to."""
    pid = json.loads(docker("inspect", container))[0]["State"]["Pid"]
    with within(pid), socket.socket() as stream:
        stream.settimeout(2)
        return not stream.connect_ex((address, port))


def what_is_reached(run: Run, host: str) -> dict[str, bool]:
    own = str(json.loads(docker("network", "inspect", egress.network(run.deployer.stack)))[0]["IPAM"]["Config"][0]["Gateway"])
    app = run.container()
    tried = {
        "a port of the machine on docker_gwbridge": (reaches, host, 5555),
        "a port of the machine on the run's own bridge": (reaches, own, 5555),
        "a port of the machine at its address": (reaches, "192.168.66.2", 5555),
        "the Swarm's manager": (connects, host, 2377),
        "the Swarm's gossip": (connects, host, 7946),
        "metadata": (reaches, METADATA, 80),
        "a private range": (reaches, PRIVATE, 8080),
        "the internet": (reaches, INTERNET, 8080),
        "its own service by name": (reaches, "db", 5432),
        "its own service by hostname": (reaches, "rows", 5432),
    }
    with ThreadPoolExecutor(len(tried)) as pool:
        found = {what: pool.submit(how, app, address, port) for what, (how, address, port) in tried.items()}
        return {what: future.result() for what, future in found.items()}


def test_what_a_run_reaches(server: Server, run: Run, host: str, tmp_path: Path) -> None:
    wanted_after = {"the internet", "its own service by name", "its own service by hostname"}
    with within(server.pid):
        before = what_is_reached(run, host)
        assert all(before.values()), before
        assert server.firewall("--apply") == (0, "The rules are in force.\n")
        after = what_is_reached(run, host)
        assert {what for what, reached in after.items() if reached} == wanted_after
        assert run.answers()
        assert server.firewall("--apply") == (0, "The rules are in force (unchanged).\n")
        # One that comes later is held from its first packet on.
        late = Run(tmp_path / "late")
        try:
            assert late.answers()
            assert {what for what, reached in what_is_reached(late, host).items() if reached} == wanted_after
            assert not late.reaches(run.address("db"), 5432)
            assert not run.reaches(late.address("db"), 5432)
        finally:
            assert late.deployer.teardown() == []
        code, said = server.firewall()
        assert code == 0 and "in force" in said and "packets to this machine" in said
        assert server.firewall("--remove")[0] == 0
        assert all(what_is_reached(run, host).values())


def test_removing_leaves_the_rules_of_others_as_they_were(server: Server, run: Run) -> None:
    before = server.rules()
    assert server.typed().returncode == 1
    applied = server.typed("--apply")
    assert (applied.returncode, applied.stdout) == (
        0,
        "The rules are in force.\n",
    ) and "Left out: the enrolments" in applied.stderr
    assert server.rules().startswith(before) and "table inet cc_ci" in server.rules()
    assert server.typed("--remove").stdout == "Removed the rules.\n"
    assert server.rules() == before
    assert server.typed("--remove").stdout == "There were no rules to remove.\n"


def test_a_service_on_internal_networks_alone_has_no_way_out(server: Server, run: Run) -> None:
    with within(server.pid):
        assert not run.reaches(INTERNET, 8080, "shy")
        assert run.reaches("db", 5432, "shy")


def test_a_run_is_not_on_the_bridge_of_everything_else(server: Server, run: Run) -> None:
    shared = json.loads(docker("network", "inspect", egress.GATEWAY))[0]["Containers"]
    assert not {run.container("app"), run.container("db"), run.container("shy")} & shared.keys()


def test_counting_refuses_nothing_and_tells(server: Server, run: Run) -> None:
    with within(server.pid):
        assert "only count" in server.firewall("--apply", "--dry")[1]
        assert run.reaches(PRIVATE, 8080)
        code, said = server.firewall()
        assert code == 1 and "only count" in said
        loaded = nft.loaded()
        assert loaded and loaded.counting and loaded.counts["to a private or link-local range"] > 0


def test_what_may_be_reached_all_the_same(server: Server, run: Run, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "firewall_allow", [f"{PRIVATE}:8080", f"{host}:5555/tcp"])
    with within(server.pid):
        server.firewall("--apply")
        assert run.reaches(PRIVATE, 8080) and run.reaches(host, 5555)
        assert not run.reaches(METADATA, 80) and not connects(run.container(), host, 2377)


@pytest.mark.parametrize("where", ["a private range", "this machine"])
def test_the_provider_that_is_lent_is_reached_and_nothing_beside_it(
    where: str, server: Server, run: Run, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, port = (PRIVATE, 8080) if where == "a private range" else (host, 5555)
    beside = Listeners(server.outside.pid if address == PRIVATE else server.pid, [(address, 8443)])
    monkeypatch.setattr(settings.CC_CI, "oidc_url", f"http://{address}:{port}/auth")
    try:
        with within(server.pid):
            assert run.reaches(address, 8443)
            server.firewall("--apply")
            assert run.reaches(address, port) and run.reaches(address, port, "db")
            assert not run.reaches(address, 8443)
            others = {(PRIVATE, 8080), (host, 5555), (METADATA, 80)} - {(address, port)}
            assert not any(run.reaches(*other) for other in others)
            assert run.reaches(INTERNET, 8080)
    finally:
        beside.close()


def test_names_are_resolved_by_a_server_in_a_private_range(server: Server, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's DNS server asks it out of the container's network, so it comes over the run's bridge."""

    def answer() -> None:
        with suppress(OSError):
            while True:
                asked, peer = names.recvfrom(512)
                question = asked[12 : asked.index(0, 12) + 5]
                address = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(INTERNET)
                is_a = question[-4:-2] == b"\0\1"
                count = b"\0\1\0" + bytes([is_a]) + b"\0\0\0\0"
                names.sendto(asked[:2] + b"\x81\x80" + count + question + (address if is_a else b""), peer)

    def resolves() -> bool:
        return INTERNET in docker("exec", run.container(), "/bin/busybox", "nslookup", f"{uuid.uuid4().hex}.test", check=False)

    with within(server.outside.pid):
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind((PRIVATE, 53))
    threading.Thread(target=answer, daemon=True).start()
    try:
        with within(server.pid):
            assert resolves()
            server.firewall("--apply")
            assert not resolves()
            monkeypatch.setattr(desired, "DAEMON", server.docker.root / "config.json")
            server.firewall("--apply")
            assert resolves() and not run.reaches(PRIVATE, 8080)
    finally:
        names.close()


def test_what_an_enrolment_allows_is_for_its_own_runs(server: Server, run: Run, tmp_path: Path) -> None:
    line = f"network: {PRIVATE}:8080/tcp"
    with within(server.pid):
        nft.apply(Rules(recipes=[egress.allowed([line])]))
        one = Run(tmp_path / "one", allow=[line, "services.app: cap_add NET_ADMIN"])
        try:
            assert one.reaches(PRIVATE, 8080) and not one.reaches(METADATA, 80)
            assert not run.reaches(PRIVATE, 8080)
            nft.apply(Rules())
            assert not one.reaches(PRIVATE, 8080)
        finally:
            assert one.deployer.teardown() == []


@pytest.mark.long
def test_the_servers_own_apps_go_on_as_they_were(server: Server, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    docker("service", "create", "--detach", "--name=nas-user", "--network=" + overlay(), IMAGE, "sleep", "1000000")
    try:
        container = until(lambda: docker("ps", "--quiet", "--no-trunc", "--filter=label=com.docker.swarm.service.name=nas-user"))
        with within(server.pid):
            server.firewall("--apply")
            assert reaches(container, PRIVATE, 8080) and reaches(container, host, 5555)
            asked = tries.Target("a private range", PRIVATE, 8080)
            assert tries.reached([asked], several_machines=True) == [asked]
            # Unless that is what is asked for.
            monkeypatch.setattr(settings.CC_CI, "firewall_everything", True)
            server.firewall("--apply")
            assert not reaches(container, PRIVATE, 8080) and not reaches(container, host, 5555)
            assert reaches(container, INTERNET, 8080)
            assert tries.reached([asked], several_machines=True) == []
            monkeypatch.setattr(settings.CC_CI, "firewall_allow", [f"{PRIVATE}:8080"])
            server.firewall("--apply")
            assert reaches(container, PRIVATE, 8080)
    finally:
        docker("service", "rm", "nas-user")
        until(lambda: docker("network", "rm", "test-overlay", check=False) == "test-overlay")


def overlay() -> str:
    docker("network", "create", "--driver=overlay", "test-overlay")
    return "test-overlay"


FORGED = """
import socket, struct, sys
def packet(source, source_port, target, port):
    data = struct.pack("!HHHH", source_port, port, 12, 0) + b"evil"
    return struct.pack("!BBHHHBBH4s4s", 69, 0, 0, 0, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target)) + data
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
private, accomplice = sys.argv[1:]
raw.sendto(packet(private, 9999, accomplice, 53), (accomplice, 0))  # in the name of the one that is to be reached …
raw.sendto(packet(accomplice, 53, private, 9999), (private, 0))  # … which then gets an "answer"
"""


def test_a_forged_answer_does_not_get_through(server: Server, run: Run) -> None:
    """A container may write any source address (it has NET_RAW), and replies are let through."""

    def arrives() -> bool:
        pid = json.loads(docker("inspect", run.container()))[0]["State"]["Pid"]
        with receiver() as waiting:
            command = ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", FORGED, PRIVATE, ACCOMPLICE]
            subprocess.run(command, check=True, timeout=20)
            try:
                return waiting.recv(100) == b"evil"
            except TimeoutError:
                return False

    def receiver() -> socket.socket:
        with within(server.outside.pid):
            waiting = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            waiting.bind((PRIVATE, 9999))
            waiting.settimeout(1.5)
            return waiting

    with within(server.pid):
        nft.apply(Rules())
        assert not arrives()
        # The very same rules, but for the source address: so that is what it hangs on.
        text = Rules().text().replace("fib saddr . iif oif missing counter drop", "fib saddr . iif oif missing counter")
        subprocess.run(["nft", "--file", "-"], input=text, text=True, check=True)
        assert arrives()


def test_doctor_tries_it(server: Server, run: Run, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "firewall_probe", True)
    monkeypatch.setattr(settings.CC_CI, "deployer", "swarm")

    def findings() -> list[Finding]:
        with within(server.pid):
            found = list(check.check_firewall())
        assert docker("network", "ls", "--quiet", f"--filter=label={tries.LABEL}") == ""
        assert docker("image", "ls", "--quiet", f"--filter=label={tries.LABEL}") == ""
        assert all(one.level == "ok" or one.fix for one in found)
        return found

    unheld = findings()
    assert [one.level for one in unheld] == ["warning", "warning"]
    assert "no firewall rules" in unheld[0].text and unheld[0].fix == "cc-ci firewall --apply"
    for words in ("this host, ports", METADATA, "2377", "7946", "5555", f"the private address {GATEWAY}, port 80"):
        assert words in unheld[1].text
    with within(server.pid):
        nft.apply(desired.rules()[0])
    (held,) = findings()
    assert held.level == "ok", held
    monkeypatch.setattr(settings.CC_CI, "firewall_allow", ["10.1.2.3:5432"])
    (changed,) = findings()
    assert (changed.level, changed.fix) == ("error", "cc-ci firewall --apply")
    assert "differ from what" in changed.text
    monkeypatch.setattr(settings.CC_CI, "firewall_allow", [])
    with within(server.pid):
        subprocess.run(["nft", "insert", "rule", "inet", "cc_ci", "input", "accept"], check=True)
    by_hand = findings()
    assert by_hand[0].level == "error" and "2377" in by_hand[1].text
    with within(server.pid):
        nft.apply(desired.rules(counting=True)[0])
    assert "only count and reject nothing" in findings()[0].text


@pytest.mark.long
def test_the_rules_outlive_docker(server: Server, run: Run) -> None:
    """The last one: what the other tests need is started anew."""
    with within(server.pid):
        server.firewall("--apply")
        before = nft.loaded()
        server.docker.restart()
        until(lambda: "Server Version" in docker("info", check=False))
        after = nft.loaded()
        assert before and after and after.text == before.text
        until(lambda: docker("ps", "--quiet", f"--filter=name={run.deployer.stack}_app", check=False))
        until(lambda: run.reaches(INTERNET, 8080))
        assert not run.reaches(PRIVATE, 8080)
