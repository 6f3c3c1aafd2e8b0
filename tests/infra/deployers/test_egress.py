"""A run's bridge to the outside: its name, who is on it, and what is left of it afterwards."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.deployers.docker import api, egress
from infra.deployers.docker.egress import Allowed
from infra.deployers.errors import DeployError
from infra.deployers.probe import probe
from tests.docker import IMAGE, docker, need_swarm
from tests.infra.deployers.conftest import INSTALLATION, left

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("text", "found", "written"),
    [
        ("10.1.2.3:5432/tcp", Allowed("10.1.2.3/32", 5432, "tcp"), "10.1.2.3:5432/tcp"),
        (" 10.1.2.3:5432 ", Allowed("10.1.2.3/32", 5432, "tcp"), "10.1.2.3:5432/tcp"),
        ("10.1.2.3:53/udp", Allowed("10.1.2.3/32", 53, "udp"), "10.1.2.3:53/udp"),
        ("10.1.0.0/16:443", Allowed("10.1.0.0/16", 443, "tcp"), "10.1.0.0/16:443/tcp"),
        ("10.1.2.3", Allowed("10.1.2.3/32"), "10.1.2.3"),
        ("10.1.0.0/16", Allowed("10.1.0.0/16"), "10.1.0.0/16"),
        ("[fd00::1]:636", Allowed("fd00::1/128", 636, "tcp"), "[fd00::1]:636/tcp"),
        ("fd00::/64", Allowed("fd00::/64"), "fd00::/64"),
        ("fd00::1:636", Allowed("fd00::1:636/128"), "fd00::1:636"),
    ],
)
def test_what_may_be_allowed(text: str, found: Allowed, written: str) -> None:
    assert egress.parse(text) == found
    assert str(found) == written
    assert egress.parse(written) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "db.example.org:5432", "10.1.2", "10.1.2.3/24", "[fd00::1", "fd00::1]:1", "[10.1.2.3]:1"),
        *("10.1.2.3:0", "10.1.2.3:65536", "10.1.2.3:x", "10.1.2.3:1/icmp", "10.1.2.3:١"),
        *('10.1.2.3" accept comment "', "10.1.2.3;", "10.1.2.3:1/tcp accept"),
    ],
)
def test_what_means_nothing(text: str) -> None:
    with pytest.raises(ValueError):
        egress.parse(text)


def test_lines_of_an_enrolment() -> None:
    lines = ["services.app: cap_add NET_ADMIN", "network: 10.1.2.3:5432", " network:10.0.0.0/8", "network: nonsense", "10.9.9.9"]
    assert egress.allowed(lines) == [Allowed("10.0.0.0/8"), Allowed("10.1.2.3/32", 5432, "tcp")]


def test_the_name_of_a_bridge_tells_what_is_allowed_and_fits_into_the_kernel() -> None:
    plain, other = egress.bridge("ccci-0123456789ab"), egress.bridge("ccci-ba9876543210")
    some = egress.bridge("ccci-0123456789ab", ["network: 10.1.2.3:5432"])
    same = egress.bridge("ccci-ba9876543210", ["network: 10.1.2.3:5432/tcp", "services.app: privileged"])
    more = egress.bridge("ccci-0123456789ab", ["network: 10.1.2.3:5432", "network: 10.1.2.4:5432"])
    assert all(len(name) == 15 and name.startswith("ccci-") for name in (plain, other, some, same, more))
    assert plain[:9] == other[:9] == "ccci-0000" and plain != other
    assert some[:9] == same[:9] != plain[:9]
    assert more[:9] not in (some[:9], plain[:9])


def document(**services: Any) -> dict[str, Any]:
    networks = {"default": {}, "backend": {"internal": True}, "front": {"driver": "overlay"}}
    return {"services": services, "networks": networks}


def test_who_is_on_it() -> None:
    both = {"networks": {"backend": None, "front": {"aliases": ["x"]}}}
    found = document(app={}, db={"networks": {"backend": None}}, both=both)
    egress.attach(found, "s")
    assert found["services"]["app"]["networks"] == {"default": None, "cc-ci-egress": None}
    assert found["services"]["db"]["networks"] == {"backend": None}
    assert found["services"]["both"]["networks"] == {"backend": None, "front": {"aliases": ["x"]}, "cc-ci-egress": None}
    assert found["networks"]["cc-ci-egress"] == {"external": True, "name": "s_cc-ci-egress"}


def test_a_default_network_that_is_internal() -> None:
    found = document(app={})
    found["networks"]["default"] = {"internal": True}
    egress.attach(found, "s")
    assert "networks" not in found["services"]["app"] and "cc-ci-egress" not in found["networks"]


def test_a_swarm_of_several_machines_goes_on_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {"Swarm": {"LocalNodeState": "active", "ControlAvailable": True, "Nodes": 3}}
    monkeypatch.setattr(api, "get", lambda *_: said)
    assert not egress.make("s", {})


@pytest.mark.parametrize(
    ("swarm", "words"),
    [
        ({"LocalNodeState": "inactive", "ControlAvailable": False}, "not part of a swarm"),
        ({"LocalNodeState": "active", "ControlAvailable": False}, "not a manager"),
        ({"LocalNodeState": "active", "ControlAvailable": True, "Error": "no leader"}, "does not answer: no leader."),
        (None, "not part of a swarm"),
    ],
)
def test_a_machine_that_left_its_swarm_says_so(swarm: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "get", lambda *_: {"Swarm": swarm})
    with pytest.raises(DeployError, match=words) as error:
        egress.make("s", {})
    assert error.value.kind == "tool_failed"


@pytest.mark.parametrize("refuses", [True, False])
def test_a_template_stays_as_long_as_its_network_is_in_the_swarm(refuses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network itself has no label: without its template nobody would find it again."""
    there = {
        "t123": {"Id": "t123456", "Name": "s_cc-ci-egress-template", "ConfigOnly": True},
        "o123": {"Id": "o123456", "Name": "s_default"},
        "s_cc-ci-egress": {"Id": "e123456", "Name": "s_cc-ci-egress", "ConfigFrom": {"Network": "s_cc-ci-egress-template"}},
    }
    calls = []

    def remove(*words: str) -> None:
        calls.append(words)
        if refuses:
            raise DeployError("tool_failed", "network is in use")

    monkeypatch.setattr(egress, "inspect", lambda kind, names: [there[name] for name in names if name in there])
    monkeypatch.setattr(egress, "remove", remove)
    assert egress.removable(["t123", "o123"]) == (["o123"] if refuses else ["t123", "o123"])
    assert calls == [("network", "e123456")]


@pytest.mark.docker
def test_a_run_leaves_by_its_own_bridge(deployer: Make, tmp_path: Path) -> None:
    need_swarm()
    app = {
        "image": IMAGE,
        "command": ["httpd", "-f", "-p", "8080", "-h", "/www"],
        "deploy": {"labels": ["traefik.http.services.${STACK_NAME}.loadbalancer.server.port=8080"]},
    }
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "compose.yml").write_text(yaml.safe_dump({"version": "3.8", "services": {"app": app}}))
    (recipe / ".env.sample").write_text("DOMAIN=x.example.com\n")
    one = deployer(recipe, health_status=[200, 404], allow=["network: 10.1.2.3:1"])
    for _ in range(2):  # again after it was taken away
        one.deploy()
        one.settle()
        container, (own,) = one.owned.container("app"), json.loads(docker("network", "inspect", egress.network(one.stack)))
        assert own["Options"]["com.docker.network.bridge.name"] == egress.bridge(one.stack, ["network: 10.1.2.3:1"])
        assert own["Labels"]["cc-ci.installation"] == INSTALLATION
        address = own["Containers"][container]["IPv4Address"].partition("/")[0]
        assert one.address().host == address and probe(one.address())
        assert container not in json.loads(docker("network", "inspect", egress.GATEWAY))[0]["Containers"]
        assert docker("exec", container, "cat", "/proc/net/route").count("\t00000000\t") >= 1
        one.undeploy()
        assert left(one) == [] and egress.network(one.stack) not in docker("network", "ls", "--format={{.Name}}").splitlines()
    # As a person removes it who kept it.
    one.deploy()
    one.settle()
    line = one.keep().partition("Remove it with: ")[2]
    subprocess.run(["sh", "-c", line], timeout=100, capture_output=True)
    assert not [thing for thing in left(one) if not thing.startswith("container")]
    # A task that was never started leaves the network known to the Swarm alone, where it has no label.
    egress.make(one.stack, {"cc-ci.installation": INSTALLATION, "cc-ci.run": one.context.run_id})
    assert egress.network(one.stack) in docker("network", "ls", "--format={{.Name}}").splitlines()
    assert one.teardown() == []
    assert one.stack not in docker("network", "ls", "--format={{.Name}}")
