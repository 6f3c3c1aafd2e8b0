"""Turns what Docker and Swarm say about a task into words for people. Pure.

The phrases are those of Docker 20.10 to 28: swarmkit's `manager/scheduler/filter.go` and Docker's own errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.deployers.base import DeployError, Kind
from infra.deployers.docker_cli import away

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
    """A failure that is understood."""

    kind: Kind
    message: str
    fix: str
    times: int  #: so many failures of this kind are needed

    def error(self, words: str = "") -> DeployError:
        return DeployError(self.kind, f"{self.message}{words}", self.fix)


def failure(service: str, error: str, spec: Mapping[str, Any], out_of_memory: bool = False) -> Trouble | None:
    """A failed task, by its error and its service's spec; None when it says no more than that it failed."""
    if any(word in error for word in _MISSING):
        return Trouble("image_missing", f"The image of {service} is missing: {error}.", "Check its name and tag.", 1)
    if _PORT_TAKEN.search(error):
        return Trouble(
            "port_taken", f"A port of {service} is taken on this machine{_ports(spec, error)}: {error}.", _FREE_PORT, 2
        )
    if _NO_ADDRESSES.search(error):
        message = f"This machine's Docker has no range of addresses left for the network of a run: {error}."
        fix = "Remove what nobody uses (docker network prune), or set default-address-pools in /etc/docker/daemon.json."
        return Trouble("tool_failed", message, fix, 1)
    limit = memory_limit(spec)
    # Swarm kills what is unhealthy with 137 as well, and says so.
    if out_of_memory or (limit and "(137)" in error and "unhealthy" not in error):
        most = f"more than its limit of {megabytes(limit)}" if limit else "more memory than there is"
        message = f"The service {service} ran out of memory: it wanted {most}, so the kernel killed it."
        return Trouble("out_of_memory", message, "Raise deploy.resources.limits.memory, or give the app less to do.", 2)
    if match := _NO_PROGRAM.search(error):
        program = match[1].replace("\\", "").strip('"')
        reason = "may not be run" if "permission" in match[2] else "is not in its image"
        message = f"The service {service} cannot be started: its command {program!r} {reason}."
        return Trouble("exits", message, "Check `command`, `entrypoint` and the image's tag.", 1)
    return None


_FREE_PORT = "Stop what has it, or publish another one."


def pending(service: str, error: str, spec: Mapping[str, Any]) -> Trouble | None:
    """A task that no node takes, by the scheduler's words; None while it is merely new."""
    if "no suitable node" not in error:
        return None
    if _PORT_TAKEN.search(error):
        return Trouble("port_taken", f"A port of {service} is taken on every node{_ports(spec, '')}: {error}.", _FREE_PORT, 1)
    if "constraints" in error:
        wanted = ", ".join(((spec.get("TaskTemplate") or {}).get("Placement") or {}).get("Constraints") or [])
        said = f"No node of the swarm is what {service} asks for{f' ({wanted})' if wanted else ''}: {error}."
        return Trouble("no_node", said, "Take out deploy.placement.constraints, or label a node.", 1)
    if "insufficient resources" in error:
        wanted = _reserved(spec)
        said = f"No node of the swarm has free what {service} reserves{f' ({wanted})' if wanted else ''}: {error}."
        return Trouble("no_node", said, "Lower deploy.resources.reservations, or run fewer things at once.", 1)
    return Trouble("no_node", f"No node of the swarm takes {service}: {error}.", "See `docker node ls`.", 1)


def refused(said: str) -> DeployError:
    """Why `docker stack deploy` would not have a recipe, by the last line of its errors."""
    if "only updates to Labels are allowed" in said:
        return DeployError(
            "config_immutable",
            f"A config or secret changed under its old name: {said}.",
            "Raise its version in abra.sh: configs cannot be changed in place.",
        )
    if _PORT_TAKEN.search(said):
        return DeployError("port_taken", f"A published port is taken: {said}.", _FREE_PORT)
    if 'network "proxy" is declared as external' in said:
        fix = "Run `docker network create --driver=overlay proxy`, or empty CC_CI_PROXY_URL."
        return DeployError("tool_missing", "The server's proxy has no network here: there is no overlay network proxy.", fix)
    if away(said):  # it says nothing against the recipe
        return DeployError("tool_failed", f"docker stack deploy: {said}.", "See Docker's log.")
    return DeployError("invalid_recipe", f"Docker refuses the recipe: {said}.", "Check compose.yml.")


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
    """The published numbers that a spec asks for, unless the error names its own."""
    ports = [str(p["PublishedPort"]) for p in (spec.get("EndpointSpec") or {}).get("Ports") or [] if p.get("PublishedPort")]
    return f" ({', '.join(ports)})" if ports and not re.search(r":\d+", error) else ""
