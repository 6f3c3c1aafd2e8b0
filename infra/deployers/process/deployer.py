"""The `process` deployer: a recipe's services as plain processes in one sandbox, for machines without Docker.

It supports recipes whose services all have `x-cc-ci-process`: a command in which `${PORT}` is expanded. All services share one
sandbox with its own network; the harness reaches the app through a unix socket. The sandbox ends with the harness, however that
ends.
"""

from __future__ import annotations

import collections
import json
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from infra.deployers.base import Deployer, Deployment
from infra.deployers.compose import plain
from infra.deployers.compose.recipe import Recipe
from infra.deployers.context import Context, Service
from infra.deployers.errors import DeployError
from infra.deployers.isolation import bubblewrap, cgroups
from infra.deployers.messages import log_end
from infra.deployers.probe import Address, Answer, connect_unix, listen_unix, probe

_FIRST_PORT = 8000
_KEPT_LINES = 500
_LONGEST_LINE = 64 << 10  #: more than the pod ever puts into one, or the rest of it would be taken for another


class ProcessDeployer(Deployer):
    name = "process"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._recipe: Recipe | None = None
        self._box: subprocess.Popen[bytes] | None = None
        self._sandbox: bubblewrap.Sandbox | None = None
        self._listeners: list[socket.socket] = []
        self._ended: dict[str, int] = {}
        self._up_since: float | None = None
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._web = ""
        self._started = 0

    @property
    def deployments(self) -> int:
        return self._started

    def recipe(self, checkout: Path) -> Recipe:
        return plain.load(self.context, checkout)

    def deploy(self, checkout: Path | None = None) -> None:
        if self._started:
            raise self.cannot("upgrade")
        context = self.context
        checkout = checkout or context.checkout
        self._recipe = recipe = self.recipe(checkout)
        isolated = bubblewrap.available()
        if not isolated.ok and not context.trusted:
            raise DeployError("tool_missing", isolated.reason, isolated.fix)
        self._started = 1
        names = list(recipe.services)
        ports = {name: _FIRST_PORT + number for number, name in enumerate(names)} if isolated.ok else _free_ports(names)
        others = {f"PORT_{name.upper().replace('-', '_')}": str(port) for name, port in ports.items()}
        processes = plain.processes(recipe, ports, others)
        self._web = _web_service([process.service for process in processes if process.listens])
        scratch = context.work / "pod"
        scratch.mkdir(exist_ok=True)
        self._sandbox = place = bubblewrap.Sandbox(
            f"{context.stack}-pod",
            bubblewrap=isolated.ok,
            mounts={"/recipe": checkout},
            hosts=names,
            memory_mb=context.memory_mb,
            processes=context.processes,
            disk_mb=context.disk_mb,
            scratch=scratch,
        )
        self._start(place, processes, ports)

    def _start(self, place: bubblewrap.Sandbox, processes: list[plain.Process], ports: dict[str, int]) -> None:
        web, control = (listen_unix(self.context.work / name) for name in ("web.sock", "control.sock"))
        self._listeners = [web, control]
        base = place.environment()
        config = {
            "services": [
                {
                    "name": process.service,
                    "command": process.command,
                    "env": {**base, **process.environment, "PORT": str(ports[process.service])},
                }
                for process in processes
            ],
            "source": place.where("/recipe"),
            "home": place.home,
            "web_port": ports.get(self._web, 0),
            "web_fd": web.fileno(),
            "control_fd": control.fileno(),
        }
        self._box = place.start("pod.py", config, (web.fileno(), control.fileno()))
        threading.Thread(target=self._read_log, args=(self._box,), daemon=True).start()

    def _read_log(self, box: subprocess.Popen[bytes]) -> None:
        """Record the services' output and exits, in this order, so that a failed service's last lines are known."""
        assert box.stdout
        while line := box.stdout.readline(_LONGEST_LINE):
            text = line.decode(errors="replace").rstrip("\n")
            if text.startswith("\0"):  # no service's own line: those begin with its name
                # But the pod runs beside the services: believe the shape of nothing.
                with suppress(ValueError, KeyError, TypeError):
                    said = json.loads(text[1:])
                    if "started" in said:
                        self._up_since = time.monotonic()
                    else:
                        self._ended[str(said["service"])] = int(said["code"])
                continue
            self._lines.append(text)
            self.context.log(text)

    def settle(self) -> Deployment:
        with self.context.apart(self.context.settle_seconds):
            return self._settle()

    def still_up(self) -> Sequence[str]:
        self._fail_on_ended()
        return ()

    def _settle(self) -> Deployment:
        until = time.monotonic() + self.context.settle_seconds
        wait, message = 0.02, ""
        while True:
            self.context.check()
            now = self.state()
            self._fail_on_ended()
            address = self.address()
            context = self.context
            answer = probe(address, context.domain, context.health_path, final=context.health_status) if address else None
            if address is None and self._up_since and time.monotonic() > self._up_since + 0.5:
                return now  # without a port there is nothing to ask: half a second without an exit
            if address and answer and context.accepts(answer, address):
                return now
            if str(now) != message:
                message = str(now)
                self.context.report(f"Waiting: {message}")
            if time.monotonic() > until:
                self._never_answered(answer)
            time.sleep(wait)
            wait = min(wait * 1.5, 0.5)

    def _never_answered(self, answer: Answer | None) -> None:
        message = "nothing answered"
        if answer:
            led = f" at {answer.led[-1]}, after redirects" if answer.led else ""
            message = answer.summary(self.context.health_path) if answer.circle else f"its last answer was {answer.status}{led}"
        raise DeployError(
            "never_answered",
            f"The app did not answer within {self.context.settle_seconds} s: {message}.{self._last_lines()}",
            "Check what the services printed in the log. Does the command listen on 127.0.0.1:${PORT}?",
        )

    def _fail_on_ended(self) -> None:
        assert self._box
        if self._ended:
            name, code = next(iter(self._ended.items()))
            raise DeployError("exits", f"The service {name} ended with exit code {code}.{self._last_lines(name)}", "See the log.")
        if self._box.poll() is not None:
            memory = self._sandbox and self._sandbox.cgroup and self._sandbox.cgroup.out_of_memory()
            reason = "it ran out of memory" if memory else f"exit code {self._box.returncode}"
            raise DeployError("tool_failed", f"The services' sandbox ended: {reason}.{self._last_lines()}")

    def _last_lines(self, service: str = "") -> str:
        lines = self.logs(service, 5)
        return log_end(lines)

    def state(self) -> Deployment:
        assert self._recipe
        alive = self._box is not None and self._box.poll() is None
        services = [
            Service(
                name,
                wanted=1,
                running=int(alive and name not in self._ended),
                problem=f"ended with exit code {self._ended[name]}" if name in self._ended else "",
            )
            for name in self._recipe.services
        ]
        return Deployment(services, self._recipe.version(), bool(self._web))

    def address(self) -> Address | None:
        return Address(unix=str(self.context.work / "web.sock")) if self._web else None

    def logs(self, service: str = "", lines: int = 50) -> str:
        start = f"{service} | " if service else ""
        return "\n".join([line for line in list(self._lines) if line.startswith(start)][-lines:])

    def execute(self, service: str, command: Sequence[str], timeout: float = 60.0) -> tuple[int, str]:
        if not self._recipe or service not in self._recipe.services:
            raise DeployError("tool_failed", f"No service {service} is running.")
        request = {"service": service, "command": list(command), "timeout": timeout}
        try:
            with connect_unix(str(self.context.work / "control.sock"), timeout + 5) as stream:
                stream.sendall((json.dumps(request) + "\n").encode())
                answer: dict[str, Any] = json.loads(stream.makefile("r").readline(1 << 20))
            return int(answer["code"]), str(answer["output"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeployError("tool_failed", f"The command could not be run in {service}: {error}.") from error

    def teardown(self) -> list[str]:
        for listener in self._listeners:
            listener.close()
        if self._sandbox and self._box:
            self._sandbox.end(self._box)
        left = []
        for name, group in cgroups.existing(f"{self.context.stack}-pod"):
            if not group.remove():
                left.append(f"processes of {name}")
        return left


def sweep(older_than: float = 60.0, prefix: str = "ccci-") -> list[str]:
    """Remove the empty cgroups of sandboxes that ended at least `older_than` seconds ago. Returns their names.

    `prefix` limits it to one run's cgroups.

    The processes died with their harness, so a cgroup with processes belongs to a live run. A young one may still be waiting for
    its first process.
    """
    removed = []
    for name, group in cgroups.existing(prefix):
        with suppress(OSError):
            young = any(time.time() - folder.stat().st_mtime < older_than for folder in group.folders)
            if not young and not group.pids() and group.remove():
                removed.append(name)
    return removed


def _web_service(listening: list[str]) -> str:
    return "app" if "app" in listening else next(iter(listening), "")


def _free_ports(names: list[str]) -> dict[str, int]:
    """Loopback ports that were just free, for services that share the machine's network."""
    sockets = []
    try:
        for _ in names:
            stream = socket.socket()
            stream.bind(("127.0.0.1", 0))
            sockets.append(stream)
        return {name: stream.getsockname()[1] for name, stream in zip(names, sockets, strict=True)}
    finally:
        for stream in sockets:
            stream.close()
