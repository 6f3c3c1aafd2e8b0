"""Published ports: which ones a deployment gets, leases on fixed ones, and what the Swarm assigned."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from infra.deployers.context import Context


@dataclass(frozen=True)
class Port:
    """One published port of a service, as in its compose file."""

    target: int
    published: int = 0  #: 0: whichever is free
    protocol: str = "tcp"
    mode: str = "ingress"

    def entry(self) -> dict[str, Any]:
        """The port as an entry of a compose file (long syntax)."""
        entry = {"target": self.target, "protocol": self.protocol, "mode": self.mode}
        return {**entry, "published": self.published} if self.published else entry


def read(entries: Iterable[Mapping[str, Any]]) -> list[Port]:
    """The ports of a service as Docker lists them, without duplicates."""
    found = [
        Port(
            int(one.get("target") or 0),
            int(one.get("published") or 0),
            one.get("protocol") or "tcp",
            one.get("mode") or "ingress",
        )
        for one in entries
    ]
    return list(dict.fromkeys(found))


def plan(
    services: Mapping[str, Mapping[str, Any]], web: tuple[str, int] | None, exclusive: Collection[int]
) -> dict[str, list[Port]]:
    """The ports to publish, by service.

    The published number is dropped, so that the Swarm picks a free one, unless it is in `exclusive`. The app's web port is not
    published: it is reached at the container's own address or through the proxy.
    """
    result: dict[str, list[Port]] = {}
    for name, service in services.items():
        kept: dict[Port, None] = {}
        for port in read(service.get("ports") or []):
            if port.published in exclusive:
                kept[port] = None
            elif (name, port.target) != web:
                kept[Port(port.target, 0, port.protocol, port.mode)] = None
        if kept:
            result[name] = list(kept)
    return result


def in_use(services: Iterable[Mapping[str, Any]], containers: Iterable[Mapping[str, Any]], stack: str) -> dict[str, int]:
    """The published ports of inspected services and containers: "app:22/tcp" -> the port on this machine."""
    found: dict[str, int] = {}
    for service in services:
        name = str(service["Spec"]["Name"]).removeprefix(f"{stack}_")
        for port in (service.get("Endpoint") or {}).get("Ports") or []:
            if port.get("PublishMode") != "host" and port.get("PublishedPort"):
                found[f"{name}:{port['TargetPort']}/{port['Protocol']}"] = int(port["PublishedPort"])
    for container in containers:
        labels = (container.get("Config") or {}).get("Labels") or {}
        name = str(labels.get("com.docker.swarm.service.name", "")).removeprefix(f"{stack}_")
        for key, bindings in ((container.get("NetworkSettings") or {}).get("Ports") or {}).items():
            for binding in bindings or []:
                if str(binding.get("HostPort", "")).isdigit():
                    found.setdefault(f"{name}:{key}", int(binding["HostPort"]))
    return found


class Leases:
    """Ports that only one run at a time may use: file locks, released when the process that holds them ends."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._held: dict[int, int] = {}

    def take(self, ports: Iterable[int]) -> None:
        """Lease all of these ports, waiting for other runs. In numerical order, to avoid deadlocks."""
        folder = self._context.locks
        if folder is None:  # one person's laptop: nobody to share with
            return
        for port in sorted(set(ports) - set(self._held)):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / f"port-{port}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._wait(port, handle)
            except BaseException:
                os.close(handle)
                raise
            self._held[port] = handle

    def _wait(self, port: int, handle: int) -> None:
        reported = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not reported:
                    reported = True
                    self._context.report(f"Waiting for port {port}, which another run is using")
            self._context.check()
            time.sleep(0.2)

    def release(self) -> None:
        """Release all leases. The files are kept: removing one would let two runs lock different files of the same name."""
        while self._held:
            os.close(self._held.popitem()[1])
