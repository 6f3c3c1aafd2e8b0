"""The only door from the tests' sandbox to the world: a unix socket that the harness serves.

The first line of a connection is JSON: `{"to": "app"}` makes the rest a connection to the app, `{"to": "app:22/tcp"}` one to
that published port of the deployment, after a line `{}` that says so;
`{"do": "exec", "service", "command", "timeout"}`, `{"do": "logs", "service", "lines"}` and `{"do": "state"}` are answered with
one line: what was asked for, `{"error": …}`, or `{"cannot": …}` for what this deployer cannot do at all. Strangers' code writes
here: nothing of a request reaches a deployer before its kind and size are checked.
"""

from __future__ import annotations

import json
import math
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from infra.deployers.base import Deployer, DeployError, Deployment, listen_unix
from infra.deployers.inside import splice

_MOST_CONNECTIONS = 128
#: Ends of connections, with those to the app and those that wait for their turn: each is a descriptor of the harness.
_MOST_STREAMS = 384
_LONGEST_REQUEST = 65536
_LONGEST_TIMEOUT = 600.0
_MOST_LINES = 1000
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class Gate:
    """Serves the socket at `path` as long as the block lasts."""

    def __init__(self, path: Path, deployer: Deployer, domain: str) -> None:
        self.path = path
        self._deployer = deployer
        self._domain = domain
        self._slots = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._streams: set[socket.socket] = set()
        self._closed = False
        self._listener = listen_unix(path, mode=0o666)  # its folder is ours alone; the sandbox gets the socket bound in

    def __enter__(self) -> Gate:
        splice.serve(self._listener, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            streams = [self._listener, *self._streams]
        for stream in streams:  # whoever waits at one wakes up and closes it: an app may hold connections for as long as it lives
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    @contextmanager
    def _held(self, stream: socket.socket) -> Iterator[None]:
        """Have a stream end when the gate does, at the latest. Raises OSError when there are too many, or the gate is closed."""
        with stream:
            with self._lock:
                if self._closed or len(self._streams) >= _MOST_STREAMS:
                    raise ConnectionAbortedError
                self._streams.add(stream)
            try:
                yield
            finally:
                with self._lock:
                    self._streams.discard(stream)

    def _handle(self, stream: socket.socket) -> None:
        with self._held(stream):
            self._serve(stream)

    def _serve(self, stream: socket.socket) -> None:
        if not self._slots.acquire(timeout=5):
            return
        try:
            stream.settimeout(30)
            request = _request(_first_line(stream))
            if request.get("to") == "app":
                self._to_app(stream)
            elif "to" in request:
                self._to_port(stream, str(request["to"]))
            else:
                stream.sendall((json.dumps(self._answer(request)) + "\n").encode())
        except _Refused as refused:
            with suppress(OSError):
                stream.sendall((json.dumps({"error": f"not understood: {refused}"}) + "\n").encode())
        finally:
            self._slots.release()

    def _to_app(self, stream: socket.socket) -> None:
        try:
            address = self._deployer.address()
        except DeployError:
            return
        if address:
            self._splice(stream, address.connect(10, self._domain))

    def _to_port(self, stream: socket.socket, name: str) -> None:
        """Only what this very deployment has published: the number comes from the deployer, never from the request."""
        try:
            port = self._deployer.state().ports.get(name) if name.endswith("/tcp") else None
            if port is None:
                raise _Refused(f"this deployment has published no {name[:80]!r}")
            target = socket.create_connection(("127.0.0.1", port), timeout=10)
        except DeployError as error:
            stream.sendall((json.dumps(_failure(error)) + "\n").encode())
            return
        except OSError as error:
            stream.sendall((json.dumps({"error": f"nothing listens at {name}: {error}"}) + "\n").encode())
            return
        stream.sendall(b"{}\n")
        self._splice(stream, target)

    def _splice(self, stream: socket.socket, target: socket.socket) -> None:
        with self._held(target):
            splice.splice(stream, target)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            match request.get("do"):
                case "exec":
                    timeout = min(max(_number(request, "timeout", 60), 1), _LONGEST_TIMEOUT)
                    code, output = self._deployer.execute(_service(request), _command(request), timeout)
                    return {"code": code, "output": output}
                case "logs":
                    lines = min(max(int(_number(request, "lines", 50)), 1), _MOST_LINES)
                    return {"output": self._deployer.logs(_service(request), lines)}
                case "state":
                    return _state(self._deployer.state())
        except DeployError as error:
            return _failure(error)
        return {"error": "not understood"}


def _failure(error: DeployError) -> dict[str, Any]:
    return {"cannot" if error.kind == "not_applicable" else "error": str(error)}


class _Refused(Exception):
    """A request that makes no sense."""


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except RecursionError as error:
        raise _Refused("nested too deeply") from error
    if not isinstance(request, dict):
        raise _Refused("no object")
    return request


def _service(request: dict[str, Any]) -> str:
    name = request.get("service") or "app"
    if not isinstance(name, str) or not _SERVICE.fullmatch(name):
        raise _Refused("the service is no name")
    return name


def _command(request: dict[str, Any]) -> list[str]:
    words = request.get("command")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise _Refused("the command is no list of words")
    return words


def _number(request: dict[str, Any], key: str, usual: float) -> float:
    value = request.get(key, usual)
    # json reads NaN and Infinity, too, and integers of any length.
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e12 or not math.isfinite(value):
        raise _Refused(f"{key} is no number")
    return value


def _state(deployment: Deployment) -> dict[str, Any]:
    names = ("name", "wanted", "running", "health", "image")
    services = [{name: getattr(service, name) for name in names} for service in deployment.services]
    return {"services": services, "version": deployment.version, "ports": dict(deployment.ports)}


def _first_line(stream: socket.socket) -> bytes:
    """The first line, byte by byte: what follows belongs to the app."""
    line = bytearray()
    while len(line) < _LONGEST_REQUEST:
        byte = stream.recv(1)
        if not byte or byte == b"\n":
            break
        line += byte
    return bytes(line)
