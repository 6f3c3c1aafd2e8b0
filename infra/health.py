"""Whether an app is well: what Swarm says of its services, and what its probes see. Judged without Django and without Docker."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from infra.deployers.base import Address, DeployError, probe
from infra.deployers.lasting import Part
from infra.schema import Check


class Reached(Protocol):
    """What a probe needs of a deployer."""

    def address(self) -> Address | None: ...

    def execute(self, service: str, command: Sequence[str], timeout: float = ...) -> tuple[int, str]: ...


@dataclass(frozen=True)
class Sample:
    """What one probe saw once."""

    name: str
    ok: bool
    said: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ask(deployer: Reached, checks: Sequence[Check], domain: str) -> list[Sample]:
    """Ask all probes once, in at most the sum of their own times."""
    return [_ask(deployer, check, domain) for check in checks]


def name_of(check: Check) -> str:
    what = check.http or check.tcp or f"{' '.join(check.command)} in {check.service}"
    return f"{check.kind} {what}"[:200]


def _ask(deployer: Reached, check: Check, domain: str) -> Sample:
    try:
        problem = {"http": _http, "tcp": _tcp, "command": _command}[check.kind](deployer, check, domain)
    except (DeployError, OSError) as error:
        problem = str(error) or type(error).__name__
    return Sample(name_of(check), not problem, problem[:500])


def _http(deployer: Reached, check: Check, domain: str) -> str:
    address = deployer.address()
    if address is None:
        return "the recipe says no web port: give a check by tcp or command instead"
    answer = probe(address, domain, check.http, check.seconds)
    if answer is None:
        return f"nobody answers GET {check.http} within {check.seconds:g} s"
    if answer.from_proxy(address):
        return f"the proxy knows no such host: GET {check.http} gave {answer.status}"
    if check.status and answer.status not in check.status:
        return f"GET {check.http} gave {answer.status}, not {' or '.join(map(str, check.status))}"
    if not check.status and answer.status >= 500:
        return f"GET {check.http} gave {answer.status}"
    if check.body and check.body not in answer.body:
        return f"GET {check.http} gave {answer.status}, but {check.body!r} is not in what it said"
    return ""


def _tcp(deployer: Reached, check: Check, domain: str) -> str:
    host, _, port = check.tcp.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=check.seconds).close()
    except OSError as error:
        return f"{check.tcp} takes no connection: {error}"
    return ""


def _command(deployer: Reached, check: Check, domain: str) -> str:
    code, said = deployer.execute(check.service, check.command, check.seconds)
    return f"it ended with {code}: {said.strip()[-300:]}" if code else ""


def worse(samples: Sequence[Sample], baseline: Mapping[str, bool]) -> list[str]:
    """What fails now and did not before. `baseline`: by a probe's name, whether it was well."""
    return [f"{sample.name}: {sample.said}" for sample in samples if not sample.ok and baseline.get(sample.name, True)]


def ill(parts: Mapping[str, Part]) -> list[str]:
    """What Swarm itself says against the services, whatever version they are."""
    found = [] if parts else ["nothing of it runs"]
    for name, part in parts.items():
        if part.update in ("updating", "rollback_started"):
            found.append(f"the update of {name} is not over ({part.update})")
        elif part.update in ("paused", "rollback_paused"):
            found.append(f"Swarm paused the update of {name}: {part.message}")
        if part.running != part.wanted:
            found.append(f"{name} has {part.running} of {part.wanted} replicas{_words(part)}")
        elif part.health not in ("", "healthy"):
            found.append(f"the health check of {name} is {part.health}")
    return found


def wrong(parts: Mapping[str, Part], version: str, mark: str, services: Collection[str]) -> list[str]:
    """Where what runs is not what was deployed: by the version's label, the deployment's mark, and the services there are.

    Swarm rolls a service back without a word, labels included; that is said by name.
    """
    found = []
    for name in sorted(set(services) - set(parts)):
        found.append(f"the service {name} is not there")
    for name, part in parts.items():
        if mark and part.mark != mark:
            silently = " (silent rollback)" if part.update.startswith("rollback") else ""
            words = f": {part.message}" if part.message else ""
            found.append(f"Swarm put {name} back to what it was before, by itself{silently}{words}{_words(part)}")
        elif part.version not in ("", version):
            found.append(f"{name} says that it is {part.version}, and not {version}")
    if parts and not found and not any(part.version == version for part in parts.values()):
        found.append(f"no service says that it is {version}")
    return found


def restarted(parts: Mapping[str, Part], tasks: Mapping[str, Sequence[str]]) -> list[str]:
    """The services that were started anew since their `tasks` were written down."""
    return [
        f"{name} was started anew{_words(part)}"
        for name, part in parts.items()
        if name in tasks and set(part.tasks) - set(tasks[name])
    ]


def _words(part: Part) -> str:
    return f" ({part.problem})" if part.problem else ""
