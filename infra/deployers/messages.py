"""Turns Docker's and Swarm's messages about a task into errors for people. Pure.

The phrases are those of Docker 20.10 to 28: swarmkit's `manager/scheduler/filter.go` and Docker's own errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.deployers.docker.addresses import Use
from infra.deployers.docker.cli import away
from infra.deployers.errors import DeployError, Kind

_MISSING = ("No such image", "pull access denied", "manifest unknown", "manifest for", "repository does not exist")
_PORT_TAKEN = re.compile(
    r"port is already allocated|address already in use|host-mode port already in use|already in use by service"
)
_NO_ADDRESSES = re.compile(r"non-overlapping IPv4 address pool|predefined address pools have been fully subnetted")
_NO_PROGRAM = re.compile(
    r'exec: ("[^"\n]{0,300}"|\\"[^"\n]{0,300}"|\S{1,300}): '
    r"(executable file not found|stat [^:\n]{1,300}: no such file|permission denied)"
)


@dataclass(frozen=True)
class Trouble:
    """A failure whose cause is known."""

    kind: Kind
    message: str
    fix: str
    times: int  #: so many failures of this kind are needed

    def error(self, text: str = "") -> DeployError:
        return DeployError(self.kind, f"{self.message}{text}", self.fix)


def failure(service: str, error: str, spec: Mapping[str, Any], out_of_memory: bool = False) -> Trouble | None:
    """The cause of a failed task, from its error and its service's spec; None if the error only says that it failed."""
    if any(word in error for word in _MISSING):
        return Trouble("image_missing", f"The image of {service} is missing: {error}.", "Check its name and tag.", 1)
    if _PORT_TAKEN.search(error):
        return Trouble(
            "port_taken", f"A port of {service} is already in use on this host{_ports(spec, error)}: {error}.", _FREE_PORT, 2
        )
    if _NO_ADDRESSES.search(error):
        message = f"Docker on this host has no address range left for a run's network: {error}."
        fix = "Remove unused networks (docker network prune), or set default-address-pools in /etc/docker/daemon.json."
        return Trouble("tool_failed", message, fix, 1)
    if "no space left on device" in error and "non-zero exit" not in error:
        return Trouble("disk_full", f"Docker's disk is full, so {service} could not be started: {error}.", DISK_FULL, 1)
    limit = memory_limit(spec)
    if out_of_memory:  # 137 alone says only that something killed it
        most = f"more than its limit of {megabytes(limit)}" if limit else "more memory than is available"
        message = f"The service {service} ran out of memory: it needed {most}, so the kernel killed it."
        return Trouble("out_of_memory", message, "Raise deploy.resources.limits.memory, or make the app use less memory.", 2)
    if match := _NO_PROGRAM.search(error):
        program = match[1].replace("\\", "").strip('"')
        reason = "is not executable" if "permission" in match[2] else "is not in its image"
        message = f"The service {service} cannot be started: its command {program!r} {reason}."
        return Trouble("exits", message, "Check `command`, `entrypoint` and the image's tag.", 1)
    return None


#: What helps where Docker's disk is full.
DISK_FULL = "Free disk space where Docker keeps its data (see docker system df), and start the run again."
_FREE_PORT = "Stop whatever uses it, or publish another port."


def pending(service: str, error: str, spec: Mapping[str, Any]) -> Trouble | None:
    """Why no node accepts a task, from the scheduler's message; None while it is merely new."""
    if "no suitable node" not in error:
        return None
    if _PORT_TAKEN.search(error):
        return Trouble(
            "port_taken", f"A port of {service} is already in use on every node{_ports(spec, '')}: {error}.", _FREE_PORT, 1
        )
    if "not available for new tasks" in error:  # it may be the very one that the constraints ask for
        message = f"A node of the swarm is down or unavailable for tasks, and no other node can run {service}: {error}."
        return Trouble("no_node", message, "See `docker node ls`: start the node again, or set its availability to active.", 1)
    if "constraints" in error:
        wanted = ", ".join(((spec.get("TaskTemplate") or {}).get("Placement") or {}).get("Constraints") or [])
        message = f"No node of the swarm meets the constraints of {service}{f' ({wanted})' if wanted else ''}: {error}."
        return Trouble("no_node", message, "Remove deploy.placement.constraints, or label a node.", 1)
    if "insufficient resources" in error:
        wanted = _reserved(spec)
        message = (
            f"No node of the swarm has the free resources that {service} reserves{f' ({wanted})' if wanted else ''}: {error}."
        )
        return Trouble("no_node", message, "Lower deploy.resources.reservations, or run fewer services at once.", 1)
    return Trouble("no_node", f"No node of the swarm can run {service}: {error}.", "See `docker node ls`.", 1)


def unallocated(service: str, stack: str, networks: Sequence[Use]) -> DeployError:
    """The error for a task that Swarm never schedules, usually for lack of an address. `networks`: those of its service."""
    full = [one for one in networks if one.full]
    if own := [one for one in full if one.name.startswith(f"{stack}_")]:
        message = f"No address is left for {service} on the recipe's own network {own[0]}."
        return DeployError("invalid_recipe", message, "Give it a larger subnet under `ipam`, or let Docker choose one.")
    if full:
        message = f"No address is left for {service} on the network {', '.join(map(str, full))}."
        return DeployError("no_address", message, ROOM_ON_NETWORK)
    asked = f" on {', '.join(map(str, networks))}" if networks else ""
    message = f"Swarm does not schedule the task of {service}{asked}: it stays New, and Swarm gives no reason."
    return DeployError("no_address", message, "Check the Docker daemon's log: it may be out of addresses, or hang.")


#: What helps where a shared network is full: its size is chosen when it is made.
ROOM_ON_NETWORK = (
    "Remove unneeded services, or recreate the network with more addresses once nothing uses it: docker network "
    "create --driver=overlay --subnet=10.220.0.0/16 NAME"
)


def refused(message: str, config: tuple[str, str] = ("", "")) -> DeployError:
    """Why `docker stack deploy` refused a recipe, from the last line of its errors.

    `config`: the file of the config that the line names, and the variable with its version; empty if there is none.
    """
    file, variable = config
    if variable and "_: " in message and "invalid name" in message:
        fix = f"Add the line export {variable}=v1 to abra.sh."
        return DeployError("invalid_recipe", f"The name of the config for {file} has no version: {message}.", fix)
    if "only updates to Labels are allowed" in message:
        return DeployError(
            "config_immutable",
            f"{file or 'A config or secret'} changed but kept its name: {message}.",
            f"Raise {variable or 'its version'} in abra.sh: configs cannot be changed in place.",
        )
    if _PORT_TAKEN.search(message):
        return DeployError("port_taken", f"A published port is already in use: {message}.", _FREE_PORT)
    if 'network "proxy" is declared as external' in message:
        fix = "Run `docker network create --driver=overlay proxy`, or clear CC_CI_PROXY_URL."
        return DeployError("tool_missing", "The overlay network proxy, which the server's proxy uses, does not exist here.", fix)
    if away(message):  # it says nothing against the recipe
        return DeployError("tool_failed", f"docker stack deploy: {message}.", "Check the Docker daemon's log.")
    return DeployError("invalid_recipe", f"Docker refuses the recipe: {message}.", "Check compose.yml.")


def memory_limit(spec: Mapping[str, Any]) -> int:
    """The memory limit of a service's spec in bytes; 0 without one."""
    limits = ((spec.get("TaskTemplate") or {}).get("Resources") or {}).get("Limits") or {}
    return int(limits.get("MemoryBytes") or 0)


def megabytes(number: int) -> str:
    return f"{number / (1 << 20):.0f} MB"


def _reserved(spec: Mapping[str, Any]) -> str:
    wanted = ((spec.get("TaskTemplate") or {}).get("Resources") or {}).get("Reservations") or {}
    parts = []
    if memory := int(wanted.get("MemoryBytes") or 0):
        parts.append(f"{megabytes(memory)} of memory")
    if cpus := int(wanted.get("NanoCPUs") or 0):
        parts.append(f"{cpus / 1e9:g} CPUs")
    return " and ".join(parts)


def _ports(spec: Mapping[str, Any], error: str) -> str:
    """The published ports in a spec, unless the error names its own."""
    ports = [str(p["PublishedPort"]) for p in (spec.get("EndpointSpec") or {}).get("Ports") or [] if p.get("PublishedPort")]
    return f" ({', '.join(ports)})" if ports and not re.search(r":\d+", error) else ""


def log_end(lines: str) -> str:
    """The end of a log as a sentence of a message: cut, since a line may be of any length. Empty without a log."""
    return quoted("Last log lines", lines, 500) if lines else ""


def quoted(what: str, text: str, most: int) -> str:
    """The end of what a program printed, as a sentence of a message: in quotes, for another sentence may follow.

    It is cut between words: half a secret would not be known as one.
    """
    if len(text) > most:
        text = "… " + re.sub(r"\A\S*\s+", "", text[-most:])
    return f' {what}: "{text}".'


def some(names: Sequence[str], most: int) -> str:
    """The first of these names, and the number of the others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
