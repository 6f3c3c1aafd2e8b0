"""Address usage of the Swarm's networks. Without a free address tasks stay *New* or *Preparing*, without an error."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from infra.deployers.docker.api import has_ended, inspect, listed

#: The network's own, its gateway's and the one for all.
_SET_ASIDE = 3


@dataclass(frozen=True)
class Use:
    """How much of an overlay network is used."""

    name: str
    subnet: str  #: `10.0.1.0/24`
    size: int  #: addresses for services and tasks
    used: int
    stacks: frozenset[str] = frozenset()  #: whose services are on it

    @property
    def full(self) -> bool:
        return self.used >= self.size

    def __str__(self) -> str:
        return f"{self.name} ({self.subnet}, {self.used} of {self.size} addresses in use)"


def uses(networks: Collection[str] = ()) -> list[Use]:
    """The usage of these overlay networks, by id or name; of all if none is given. Raises DeployError."""
    found = inspect("network", sorted(networks)) if networks else listed("network")
    overlays = [one for one in found if one.get("Driver") == "overlay" and one.get("Scope") == "swarm"]
    return counted(overlays, listed("service"), listed("task")) if overlays else []


def counted(
    networks: Iterable[Mapping[str, Any]], services: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]]
) -> list[Use]:
    """The usage of networks, from what Docker reports of them, of all services and of all tasks. Pure.

    A service takes one address for its name (a virtual address), each of its tasks one, and each node one for all of them.
    """
    by_id = {str(service["ID"]): service for service in services}
    found = []
    for network in networks:
        subnet, size = _size(network)
        if not size:
            continue
        ident, on, nodes = str(network["Id"]), set(), set()
        used = 0
        for service in services:
            own = [ip for ip in (service.get("Endpoint") or {}).get("VirtualIPs") or [] if ip.get("NetworkID") == ident]
            used += sum(bool(ip.get("Addr")) for ip in own)
            asked = (service["Spec"].get("TaskTemplate") or {}).get("Networks") or []
            if own or any(one.get("Target") in (ident, network["Name"]) for one in asked):
                on.add(_stack(service))
        for task in tasks:
            held = [one for one in task.get("NetworksAttachments") or [] if (one.get("Network") or {}).get("ID") == ident]
            if held and not has_ended(task):  # else it has given its addresses back
                used += sum(len(one.get("Addresses") or []) for one in held)
                nodes |= {str(node)} if (node := task.get("NodeID")) else set()  # it has one before it has a node
                on |= {_stack(by_id[task["ServiceID"]])} if task.get("ServiceID") in by_id else set()
        found.append(Use(str(network["Name"]), subnet, size, used + len(nodes), frozenset(on)))
    return found


def _stack(service: Mapping[str, Any]) -> str:
    return str((service["Spec"].get("Labels") or {}).get("com.docker.stack.namespace") or service["Spec"].get("Name"))


def _size(network: Mapping[str, Any]) -> tuple[str, int]:
    """A network's IPv4 ranges, and how many addresses they have for services and tasks."""
    ranges, size = [], 0
    for config in (network.get("IPAM") or {}).get("Config") or []:
        with suppress(ValueError):
            subnet = ipaddress.ip_network(str(config.get("Subnet")), strict=False)
            if subnet.version == 4:
                ranges.append(str(subnet))
                size += max(subnet.num_addresses - _SET_ASIDE, 0)
    return ", ".join(ranges), size
