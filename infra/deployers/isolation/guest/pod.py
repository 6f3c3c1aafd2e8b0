"""Runs all services of one recipe as processes: `pod.py CONFIG_FD`. Runs until it is killed, and everything ends with it.

The configuration is JSON: `services` ([{name, command, env}]), `source` (the checkout), `home` (a writable folder),
`web_port` (0: none), `web_fd` and `control_fd` (listening unix sockets). The services' output goes to standard output as
`name | line`. When a service has ended, its output is followed by a NUL byte and a JSON object with its exit code; another one
says that all have been started.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.deployers.isolation.guest.splice import copy_recipe, serve, splice
else:  # started by its path, beside splice.py, where the project is not
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    from splice import copy_recipe, serve, splice

_say = threading.Lock()


def _die_with_pod() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def _say_line(line: str) -> None:
    with _say:
        sys.stdout.write(line)
        sys.stdout.flush()


class Pod:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.folder = os.path.join(config["home"], "recipe")  # noqa: PTH118
        self.services: dict[str, dict[str, Any]] = {service["name"]: service for service in config["services"]}

    def run(self) -> None:
        copy_recipe(self.config["source"], self.folder)
        for service in self.config["services"]:
            self.start(service)
        _say_line("\0" + json.dumps({"started": True}) + "\n")
        serve(socket.socket(fileno=self.config["control_fd"]), self.control)
        if self.config["web_port"]:
            serve(socket.socket(fileno=self.config["web_fd"]), self.web)
        threading.Event().wait()

    def start(self, service: dict[str, Any]) -> None:
        try:
            process = subprocess.Popen(
                service["command"],
                cwd=self.folder,
                env=service["env"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                preexec_fn=_die_with_pod,
            )
        except OSError as error:
            _say_line(f"{service['name']} | cannot start: {error}\n")
            self.status(service["name"], 127)
            return
        threading.Thread(target=self.watch, args=(service["name"], process), daemon=True).start()

    def watch(self, name: str, process: "subprocess.Popen[str]") -> None:
        assert process.stdout
        while line := process.stdout.readline(8192):
            _say_line(f"{name} | {line.rstrip(chr(10))}\n")
        self.status(name, process.wait())

    def status(self, name: str, code: int) -> None:
        _say_line("\0" + json.dumps({"service": name, "code": code}) + "\n")

    def web(self, stream: socket.socket) -> None:
        splice(stream, socket.create_connection(("127.0.0.1", self.config["web_port"]), timeout=5))

    def control(self, stream: socket.socket) -> None:
        with stream.makefile("r") as lines:
            request = json.loads(lines.readline(65536))
        service = self.services.get(request["service"])
        if service is None:
            answer: dict[str, Any] = {"code": 1, "output": f"there is no service {request['service']}"}
        else:
            answer = self.execute(service, request)
        stream.sendall((json.dumps(answer) + "\n").encode())

    def execute(self, service: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        try:
            done = subprocess.run(
                request["command"],
                cwd=self.folder,
                env=service["env"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=request["timeout"],
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired:
            return {"code": 124, "output": f"the command did not finish within {request['timeout']:.0f} s"}
        except OSError as error:
            return {"code": 127, "output": str(error)}
        return {"code": done.returncode, "output": done.stdout[-100_000:]}


def main() -> None:
    with os.fdopen(int(sys.argv[1])) as file:
        config = json.load(file)
    Pod(config).run()


main()
