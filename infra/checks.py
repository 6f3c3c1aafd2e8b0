"""doctor's checks of the host that runs recipes: Docker and its Swarm, the sandbox, and kernel limits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from django.conf import settings

from controlplane.registry import Finding, Level
from infra.deployers import messages
from infra.deployers.docker import addresses
from infra.deployers.docker.api import inspect, listed, swarm_problem
from infra.deployers.docker.cli import LABEL_RUN, call, reader_problem
from infra.deployers.errors import DeployError
from infra.deployers.isolation import bubblewrap

DOCKER_SECONDS = 15.0
INIT = "docker swarm init --advertise-addr 127.0.0.1"
SYSCTL = Path("/proc/sys")
IPVS = Path("/proc/net/ip_vs")
#: Limits that a run's containers share with the whole host, or with all processes of the same uid, including root; and how many
#: bytes each object takes at least. The kernel charges them to the container's memory, which is the limit if these are high.
SHARED = {
    "fs.inotify.max_user_instances": 512,
    "fs.inotify.max_user_watches": 64,
    "fs.epoll.max_user_watches": 128,
    "fs.aio-max-nr": 64,
    "fs.file-max": 128,
}
_MOST = 2**31 - 1  # inotify's maximum


def check_docker() -> Iterable[Finding]:
    """Whether recipes can be deployed to a Swarm here; the severity depends on CC_CI_DEPLOYER."""
    name = settings.CC_CI.deployer
    if name == "process":
        return [Finding("docker", "ok", "not needed: CC_CI_DEPLOYER is process")]
    level: Level = "error" if name == "swarm" else "warning"
    rest = "" if name == "swarm" else "; only recipes that run as plain processes can be tested"
    if not shutil.which("docker"):
        return [Finding("docker", level, f"docker is not installed{rest}", "apt-get install docker.io")]
    try:
        asked = call("info", "--format", "{{json .}}", timeout=DOCKER_SECONDS)
        info = json.loads(asked.stdout or "{}")
    except (DeployError, ValueError) as error:
        return [Finding("docker", level, f"docker does not respond: {str(error).rstrip('.')}{rest}", "systemctl restart docker")]
    problems = [*(info.get("ServerErrors") or []), *asked.stderr.strip().splitlines()[-1:]]
    if asked.returncode or info.get("ServerErrors"):
        why = " ".join(dict.fromkeys(problems)) or f"docker info exited with {asked.returncode}"
        fix = "usermod -aG docker $USER" if "permission denied" in why else "systemctl start docker"
        return [Finding("docker", level, f"docker does not respond: {why}{rest}", fix)]
    swarm = info.get("Swarm") or {}
    if swarm.get("LocalNodeState") != "active":
        return [Finding("docker", level, f"docker has no active Swarm ({swarm.get('LocalNodeState') or 'inactive'}){rest}", INIT)]
    if not swarm.get("ControlAvailable"):
        text = f"this host is a Swarm worker, and only a manager can deploy{rest}"
        return [Finding("docker", level, text, f"on a manager: docker node promote {swarm.get('NodeID', 'NODE')}")]
    if problem := reader_problem():
        return [Finding("docker", level, f"{problem.text[0].lower()}{problem.text[1:].rstrip('.')}{rest}", problem.fix)]
    return [Finding("docker", "ok", f"Docker {info.get('ServerVersion', '')}, manager of an active Swarm")]


def check_networks() -> Iterable[Finding]:
    """Whether runs share a network with other services, which could then resolve a run's services by name."""
    if settings.CC_CI.deployer == "process" or swarm_problem():
        return
    runs: dict[str, set[str]] = {}
    others: dict[str, set[str]] = {}
    try:
        services = listed("service")
        for service in services:
            spec = service["Spec"]
            into = runs if (spec.get("Labels") or {}).get(LABEL_RUN) else others
            for network in (spec.get("TaskTemplate") or {}).get("Networks") or []:
                into.setdefault(str(network.get("Target")), set()).add(str(spec["Name"]))
        shared = {str(one["Id"]): str(one["Name"]) for one in inspect("network", sorted(runs.keys() & others.keys()))}
    except DeployError as error:
        yield Finding("networks", "warning", f"cannot inspect the runs' networks: {error}", "see Docker's log")
        return
    if not shared:
        yield Finding("networks", "ok", "no run shares a network with other services")
    for ident, name in shared.items():
        text = f"runs ({_some(runs[ident])}) share the network {name} with other services ({_some(others[ident])})"
        fix = "wait for the runs to end, or remove them with docker service rm: runs of this version have their own networks"
        yield Finding("networks", "warning", text, fix)


def check_addresses() -> Iterable[Finding]:
    """Whether the apps' shared networks have free addresses: without one, Docker starts no task and reports nothing."""
    if settings.CC_CI.deployer == "process" or swarm_problem():
        return
    try:
        shared = [one for one in addresses.uses() if len(one.stacks) > 1 or one.name == "proxy"]
    except DeployError as error:
        yield Finding("addresses", "warning", f"cannot inspect the Swarm's networks: {error}", "see Docker's log")
        return
    # Docker creates `ingress` itself, and only published ports need it: reported when it fills up.
    small = [one for one in shared if one.size <= SMALL_NETWORK and (one.name != "ingress" or one.used * 2 > one.size)]
    for network in small:
        level: Level = "error" if network.full else "warning"
        text = f"the network {network}, shared by apps, is small: each app takes an address per service and per task"
        yield Finding("addresses", level, text, messages.ROOM_ON_NETWORK.replace("NAME", network.name))
    if not small:
        yield Finding("addresses", "ok", "the apps' shared networks have free addresses")


#: Docker's default network size (a /24). It is full with about a hundred services.
SMALL_NETWORK = 254


def check_service_addresses() -> Iterable[Finding]:
    """Whether the services of a stack reach one another by name: Docker forwards a service's address with the kernel's IPVS."""
    if settings.CC_CI.deployer == "process" or swarm_problem():
        return
    modprobe = shutil.which("modprobe", path="/usr/sbin:/sbin")
    # Docker loads the module only when it needs it.
    if IPVS.exists() or (
        modprobe and subprocess.run([modprobe, "-n", "-q", "ip_vs"], check=False, timeout=DOCKER_SECONDS).returncode == 0
    ):
        yield Finding("service addresses", "ok", "the kernel has IPVS")
        return
    text = "the kernel has no IPVS, so services do not reach one another by name, and recipes with a database fail"
    yield Finding("service addresses", "warning", text, "modprobe ip_vs, or use a kernel with CONFIG_IP_VS")


def _some(names: Iterable[str]) -> str:
    return messages.some(sorted(names), 3)


def check_sandbox() -> Iterable[Finding]:
    """Whether recipe code can be isolated; without a sandbox, only trusted people's runs are accepted."""
    available = bubblewrap.available()
    if not available.ok:
        return [Finding("sandbox", "error", f"{available.reason} Strangers' code is not run.", available.fix)]
    lacking = [Finding("sandbox", "warning", text, fix) for text, fix in bubblewrap.lacking()]
    return lacking or [Finding("sandbox", "ok", "bubblewrap with a separate uid for each run")]


def check_kernel_limits() -> Iterable[Finding]:
    """Whether a run could exhaust a kernel-wide limit before it reaches its own memory limit."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted, low = {}, []
    for name, size in SHARED.items():
        with suppress(OSError, ValueError):  # a kernel without it has nothing to exhaust
            now = int((SYSCTL / name.replace(".", "/")).read_text())
            wanted[name] = max(now, enough(memory, size))
            low += [f"{name} ({now})"] if now < wanted[name] else []
    if not low:
        return [Finding("kernel limits", "ok", "a run reaches its memory limit before any limit it shares with this host")]
    text = f"before a run reaches its memory limit, it can exhaust limits that this whole host shares: {', '.join(low)}"
    lines = " ".join(f"{name}={value}" for name, value in wanted.items())
    return [Finding("kernel limits", "warning", text, f"printf '%s\\n' {lines} > /etc/sysctl.d/90-cc-ci.conf && sysctl --system")]


def enough(memory: int, size: int) -> int:
    """How many objects of `size` bytes fit into this memory at most: a power of two, up to the largest allowed value."""
    return min(1 << (memory // size).bit_length(), _MOST)
