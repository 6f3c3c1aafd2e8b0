"""The only door from the tests' sandbox to the world: a unix socket that the harness serves.

The first line of a connection is JSON: `{"to": "app"}` makes the rest a connection to the app;
`{"do": "exec", "service", "command", "timeout"}` and `{"do": "logs", "service", "lines"}` are answered with one line.
"""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from infra.deployers.base import Deployer, DeployError, listen_unix
from infra.deployers.inside import splice

_MOST_CONNECTIONS = 128
_LONGEST_REQUEST = 65536
_LONGEST_TIMEOUT = 600.0


class Gate:
    """Serves the socket at `path` as long as the block lasts."""

    def __init__(self, path: Path, deployer: Deployer, domain: str) -> None:
        self.path = path
        self._deployer = deployer
        self._domain = domain
        self._slots = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._listener = listen_unix(path, mode=0o666)  # its folder is ours alone; the sandbox gets the socket bound in

    def __enter__(self) -> Gate:
        splice.serve(self._listener, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _handle(self, stream: socket.socket) -> None:
        if not self._slots.acquire(timeout=5):
            return
        try:
            stream.settimeout(30)
            request = json.loads(_first_line(stream))
            if request.get("to") == "app":
                self._to_app(stream)
            else:
                answer = self._answer(request)
                stream.sendall((json.dumps(answer) + "\n").encode())
        except (AttributeError, TypeError) as error:
            with suppress(OSError):
                stream.sendall((json.dumps({"error": f"not understood: {error}"}) + "\n").encode())
        finally:
            self._slots.release()

    def _to_app(self, stream: socket.socket) -> None:
        try:
            address = self._deployer.address()
        except DeployError:
            return
        if address:
            splice.splice(stream, address.connect(10, self._domain))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            service = str(request.get("service") or "app")
            if request.get("do") == "exec":
                command = [str(word) for word in request["command"]]
                timeout = min(max(float(request.get("timeout", 60)), 1), _LONGEST_TIMEOUT)
                code, output = self._deployer.execute(service, command, timeout)
                return {"code": code, "output": output}
            if request.get("do") == "logs":
                lines = min(max(int(request.get("lines", 50)), 1), 1000)
                return {"output": self._deployer.logs(service, lines)}
        except (DeployError, KeyError, ValueError, TypeError) as error:
            return {"error": str(error)}
        return {"error": "not understood"}


def _first_line(stream: socket.socket) -> bytes:
    """The first line, byte by byte: what follows belongs to the app."""
    line = bytearray()
    while len(line) < _LONGEST_REQUEST:
        byte = stream.recv(1)
        if not byte or byte == b"\n":
            break
        line += byte
    return bytes(line)
