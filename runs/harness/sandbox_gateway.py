"""The only way out of the tests' sandbox: a unix socket served by the harness.

The first line of a connection is JSON: `{"to": "app"}` makes the rest a connection to the app, over TLS with `"tls": true`;
`{"to": "oidc"}` one to the provider lent to the run, for one request to its own realm (`signin.py`);
`{"to": "app:22/tcp"}` one to that published port of the deployment, after a line `{}` that confirms it;
`{"do": "exec", "service", "command", "timeout"}`, `{"do": "logs", "service", "lines"}` and `{"do": "state"}` are answered with
one line: the result, `{"error": …}`, or `{"cannot": …}` for what this deployer does not support. Untrusted code writes
here: no part of a request reaches a deployer before its type and size are checked.
"""

from __future__ import annotations

import json
import math
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests

from infra.deployers.base import Deployer, Deployment
from infra.deployers.errors import DeployError
from infra.deployers.isolation.guest import splice
from infra.deployers.isolation.guest.splice import Stream
from infra.deployers.probe import listen_unix, unverified
from runs.harness.doors import Doors
from runs.harness.relay import Head, Tls, relay
from runs.harness.signin import to_provider

_MOST_CONNECTIONS = 128
#: Maximum open sockets, including those to the app and waiting ones: each takes a file descriptor.
_MOST_STREAMS = 384
_LONGEST_REQUEST = 65536
_LONGEST_TIMEOUT = 600.0
_MOST_LINES = 1000
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class SandboxGateway:
    """Serve the socket at `path` inside the block."""

    def __init__(self, path: Path, deployer: Deployer, domain: str, doors: Doors | None = None) -> None:
        self.path = path
        self._deployer = deployer
        self._domain = domain
        self._doors = doors or Doors(domain, None, isolated=True)
        self._slots = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._streams: set[socket.socket] = set()
        self._closed = False
        self._listener = listen_unix(path, mode=0o666)  # only we can access its folder; the socket is bound into the sandbox

    def __enter__(self) -> SandboxGateway:
        splice.serve(self._listener, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            streams = [self._listener, *self._streams]
        for stream in streams:  # wakes its waiting thread, which closes it: an app may keep connections open
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    @contextmanager
    def _held(self, stream: socket.socket) -> Iterator[None]:
        """Have a stream end with the gateway, at the latest. Raises OSError if there are too many, or the gateway is closed."""
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
                self._to_app(stream, tls=request.get("tls") is True)
            elif request.get("to") == "oidc":
                self._to_provider(stream)
            elif "to" in request:
                self._to_port(stream, str(request["to"]))
            else:
                stream.sendall((json.dumps(self._answer(request)) + "\n").encode())
        except _Refused as refused:
            with suppress(OSError):
                stream.sendall((json.dumps({"error": f"invalid request: {refused}"}) + "\n").encode())
        finally:
            self._slots.release()

    def _to_app(self, stream: socket.socket, tls: bool) -> None:
        try:
            address = self._deployer.address()
        except DeployError:
            return
        address = address.https() if address and tls else address
        if not address:
            return
        client = self._shown(stream, tls)

        headers = address.headers

        def message(head: Head) -> Head:
            host = next(iter(head.all("Host")), b"").decode("latin-1")
            return head.with_fields(**{name.replace("-", "_"): value for name, value in headers(host).items()})

        target = replace(address, tls=False).connect(10)
        with self._held(target):
            target.settimeout(None)
            server = Tls(target, unverified(), self._domain or address.host) if address.tls else target
            relay(client, server, message)

    def _to_provider(self, stream: socket.socket) -> None:
        provider = self._doors.provider
        if not provider:
            raise _Refused("no provider was lent to this run")

        client = self._shown(stream, provider.scheme == "https")
        target = socket.create_connection((provider.host, provider.port), timeout=10)
        with self._held(target):
            target.settimeout(None)
            server = Tls(target, _verified(), provider.host) if provider.scheme == "https" else target
            relay(client, server, lambda head: to_provider(head, provider), strict=True)

    def _shown(self, stream: socket.socket, tls: bool) -> Stream:
        """The sandbox's end of a connection, with TLS by the run's own certificate if requested."""
        client = Tls(stream, self._doors.certificate.server_context(), server=True) if tls else stream
        stream.settimeout(None)
        return client

    def _to_port(self, stream: socket.socket, name: str) -> None:
        """Connect only to ports published by this deployment: the number comes from the deployer, never from the request."""
        try:
            port = self._deployer.state().ports.get(name) if name.endswith("/tcp") else None
            if port is None:
                raise _Refused(f"this deployment does not publish {name[:80]!r}")
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
        return {"error": "invalid request"}


def _verified() -> ssl.SSLContext:
    """TLS as for the harness's own requests to the provider."""
    context = ssl.create_default_context()
    context.load_verify_locations(requests.utils.DEFAULT_CA_BUNDLE_PATH)
    return context


def _failure(error: DeployError) -> dict[str, Any]:
    return {"cannot" if error.kind == "not_applicable" else "error": str(error)}


class _Refused(Exception):
    """An invalid request."""


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except RecursionError as error:
        raise _Refused("nested too deeply") from error
    if not isinstance(request, dict):
        raise _Refused("not an object")
    return request


def _service(request: dict[str, Any]) -> str:
    name = request.get("service") or "app"
    if not isinstance(name, str) or not _SERVICE.fullmatch(name):
        raise _Refused("the service is not a name")
    return name


def _command(request: dict[str, Any]) -> list[str]:
    command = request.get("command")
    if not isinstance(command, list) or not command or not all(isinstance(word, str) and "\0" not in word for word in command):
        raise _Refused("the command is not a list of words")
    return command


def _number(request: dict[str, Any], key: str, usual: float) -> float:
    value = request.get(key, usual)
    # json also accepts NaN, Infinity, and integers of any length.
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e12 or not math.isfinite(value):
        raise _Refused(f"{key} is not a number")
    return value


def _state(deployment: Deployment) -> dict[str, Any]:
    names = ("name", "wanted", "running", "health", "image")
    services = [{name: getattr(service, name) for name in names} for service in deployment.services]
    return {"services": services, "version": deployment.version, "ports": dict(deployment.ports)}


def _first_line(stream: socket.socket) -> bytes:
    """Read the first line byte by byte: what follows belongs to the app."""
    line = bytearray()
    while len(line) < _LONGEST_REQUEST:
        byte = stream.recv(1)
        if not byte or byte == b"\n":
            break
        line += byte
    return bytes(line)
