"""Published ports: which a deployment gets, how a fixed one is leased, and what the Swarm made of it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from infra.deployers.base import Context


@dataclass(frozen=True)
class Port:
    """One published port of a service, as its compose file asks for it."""

    target: int
    published: int = 0  #: 0: whichever is free
    protocol: str = "tcp"
    mode: str = "ingress"

    def entry(self) -> dict[str, Any]:
        """The port as an entry of a compose file (long syntax)."""
        entry = {"target": self.target, "protocol": self.protocol, "mode": self.mode}
        return {**entry, "published": self.published} if self.published else entry


def read(entries: Iterable[Mapping[str, Any]]) -> list[Port]:
    """The ports of a service as Docker writes them out, each of them once."""
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
    """What is published in the end, by service.

    The published number is dropped, so that the Swarm chooses a free one, unless it is one of `exclusive`. The app's web port is
    not published at all: it is reached on the container's own address or through the proxy.
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
    """Ports that one run at a time may have: locks on files, which end with the process that holds them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._held: dict[int, int] = {}

    def take(self, ports: Iterable[int]) -> None:
        """Have all of these ports, waiting for other runs. In the order of their numbers, lest two wait for each other."""
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
        said = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not said:
                    said = True
                    self._context.report(f"Waiting for port {port}, which another run has")
            self._context.check()
            time.sleep(0.2)

    def release(self) -> None:
        """Give all of them back. Their files stay: removing one would let two runs lock two files of one name."""
        while self._held:
            os.close(self._held.popitem()[1])
