"""Whether an app is healthy: the state of its services in Swarm, and its probes. Uses neither Django nor Docker."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from infra.config.schema import Check
from infra.deployers.errors import DeployError
from infra.deployers.probe import probe
from infra.deployers.swarm.persistent import PersistentDeployer, ServiceState


@dataclass(frozen=True)
class Sample:
    """One result of one probe."""

    name: str
    ok: bool
    said: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ask(deployer: PersistentDeployer, checks: Sequence[Check], domain: str) -> list[Sample]:
    """Run all probes once; takes at most the sum of their timeouts."""
    return [_ask(deployer, check, domain) for check in checks]


def name_of(check: Check) -> str:
    what = check.http or check.tcp or f"{' '.join(check.command)} in {check.service}"
    return f"{check.kind} {what}"[:200]


def _ask(deployer: PersistentDeployer, check: Check, domain: str) -> Sample:
    try:
        problem = {"http": _http, "tcp": _tcp, "command": _command}[check.kind](deployer, check, domain)
    except (DeployError, OSError) as error:
        problem = str(error) or type(error).__name__
    return Sample(name_of(check), not problem, problem[:500])


def _http(deployer: PersistentDeployer, check: Check, domain: str) -> str:
    address = deployer.address()
    if address is None:
        return "the recipe declares no web port: use a tcp or command probe instead"
    answer = probe(address, domain, check.http, check.seconds, check.status)
    if answer is None:
        return f"no answer to GET {check.http} within {check.seconds:g} s"
    if answer.from_proxy(address):
        return f"the proxy has no route for this host: GET {check.http} returned {answer.status}"
    said = answer.summary(check.http)
    if answer.circle:
        return said
    if check.status and answer.status not in check.status:
        return f"{said}, expected {' or '.join(map(str, check.status))}"
    if not check.status and answer.status >= 500:
        return said
    if check.body and check.body not in answer.body:
        return f"{said}, but the answer does not contain {check.body!r}"
    return ""


def _tcp(deployer: PersistentDeployer, check: Check, domain: str) -> str:
    host, _, port = check.tcp.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=check.seconds).close()
    except OSError as error:
        return f"cannot connect to {check.tcp}: {error}"
    return ""


def _command(deployer: PersistentDeployer, check: Check, domain: str) -> str:
    code, said = deployer.execute(check.service, check.command, check.seconds)
    return f"exited with {code}: {said.strip()[-300:]}" if code else ""


def worse(samples: Sequence[Sample], baseline: Mapping[str, bool]) -> list[str]:
    """Probes that fail now and did not before. `baseline`: probe name → whether it passed."""
    return [f"{sample.name}: {sample.said}" for sample in samples if not sample.ok and baseline.get(sample.name, True)]


def unhealthy(parts: Mapping[str, ServiceState]) -> list[str]:
    """Problems that Swarm reports about the services, whatever their version."""
    found = [] if parts else ["no service runs"]
    for name, part in parts.items():
        if part.update in ("updating", "rollback_started"):
            found.append(f"the update of {name} has not finished ({part.update})")
        elif part.update in ("paused", "rollback_paused"):
            found.append(f"Swarm paused the update of {name}: {part.message}")
        if part.running != part.wanted:
            found.append(f"{name} has {part.running} of {part.wanted} replicas{_words(part)}")
        elif part.health not in ("", "healthy"):
            found.append(f"the health check of {name} is {part.health}")
    return found


def wrong(parts: Mapping[str, ServiceState], version: str, mark: str, services: Collection[str]) -> list[str]:
    """Where what runs is not what was deployed: by version label, deployment mark, and services.

    Swarm rolls a service back silently, labels included; the message says so.
    """
    found = []
    for name in sorted(set(services) - set(parts)):
        found.append(f"service {name} is missing")
    for name, part in parts.items():
        if mark and part.mark != mark:
            silently = " (silent rollback)" if part.update.startswith("rollback") else ""
            words = f": {part.message}" if part.message else ""
            found.append(f"Swarm rolled {name} back by itself{silently}{words}{_words(part)}")
        elif part.version not in ("", version):
            found.append(f"{name} runs {part.version} instead of {version}")
    if parts and not found and not any(part.version == version for part in parts.values()):
        found.append(f"no service has the version {version}")
    return found


def restarted(parts: Mapping[str, ServiceState], tasks: Mapping[str, Sequence[str]]) -> list[str]:
    """Services that restarted since their `tasks` were recorded."""
    return [
        f"{name} restarted{_words(part)}" for name, part in parts.items() if name in tasks and set(part.tasks) - set(tasks[name])
    ]


def _words(part: ServiceState) -> str:
    return f" ({part.problem})" if part.problem else ""
