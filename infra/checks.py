"""doctor's lines on the machine that runs recipes: Docker with its Swarm, the sandbox, and the kernel's own limits."""

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
from infra.deployers import sandbox
from infra.deployers.base import DeployError
from infra.deployers.docker_cli import LABEL_RUN, reader_problem
from infra.deployers.engine import inspect, listed, swarm_problem

DOCKER_SECONDS = 15.0
INIT = "docker swarm init --advertise-addr 127.0.0.1"
SYSCTL = Path("/proc/sys")
#: Limits that a run's containers share with the whole machine, or with each process of the same uid, root's too; and how many
#: bytes one of each takes at least. The kernel counts those to the container's memory, which is the limit where these are high.
SHARED = {
    "fs.inotify.max_user_instances": 512,
    "fs.inotify.max_user_watches": 64,
    "fs.epoll.max_user_watches": 128,
    "fs.aio-max-nr": 64,
    "fs.file-max": 128,
}
_MOST = 2**31 - 1  # that inotify's can be


def check_docker() -> Iterable[Finding]:
    """Whether recipes can be deployed on a Swarm here; how bad it is when not depends on CC_CI_DEPLOYER."""
    name = settings.CC_CI.deployer
    if name == "process":
        return [Finding("docker", "ok", "not needed: CC_CI_DEPLOYER is process")]
    level: Level = "error" if name == "swarm" else "warning"
    rest = "" if name == "swarm" else "; only recipes that run as plain processes can be tested"
    if not shutil.which("docker"):
        return [Finding("docker", level, f"there is no docker on this machine{rest}", "apt-get install docker.io")]
    try:
        asked = subprocess.run(
            ["docker", "info", "--format", "{{json .}}"], capture_output=True, text=True, timeout=DOCKER_SECONDS
        )
        info = json.loads(asked.stdout or "{}")
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return [Finding("docker", level, f"docker does not answer: {error}{rest}", "systemctl restart docker")]
    problems = [*(info.get("ServerErrors") or []), *asked.stderr.strip().splitlines()[-1:]]
    if asked.returncode or info.get("ServerErrors"):
        why = " ".join(dict.fromkeys(problems)) or f"docker info ended with {asked.returncode}"
        fix = "usermod -aG docker $USER" if "permission denied" in why else "systemctl start docker"
        return [Finding("docker", level, f"docker does not answer: {why}{rest}", fix)]
    swarm = info.get("Swarm") or {}
    if swarm.get("LocalNodeState") != "active":
        return [Finding("docker", level, f"docker has no active Swarm ({swarm.get('LocalNodeState') or 'inactive'}){rest}", INIT)]
    if not swarm.get("ControlAvailable"):
        text = f"this machine is a worker of its Swarm, and only a manager can deploy{rest}"
        return [Finding("docker", level, text, f"on a manager: docker node promote {swarm.get('NodeID', 'NODE')}")]
    if problem := reader_problem():
        return [Finding("docker", level, f"{problem.text[0].lower()}{problem.text[1:].rstrip('.')}{rest}", problem.fix)]
    return [Finding("docker", "ok", f"Docker {info.get('ServerVersion', '')} with a Swarm that this machine manages")]


def check_networks() -> Iterable[Finding]:
    """Whether runs share a network with anything that is no run: a run's services would be known by their names there."""
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
        yield Finding("networks", "warning", f"the networks of runs could not be looked at: {error}", "see Docker's log")
        return
    if not shared:
        yield Finding("networks", "ok", "no run shares a network with anything else")
    for ident, name in shared.items():
        text = f"on the network {name} runs ({_some(runs[ident])}) stand beside other services ({_some(others[ident])})"
        fix = "let the runs end, or docker service rm them: runs of this version have networks of their own"
        yield Finding("networks", "warning", text, fix)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def check_sandbox() -> Iterable[Finding]:
    """Whether a recipe's code can be kept apart: without that, only trusted people's runs are taken."""
    available = sandbox.available()
    if not available.ok:
        return [Finding("sandbox", "error", f"{available.reason} Strangers' code is not run.", available.fix)]
    lacking = [Finding("sandbox", "warning", text, fix) for text, fix in sandbox.lacking()]
    return lacking or [Finding("sandbox", "ok", "bubblewrap with a uid of its own for each run")]


def check_kernel_limits() -> Iterable[Finding]:
    """Whether a run could use up what the kernel has one of for all, before it meets the limit on its memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted, low = {}, []
    for name, size in SHARED.items():
        with suppress(OSError, ValueError):  # a kernel without it has nothing to use up
            now = int((SYSCTL / name.replace(".", "/")).read_text())
            wanted[name] = max(now, enough(memory, size))
            low += [f"{name} ({now})"] if now < wanted[name] else []
    if not low:
        return [Finding("kernel limits", "ok", "a run meets the limit on its memory before any that it shares with this machine")]
    text = f"a run can use up, within its memory, what all on this machine share: {', '.join(low)}"
    lines = " ".join(f"{name}={value}" for name, value in wanted.items())
    return [Finding("kernel limits", "warning", text, f"printf '%s\\n' {lines} > /etc/sysctl.d/90-cc-ci.conf && sysctl --system")]


def enough(memory: int, size: int) -> int:
    """How many of what takes `size` bytes no more than this memory can hold: a power of two, or the most that can be set."""
    return min(1 << (memory // size).bit_length(), _MOST)
