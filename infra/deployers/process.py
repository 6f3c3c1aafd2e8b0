"""The deployer `process`: a recipe's services as plain processes in one sandbox, for machines without Docker.

A recipe takes part when each of its services carries `x-cc-ci-process`: a command, with `${PORT}` filled in. All of
them live in one sandbox with a network of its own; the harness reaches the app through a unix socket. The sandbox ends with
the harness, whatever ends that.
"""

from __future__ import annotations

import collections
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from infra.deployers import limits, sandbox
from infra.deployers.base import (
    Address,
    Context,
    Deployer,
    DeployError,
    Deployment,
    Service,
    connect_unix,
    listen_unix,
    probe,
)
from infra.deployers.compose import plain
from infra.deployers.compose.recipe import Recipe

_FIRST_PORT = 8000
_KEPT_LINES = 500


class ProcessDeployer(Deployer):
    name = "process"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._recipe: Recipe | None = None
        self._box: subprocess.Popen[bytes] | None = None
        self._sandbox: sandbox.Sandbox | None = None
        self._listeners: list[socket.socket] = []
        self._ended: dict[str, int] = {}
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
        isolated = sandbox.available()
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
        self._sandbox = place = sandbox.Sandbox(
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

    def _start(self, place: sandbox.Sandbox, processes: list[plain.Process], ports: dict[str, int]) -> None:
        web, control = (listen_unix(self.context.work / name) for name in ("web.sock", "control.sock"))
        self._listeners = [web, control]
        status_out, status_in = os.pipe()
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
            "status_fd": status_in,
        }
        try:
            self._box = place.start("pod.py", config, (web.fileno(), control.fileno(), status_in))
        finally:
            os.close(status_in)
        threading.Thread(target=self._read_log, args=(self._box,), daemon=True).start()
        threading.Thread(target=self._read_status, args=(status_out,), daemon=True).start()

    def _read_log(self, box: subprocess.Popen[bytes]) -> None:
        assert box.stdout
        while line := box.stdout.readline(8192):
            text = line.decode(errors="replace").rstrip("\n")
            self._lines.append(text)
            self.context.log(text)

    def _read_status(self, handle: int) -> None:
        with os.fdopen(handle) as lines:
            while line := lines.readline(8192):
                # The services cannot write here, but the pod runs beside them: believe the shape of nothing.
                with suppress(ValueError, KeyError, TypeError):
                    ended = json.loads(line)
                    self._ended[str(ended["service"])] = int(ended["code"])

    def settle(self) -> Deployment:
        until = time.monotonic() + self.context.settle_seconds
        wait, said = 0.02, ""
        while True:
            self.context.check()
            now = self.state()
            self._fail_on_ended()
            address = self.address()
            answer = probe(address, self.context.domain, self.context.health_path) if address else None
            if address is None and time.monotonic() > until - self.context.settle_seconds + 0.5:
                return now  # without a port there is nothing to ask: half a second without an exit
            if address and answer and self.context.accepts(answer, address):
                return now
            if str(now) != said:
                said = str(now)
                self.context.report(f"Waiting: {said}")
            if time.monotonic() > until:
                self._never_answered(answer.status if answer else 0)
            time.sleep(wait)
            wait = min(wait * 1.5, 0.5)

    def _never_answered(self, status: int) -> None:
        said = f"its last answer was {status}" if status else "nothing answered"
        raise DeployError(
            "never_answered",
            f"The app did not answer within {self.context.settle_seconds} s: {said}.{self._last_words()}",
            "See what the services printed in the log; does the command listen on 127.0.0.1:${PORT}?",
        )

    def _fail_on_ended(self) -> None:
        assert self._box
        if self._ended:
            name, code = next(iter(self._ended.items()))
            raise DeployError("exits", f"The service {name} ended with exit code {code}.{self._last_words(name)}", "See the log.")
        if self._box.poll() is not None:
            memory = self._sandbox and self._sandbox.cgroup and self._sandbox.cgroup.out_of_memory()
            reason = "it ran out of memory" if memory else f"exit code {self._box.returncode}"
            raise DeployError("tool_failed", f"The services' sandbox ended: {reason}.{self._last_words()}")

    def _last_words(self, service: str = "") -> str:
        lines = self.logs(service, 5)
        return f" Its last words: {lines}" if lines else ""

    def state(self) -> Deployment:
        assert self._recipe
        alive = self._box is not None and self._box.poll() is None
        services = [
            Service(
                name,
                wanted=1,
                running=int(alive and name not in self._ended),
                problem=f"exit code {self._ended[name]}" if name in self._ended else "",
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
            raise DeployError("tool_failed", f"The command did not run in {service}: {error}.") from error

    def teardown(self) -> list[str]:
        for listener in self._listeners:
            listener.close()
        if self._sandbox and self._box:
            self._sandbox.end(self._box)
        left = []
        for name, group in limits.existing(f"{self.context.stack}-pod"):
            if not group.remove():
                left.append(f"processes of {name}")
        return left


def sweep(older_than: float = 60.0, prefix: str = "ccci-") -> list[str]:
    """Remove the empty cgroups of sandboxes that have ended, `older_than` seconds at least. Gives their names.

    `prefix` narrows it down to one run's.

    The processes died with their harness, so a cgroup with processes in it belongs to a run that lives. A young one may
    be waiting for its first process.
    """
    removed = []
    for name, group in limits.existing(prefix):
        with suppress(OSError):
            young = any(time.time() - folder.stat().st_mtime < older_than for folder in group.folders)
            if not young and not group.pids() and group.remove():
                removed.append(name)
    return removed


def _web_service(listening: list[str]) -> str:
    return "app" if "app" in listening else next(iter(listening), "")


def _free_ports(names: list[str]) -> dict[str, int]:
    """Ports of loopback that were free a moment ago, for services that share the machine's network."""
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
