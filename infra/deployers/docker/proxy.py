"""The server's reverse proxy on the networks of runs: which containers it consists of, and how they join and leave.

A run's services are not on the network `proxy`, where they would answer to the names of other stacks' services. Instead the
run has its own network, which the proxy's containers on this machine join for the duration of the run.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from infra.deployers.docker.api import inspect, listed, prune_networks
from infra.deployers.docker.cli import call, last_line
from infra.deployers.errors import DeployError

NETWORK = "proxy"
_BRIDGE = "docker_gwbridge"
_LABEL_STACK = "com.docker.stack.namespace"
_LABEL_SERVICE = "com.docker.swarm.service.id"
_CONTAINER = re.compile(r"[0-9a-f]{64}")
_JOINED = re.compile(r"already exists in network|already attached|already connected", re.IGNORECASE)
_TAKEN = re.compile(r"already in use|already allocated", re.IGNORECASE)
_NOT_HERE = re.compile(r"network \S+ not found|no such network", re.IGNORECASE)
#: How many of the last addresses of a network are tried.
_ADDRESSES = 16
_TRIES = 3
_PAUSE = 0.3
_SECONDS = 10.0


def containers(url: str) -> list[str]:
    """The ids of the running containers on this machine that are the proxy behind `url`.

    Those are the containers on the network `proxy` that have the URL's host as their address on docker_gwbridge; if there are
    none, those that publish the URL's port.
    """
    return [str(container["Id"]) for container in _proxies(url, inspect("network", [NETWORK, _BRIDGE]))]


def join(networks: Sequence[str], url: str) -> list[str]:
    """Connect the proxy to these networks. Returns the ids of its containers that are now on all of them.

    Can be called repeatedly, which is cheap when there is nothing to do. Containers that are gone are left out, and so is a
    Swarm task as long as none of the networks' services has a task on this machine: until then Docker here knows the network
    only by name. Raises DeployError if Docker refuses, or if there is no such network.
    """
    for attempt in range(_TRIES):
        seen = inspect("network", [NETWORK, _BRIDGE, *networks])
        known = {str(network[key]): network for network in seen for key in ("Name", "Id")}
        if missing := [name for name in networks if name not in known]:
            raise DeployError("tool_failed", f"docker network connect: network {missing[0]} not found")
        found = _proxies(url, seen)
        joined = [str(one["Id"]) for one in found if False not in [_connect(one, known[name]) for name in networks]]
        # A task that was replaced just now has a successor.
        if len(joined) == len(found) or attempt == _TRIES - 1 or all(_runs(str(one["Id"])) for one in found):
            return joined
        time.sleep(_PAUSE)
    return []


def leave(networks: Sequence[str]) -> None:
    """Disconnect everything that is not of their own stack from these networks (names or ids), so that they can be removed.

    Call it before the stack's services are removed, and again as long as a network exists: if the last of its own containers
    goes while the proxy is still on it, the Swarm gives up removing the network from this machine and never retries. What is
    left then is cleared here. Raises DeployError only if Docker does not answer.
    """
    for network in inspect("network", networks):
        stack, name, ident = _labels(network).get(_LABEL_STACK, ""), str(network["Name"]), str(network["Id"])
        # Also those that are stopped: they could never be started again after the network is gone.
        there = listed("container", network=[ident, name])
        foreign = [str(one["Id"]) for one in there if not stack or (one.get("Labels") or {}).get(_LABEL_STACK) != stack]
        for container in foreign:
            call("network", "disconnect", "--force", ident, container)
        if network.get("Containers") and not _inhabited(network, foreign):
            _clear(ident, wait=not foreign)


def _proxies(url: str, networks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Like `containers`, inspected, given the inspected networks `proxy` and docker_gwbridge."""
    attached = {str(network["Name"]): network.get("Containers") or {} for network in networks}
    on_proxy = [key for key in attached.get(NETWORK, {}) if _CONTAINER.fullmatch(key)]
    parts = urlsplit(url)
    if not on_proxy or not parts.hostname:
        return []
    bridged = attached.get(_BRIDGE, {})
    here = [key for key in on_proxy if parts.hostname in _addresses(bridged.get(key) or {})]
    running = [container for container in inspect("container", here or on_proxy) if container["State"]["Running"]]
    if here:
        return running
    port = parts.port or (443 if parts.scheme == "https" else 80)
    services = {_labels(container["Config"]).get(_LABEL_SERVICE, "") for container in running}
    publishing = {
        str(service["ID"])
        for service in inspect("service", sorted(services - {""}))
        if any(_publishes(entry, port) for entry in (service.get("Endpoint") or {}).get("Ports") or [])
    }
    return [
        container
        for container in running
        if _labels(container["Config"]).get(_LABEL_SERVICE) in publishing or port in _bound(container)
    ]


def _publishes(entry: Mapping[str, Any], port: int) -> bool:
    """Whether a service publishes its port under this number, and not just on the machines of its tasks."""
    return entry.get("PublishedPort") == port and entry.get("Protocol", "tcp") == "tcp" and entry.get("PublishMode") != "host"


def _bound(container: Mapping[str, Any]) -> set[int]:
    """The TCP ports of this machine that lead to a container."""
    ports = (container.get("NetworkSettings") or {}).get("Ports") or {}
    bindings = [binding for key, found in ports.items() if key.endswith("/tcp") for binding in found or []]
    return {int(binding["HostPort"]) for binding in bindings if str(binding.get("HostPort", "")).isdecimal()}


def _addresses(endpoint: Mapping[str, Any]) -> set[str]:
    found = (str(endpoint.get(key) or "").partition("/")[0] for key in ("IPv4Address", "IPv6Address"))
    return {address for address in found if address}


def _labels(item: Mapping[str, Any]) -> dict[str, str]:
    return item.get("Labels") or {}


def _connect(container: Mapping[str, Any], network: Mapping[str, Any]) -> bool:
    """Connect a container to a network. Returns whether it is on it now. Raises DeployError."""
    ident, name = str(container["Id"]), str(network["Name"])
    if ident in (network.get("Containers") or {}):
        return True
    message, until = "", time.monotonic() + _SECONDS
    for attempt in range(_TRIES):
        time.sleep(_PAUSE if attempt else 0)
        for options in _options(container, network):
            done = call("network", "connect", *options, str(network["Id"]), ident)
            message = last_line(done.stderr)
            # Somebody may have been quicker. What is connected already is never connected again on purpose: Docker refuses, but
            # forgets the settings of the first time.
            if not done.returncode or _JOINED.search(message):
                return True
            if not _TAKEN.search(message):
                break
        if not _runs(ident):
            return False
        now = inspect("network", [name])
        if now and ident in (now[0].get("Containers") or {}):
            return True
        if now and _NOT_HERE.search(message) and not now[0].get("Containers"):
            return False
        if not now or time.monotonic() > until:
            break
    raise DeployError("tool_failed", f"docker network connect: {message}", f"See the Docker daemon's log for the network {name}.")


def _options(container: Mapping[str, Any], network: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """The options to connect with. A task needs an explicit address.

    Docker would give a task the first address that is free on this machine. The Swarm does not know of that, and has often
    assigned it already, as a service's virtual address. It assigns a network's first addresses first, so the last ones are
    free.
    """
    subnets = [str(entry.get("Subnet") or "") for entry in (network.get("IPAM") or {}).get("Config") or []]
    if _LABEL_SERVICE not in _labels(container["Config"]) or not any("." in subnet for subnet in subnets):
        yield ()
        return
    taken = {address for entry in (network.get("Containers") or {}).values() for address in _addresses(entry)}
    for subnet in (ipaddress.IPv4Network(subnet, strict=False) for subnet in subnets if "." in subnet):
        last = int(subnet.broadcast_address)
        for number in range(last - 1, last - 1 - min(_ADDRESSES, subnet.num_addresses // 2), -1):
            if (address := str(ipaddress.IPv4Address(number))) not in taken:
                yield (f"--ip={address}",)


def _runs(container: str) -> bool:
    return any(found["State"]["Running"] for found in inspect("container", [container]))


def _inhabited(network: Mapping[str, Any], foreign: Sequence[str] = ()) -> bool:
    """Whether containers other than these are on a network on this machine. The Swarm's own endpoint does not count."""
    return any(_CONTAINER.fullmatch(key) and key not in foreign for key in network.get("Containers") or {})


def _clear(ident: str, wait: bool) -> None:
    """Remove a network from this machine that the Swarm failed to remove when the last of its own containers went.

    Docker's normal way no longer works: `docker network rm` asks the Swarm, which may not know the network any more. But a
    network without endpoints can be pruned. (`wait`: perhaps the Swarm is about to do it.)
    """
    if wait:
        time.sleep(_PAUSE)
    for network in inspect("network", [ident]):
        if _inhabited(network) or not network.get("Containers"):
            return
        for endpoint in network["Containers"].values():
            call("network", "disconnect", "--force", ident, str(endpoint["Name"]))
        # Without a label this would take every network that is not in use.
        if stack := _labels(network).get(_LABEL_STACK):
            prune_networks([f"{_LABEL_STACK}={stack}"])
