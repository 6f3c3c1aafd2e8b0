"""How a run's containers reach the outside: over the run's own bridge, whose name tells the firewall that it is untrusted.

By default the Swarm routes all services' outgoing traffic over one bridge, docker_gwbridge. There nothing distinguishes a
stranger's container from the server's own apps: addresses are reused at once, and a container can forge any source address.
So each run has its own network on this machine: a bridge named `ccci-…`, the default route of its containers, which are then
not on docker_gwbridge at all. Rules on that name (`infra.firewall`) apply before the first packet.

The name also tells what the run may reach besides the internet: its first four digits are a hash of what its recipe's enrolment
allows (`network: 10.1.2.3:5432/tcp`), "0000" if it allows nothing.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.deployers.docker.api import inspect, nodes, remove
from infra.deployers.docker.cli import call, last_line
from infra.deployers.errors import DeployError

#: The bridge of everything else that the Swarm runs on this machine.
GATEWAY = "docker_gwbridge"
#: How the names of the runs' bridges begin. The kernel takes 15 characters.
PREFIX = "ccci-"
NOTHING = "0000"
#: How a line of an enrolment's allowances begins that is for the firewall, and not about the compose files.
ALLOWS = "network:"

#: Not on the internet (IANA's special-purpose registries). What is for documentation leads nowhere, and is left out.
PRIVATE_4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",  # carriers' NAT, and VPNs such as Tailscale; metadata of Alibaba Cloud
    "127.0.0.0/8",
    "168.63.129.16/32",  # not private, but the host's own service in Azure, with the virtual machine's configuration
    "169.254.0.0/16",  # link-local; metadata of most clouds
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/3",  # multicast, reserved, broadcast
)
#: The first 96 bits of addresses that a NAT64 gateway takes for the IPv4 address that follows.
_NAT64 = int(ipaddress.IPv6Address("64:ff9b::"))
PRIVATE_6 = (
    "::/96",
    "::ffff:0:0/96",
    *(
        f"{ipaddress.IPv6Address(_NAT64 | int(network.network_address))}/{96 + network.prefixlen}"
        for network in map(ipaddress.IPv4Network, PRIVATE_4)
    ),
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/32",  # Teredo
    "2002::/16",  # 6to4: IPv4 addresses, private ones too
    "fc00::/7",  # unique local; metadata of AWS, Google Cloud and Scaleway
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
)

_KEY = "cc-ci-egress"
_TEMPLATE = "-template"
_NAME_OPTION = "com.docker.network.bridge.name"
_MTU_OPTION = "com.docker.network.driver.mtu"
_EXISTS = re.compile("already exists", re.IGNORECASE)
_ENTRY = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<four>[^\[\]:]+))(?::(?P<port>[0-9]+)(?:/(?P<protocol>tcp|udp))?)?")


def is_private(address: str) -> bool:
    """Whether an address is in one of the ranges that runs must not reach."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return any(found in ipaddress.ip_network(network) for network in (PRIVATE_4 if found.version == 4 else PRIVATE_6))


@dataclass(frozen=True, order=True)
class Allowed:
    """A destination that may be reached although it is this machine's or in a private range."""

    network: str  #: an address is a network of one
    port: int = 0  #: 0: all of it
    protocol: str = ""  #: tcp or udp; empty with port 0

    @property
    def version(self) -> int:
        return ipaddress.ip_network(self.network).version

    def __str__(self) -> str:
        network = ipaddress.ip_network(self.network)
        address = str(network.network_address) if network.num_addresses == 1 else str(network)
        if not self.port:
            return address
        return f"{f'[{address}]' if self.version == 6 else address}:{self.port}/{self.protocol}"


def parse(text: str) -> Allowed:
    """Parse `10.1.2.3:5432/tcp`, `10.1.2.3:5432` (the same), `10.1.0.0/16`, `[fd00::1]:636` or `fd00::/64`.

    Raises ValueError with the reason.
    """
    text = text.strip()
    try:
        return Allowed(str(ipaddress.ip_network(text)))
    except ValueError:
        pass
    found = _ENTRY.fullmatch(text)
    try:
        network = ipaddress.ip_network((found["six"] or found["four"]) if found else "")
    except ValueError as error:
        raise ValueError(f"{text!r} is not an address, such as 10.1.2.3:5432/tcp, [fd00::1]:636 or 10.1.0.0/16") from error
    assert found
    if network.version != (6 if found["six"] else 4):
        raise ValueError(f"{text!r}: write an IPv6 address with a port in brackets, and no other address")
    port = int(found["port"] or 0)
    if found["port"] and not 0 < port < 65536:
        raise ValueError(f"{text!r}: invalid port: expected a number from 1 to 65535")
    return Allowed(str(network), port, (found["protocol"] or "tcp") if port else "")


def allowed(lines: Iterable[str]) -> list[Allowed]:
    """The destinations that an enrolment's lines allow. Other and invalid lines allow nothing."""
    found = set()
    for line in lines:
        if line.strip().startswith(ALLOWS):
            try:
                found.add(parse(line.strip().removeprefix(ALLOWS)))
            except ValueError:
                continue
    return sorted(found)


def group(entries: Sequence[Allowed]) -> str:
    """Four digits shared by exactly the bridges with these allowances."""
    if not entries:
        return NOTHING
    digest = hashlib.sha256("\n".join(map(str, sorted(entries))).encode()).hexdigest()
    return next(part for start in range(0, 60, 4) if (part := digest[start : start + 4]) != NOTHING)


def network(stack: str) -> str:
    return f"{stack}_{_KEY}"


def bridge(stack: str, lines: Iterable[str] = ()) -> str:
    """The name of the bridge of a run's stack on this machine."""
    return f"{PREFIX}{group(allowed(lines))}{hashlib.sha256(stack.encode()).hexdigest()[:6]}"


def make(stack: str, labels: Mapping[str, str], lines: Iterable[str] = ()) -> bool:
    """Create the network of a run, unless it exists. Returns whether there is one: not if the Swarm has several machines.

    There each machine would need the template beforehand, and tasks would not start on one without it. Raises DeployError.
    """
    if nodes() != 1:
        return False
    name, known = network(stack), {str(one["Name"]): one for one in inspect("network", [GATEWAY, network(stack)])}
    if name in known:
        return True
    options = {_NAME_OPTION: bridge(stack, lines)}
    if mtu := ((known.get(GATEWAY) or {}).get("Options") or {}).get(_MTU_OPTION):
        options[_MTU_OPTION] = str(mtu)
    # The Swarm has a network of this machine's only by way of a template, which alone can have labels.
    chosen = [
        *(f"--label={key}={text}" for key, text in labels.items()),
        *(f"--opt={key}={text}" for key, text in options.items()),
    ]
    _create("--config-only", *chosen, name + _TEMPLATE)
    _create("--scope=swarm", "--driver=bridge", f"--config-from={name}{_TEMPLATE}", name)
    return True


def _create(*arguments: str) -> None:
    done = call("network", "create", *arguments)
    if done.returncode and not _EXISTS.search(done.stderr):
        raise DeployError("tool_failed", f"docker network create: {last_line(done.stderr)}")


def attach(document: dict[str, Any], stack: str) -> None:
    """Route the services of a stack's document over its own bridge, except those that are on internal networks only."""
    networks = document["networks"]
    for service in document["services"].values():
        own = service.get("networks") or {"default": None}
        if any(not (networks.get(key) or {}).get("internal") for key in own):
            service["networks"] = {**own, _KEY: None}
            networks[_KEY] = {"external": True, "name": network(stack)}


def removable(ids: Sequence[str]) -> list[str]:
    """Those of these networks (which have our labels) that can be removed now.

    If the template of a run's network is among them, the network itself, which has no labels in the Swarm, is removed first. The
    template must stay until that is gone: nobody would find it again.
    """
    found = list(ids)
    for template in inspect("network", ids):
        name = str(template["Name"])
        if not template.get("ConfigOnly") or not name.endswith(_KEY + _TEMPLATE):
            continue
        for made in inspect("network", [name.removesuffix(_TEMPLATE)]):
            if (made.get("ConfigFrom") or {}).get("Network") != name:
                continue
            try:
                remove("network", str(made["Id"]))
            except DeployError:
                found = [ident for ident in found if not str(template["Id"]).startswith(ident)]
    return found


def removal(stack: str) -> str:
    """The command that removes what `make` created, if it did, as soon as nothing uses it."""
    name = network(stack)
    gone = f"while docker network inspect {name}{_TEMPLATE}; do docker network rm {name}{_TEMPLATE} || sleep 2; done"
    return f"{{ docker network rm {name}; {gone}; }} >/dev/null 2>&1"
