"""`cc-ci firewall` without Docker: the rules, their sources, and the real nft in the test's own network."""

from __future__ import annotations

import errno
import io
import ipaddress
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command

from controlplane.cli import MISUSE, NO, OURS, Exit
from controlplane.config import Config
from infra.deployers.docker.egress import Allowed, group, is_private, parse
from infra.firewall import check, desired, nft
from infra.firewall import rules as rules_module
from infra.firewall.probe import Target
from infra.firewall.rules import Rules
from tests.networks import Network, ip, need_networks, within

pytestmark = [pytest.mark.django_db, pytest.mark.slow(0.1)]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Network]:
    """This test is in a network of its own."""
    need_networks("nft")
    monkeypatch.setattr(desired, "RESOLV", tmp_path / "none")
    monkeypatch.setattr(desired, "DAEMON", tmp_path / "none")
    found = Network()
    with within(found.pid):
        yield found
    found.close()


def firewall(*words: str) -> tuple[int, str]:
    out = io.StringIO()
    try:
        call_command("firewall", *words, stdout=out, stderr=out)
    except Exit as stop:
        return int(stop.code or 0), out.getvalue()
    return 0, out.getvalue()


def ruleset() -> str:
    return subprocess.run(["nft", "--stateless", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


NOT_ON_THE_INTERNET = (
    *("10.1.2.3", "172.31.255.255", "192.168.0.1", "169.254.169.254", "100.100.100.200", "168.63.129.16", "127.0.0.1", "0.0.0.0"),
    *("224.0.0.1", "255.255.255.255", "::1", "::ffff:10.0.0.1", "fd00:ec2::254", "fe80::1%eth0", "ff02::1", "64:ff9b::a00:1"),
    *("64:ff9b::169.254.169.254", "2002:0a00:0001::1"),
)


@pytest.mark.parametrize("address", NOT_ON_THE_INTERNET)
def test_what_is_not_on_the_internet(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "172.32.0.1", "203.0.113.7", "2a00::1", "64:ff9b::1.1.1.1", "100.128.0.1"])
def test_what_is_on_the_internet(address: str) -> None:
    assert not is_private(address)


def test_what_python_knows_to_be_private_is() -> None:
    for number in range(1 << 16):
        address = ipaddress.IPv4Address(number << 16 | 1)
        assert address.is_global or is_private(str(address)), address


def test_everything_that_can_be_asked_for_is_taken_by_nft(network: Network) -> None:
    allowed = [(parse(text), "x") for text in ("10.1.2.3:5432", "10.2.0.0/16", "[fd00::1]:53/udp", "fd00::/64", "10.0.0.1")]
    for everything in (False, True):
        for counting in (False, True):
            rules = Rules(allowed, [[parse("10.9.9.9:1")], [parse("10.9.9.9:1")], []], everything, counting)
            assert nft.apply(rules)
            loaded = nft.loaded()
            assert loaded and loaded.text == nft.listing(rules)
            assert loaded.counting == counting and ("reject" in loaded.text) != counting and ("drop" in loaded.text) != counting
            assert set(loaded.counts) == {
                *("to this machine", "to a private or link-local range", "with a forged source address"),
                "beyond the connections that a run may have",
            }
            assert not nft.apply(rules)
    assert f'"ccci-{group([parse("10.9.9.9:1")])}*"' in ruleset()


def test_the_life_of_the_rules(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["nft", "add table inet others; add chain inet others c"], check=True)
    before = ruleset()
    assert firewall()[0] == NO
    code, printed = firewall("--print")
    assert code == 0 and printed.startswith("table inet cc_ci {") and ruleset() == before
    assert firewall("--apply") == (0, "The rules are in force.\n")
    assert firewall("--apply") == (0, "The rules are in force (unchanged).\n")
    code, said = firewall()
    assert code == 0 and "in force" in said and "0 packets to this machine" in said
    assert firewall("--apply", "--dry") == (0, "The rules only count what they would refuse.\n")
    code, said = firewall()
    assert code == NO and "only count" in said and "differ" not in said
    monkeypatch.setattr(settings.CC_CI, "firewall_allow", ["10.1.2.3:5432"])
    assert "differ from what the settings and enrolments require. Run: cc-ci firewall --apply --dry" in firewall()[1]
    firewall("--apply")
    subprocess.run(["nft", "insert rule inet cc_ci forward accept"], check=True)  # by hand
    code, said = firewall()
    assert code == NO and "differ from what the settings and enrolments require. Run: cc-ci firewall --apply\n" in said
    assert firewall("--apply") == (0, "The rules are in force.\n")
    assert firewall()[0] == 0
    assert firewall("--remove") == (0, "Removed the rules.\n")
    assert ruleset() == before
    assert firewall("--remove") == (0, "There were no rules to remove.\n")


def test_rules_that_nft_refuses_change_nothing(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    firewall("--apply")
    before = ruleset()
    monkeypatch.setattr(Rules, "table", lambda rules: "table inet cc_ci { chain x { nonsense } }\n")
    code, said = firewall("--apply")
    assert code == OURS and "nft rejected the rules" in said
    assert ruleset() == before


def test_a_run_fills_no_list_of_connections(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the kernel is everybody's. Two runs, of which one has as many connections as it may, and somebody beyond."""
    monkeypatch.setattr(rules_module, "CONNECTIONS", 20)
    greedy, modest, beyond = Network(), Network(), Network()
    try:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        for number, (behind, name) in enumerate(((greedy, "ccci-0000aaaaaa"), (modest, "ccci-0000bbbbbb"), (beyond, "uplink"))):
            ip(network.pid, f"link add {name} type veth peer name eth0 netns {behind.pid}")
            ip(network.pid, f"address add 203.0.113.{number * 4 + 1}/30 dev {name}", f"link set {name} up")
            ip(behind.pid, f"address add 203.0.113.{number * 4 + 2}/30 dev eth0", "link set eth0 up")
            ip(behind.pid, f"route add default via 203.0.113.{number * 4 + 1}")

        def arrive(behind: Network, how_many: int) -> int:
            with within(beyond.pid), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
                there.bind(("203.0.113.10", 0))
                there.settimeout(1)
                for _ in range(how_many):
                    with within(behind.pid), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
                        stream.sendto(b"x", there.getsockname())
                came = 0
                with suppress(TimeoutError):
                    while came < how_many:
                        came += len(there.recv(10))
                return came

        firewall("--apply")
        assert arrive(greedy, 50) == 20
        assert arrive(modest, 5) == 5
        loaded = nft.loaded()
        assert loaded and loaded.counts["beyond the connections that a run may have"] == 30
        assert firewall("--apply") == (0, "The rules are in force (unchanged).\n"), "what it counts is no other rule"
    finally:
        for one in (greedy, modest, beyond):
            one.close()


def test_packets_are_counted(network: Network) -> None:
    """A bridge with a run's name, and somebody behind it."""
    behind = Network()
    try:
        ip(network.pid, f"link add ccci-0000abcdef type veth peer name eth0 netns {behind.pid}")
        ip(network.pid, "address add 172.30.0.1/24 dev ccci-0000abcdef", "link set ccci-0000abcdef up")
        ip(behind.pid, "address add 172.30.0.2/24 dev eth0", "link set eth0 up")
        firewall("--apply")
        with within(behind.pid), socket.socket() as stream:
            stream.settimeout(2)
            # At once, and not as a closed port would say it.
            assert stream.connect_ex(("172.30.0.1", 1)) == errno.EHOSTUNREACH
        loaded = nft.loaded()
        assert loaded and loaded.counts["to this machine"] >= 1
    finally:
        behind.close()


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "nft"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


def test_somebody_who_is_not_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "echo 'Operation not permitted (you must be root)' >&2; exit 1")
    code, said = firewall("--apply")
    assert code == OURS and "Only root" in said and "sudo cc-ci firewall" in said


def test_no_nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, said = firewall()
    assert code == OURS and "apt-get install nftables" in said


def test_dry_alone_is_misuse() -> None:
    assert firewall("--dry")[0] == MISUSE
    assert firewall("--remove", "--dry")[0] == MISUSE


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"resolv": "# x\nnameserver 10.0.0.53\nnameserver 1.1.1.1\nsearch a\n"}, ["1.1.1.1", "10.0.0.53"]),
        ({"resolv": "nameserver 127.0.0.53\n", "systemd": "nameserver 192.168.1.1\n"}, ["192.168.1.1"]),
        ({"resolv": "nameserver 127.0.0.1\n", "systemd": "nameserver 192.168.1.1\n"}, []),
        ({"resolv": "nameserver fe80::1%eth0\nnameserver fd00::53\nnameserver\nnameserver x\n"}, ["fd00::53"]),
        ({"resolv": "nameserver 10.0.0.53\n", "daemon": '{"dns": ["10.9.9.9"]}'}, ["10.9.9.9"]),
        ({"resolv": "nameserver 10.0.0.53\n", "daemon": "{"}, ["10.0.0.53"]),
        ({"resolv": "nameserver 10.0.0.53\n", "daemon": "{}"}, ["10.0.0.53"]),
        ({}, []),
    ],
)
def test_whom_docker_asks_for_names(
    files: dict[str, str], found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, attribute in (("resolv", "RESOLV"), ("systemd", "SYSTEMD"), ("daemon", "DAEMON")):
        monkeypatch.setattr(desired, attribute, tmp_path / name)
        if name in files:
            (tmp_path / name).write_text(files[name])
    assert desired.resolvers() == found
    rules, _ = desired.rules()
    for address in found:
        wide = str(ipaddress.ip_network(address))
        assert {(entry.port, entry.protocol) for entry, why in rules.allowed if entry.network == wide} == {
            (53, "tcp"),
            (53, "udp"),
        }


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://10.1.2.3", [Allowed("10.1.2.3/32", 443, "tcp")]),
        ("http://10.1.2.3:8080/auth", [Allowed("10.1.2.3/32", 8080, "tcp")]),
        ("http://127.0.0.1", [Allowed("127.0.0.1/32", 80, "tcp")]),
        ("https://203.0.113.7", []),
        ("https://no-such-host.invalid", []),
        ("", []),
    ],
)
def test_the_keycloak_that_is_lent(url: str, found: list[Allowed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "oidc_url", url)
    assert [entry for entry, why in desired.rules()[0].allowed if why == "CC_CI_OIDC_URL"] == found


def test_what_enrolments_allow(world: object) -> None:
    from enrollment.models import Repository

    row = Repository.objects.get(name="web")
    row.allowances = ["services.app: cap_add NET_ADMIN", "network: 10.1.2.3:5432"]
    row.save()
    rules, problem = desired.rules()
    assert rules.recipes == [[Allowed("10.1.2.3/32", 5432, "tcp")]] and not problem
    row.allowances.append("network: db.example.org")
    row.save()
    assert "the enrolment of recipes/web has an invalid allowance: " in desired.rules()[1]
    row.active = False
    row.save()
    assert desired.rules()[0].recipes == []


@pytest.mark.parametrize(
    "value", ["10.1.2.3:5432/tcp", "10.1.2.3", "10.1.0.0/16", "[fd00::1]:636", "fd00::/64", "10.1.0.0/16:443"]
)
def test_a_setting_that_means_something_means_the_same_to_both(value: str) -> None:
    assert Config(CC_CI_FIREWALL_ALLOW=value).firewall_allow == [value]
    assert parse(value)


@pytest.mark.parametrize(
    "value", ["x", "10.1.2.3:0", "10.1.2.3:x", "10.1.2.3/24", "fd00::1]:1", "[10.1.2.3]:1", "10.1.2.3:99999"]
)
def test_a_setting_that_means_nothing_stops_the_start(value: str) -> None:
    with pytest.raises(ValueError, match="invalid target"):
        Config(CC_CI_FIREWALL_ALLOW=value)
    with pytest.raises(ValueError):
        parse(value)


# doctor, where no Docker is needed


@pytest.fixture
def no_docker_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "deployer", "swarm")
    monkeypatch.setattr(check, "swarm_problem", lambda: "")
    monkeypatch.setattr(check.shutil, "which", lambda name: f"/bin/{name}")


def test_doctor_without_a_swarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.CC_CI, "deployer", "process")
    assert [one.level for one in check.check_firewall()] == ["ok"]
    monkeypatch.setattr(settings.CC_CI, "deployer", "auto")
    monkeypatch.setattr(check, "swarm_problem", lambda: "none")
    assert [one.level for one in check.check_firewall()] == ["ok"]


def test_doctor_that_shall_try_nothing(network: Network, no_docker_needed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(settings.CC_CI, "deployer", "swarm")
    monkeypatch.setattr(check, "swarm_problem", lambda: "")
    monkeypatch.setattr(desired, "RESOLV", Path("/nonexistent"))
    (found,) = check.check_firewall()
    assert (found.level, found.fix) == ("warning", "cc-ci firewall --apply")
    nft.apply(desired.rules()[0])
    (found,) = check.check_firewall()
    assert found.level == "ok" and "not tested" in found.text


def test_what_doctor_tries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(check, "_ROUTES", tmp_path / "routes")
    monkeypatch.setattr(check, "_ARP", tmp_path / "arp")
    (tmp_path / "routes").write_text(
        "Iface\tDestination\tGateway\tFlags\nuplink\t00000000\t0142A8C0\t0003\nuplink\t0042A8C0\t00000000\t0001\n"
    )
    (tmp_path / "arp").write_text(
        "IP address HW type Flags HW address Mask Device\n"
        "192.168.66.9 0x1 0x2 02:00:00:00:00:01 * uplink\n"
        "192.168.66.8 0x1 0x0 00:00:00:00:00:00 * uplink\n"
        "172.18.0.5 0x1 0x2 02:42:ac:12:00:05 * docker_gwbridge\n"
        "203.0.113.9 0x1 0x2 02:00:00:00:00:02 * uplink\n"
    )
    found = check.targets()
    assert Target("the metadata address 169.254.169.254", "169.254.169.254", 80) in found
    assert [target.address for target in found if "private" in target.name] == ["192.168.66.1", "192.168.66.9"]
    assert all(target.address not in ("0.0.0.0", "127.0.0.1") for target in found)
