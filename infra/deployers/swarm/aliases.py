"""Removes an alias that `docker stack deploy` always adds: a service's plain name on each of its networks.

The server's proxy joins one network of each run. There a stranger's service could answer the proxy under any name that it
chooses: `socket-proxy`, `keycloak`. The docker command has no option for that, so it is sent through a socket of our own,
which removes the alias from the request and forwards everything to Docker.
"""

from __future__ import annotations

import http.client
import http.server
import json
import re
import socketserver
import tempfile
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from infra.deployers.docker import api

_SECONDS = 120.0
_WRITES = re.compile(r"(?:/v[0-9.]+)?/services/(?:create|[^/?]+/update)(?:\?.*)?")
_HOP = frozenset(("connection", "transfer-encoding", "content-length", "keep-alive"))


@contextmanager
def without(networks: Collection[str], stack: str) -> Iterator[str]:
    """A host for the docker command; through it, services keep only aliases with the stack's name on these networks."""
    where = api.socket_path()
    # A path of its own, and a short one: Docker's command takes no more than 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="cc-ci-", ignore_cleanup_errors=True) as folder,
        _Server(f"{folder}/docker.sock", where, frozenset(networks), stack) as server,
    ):
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"unix://{folder}/docker.sock"
        finally:
            server.shutdown()


def strip(body: Any, networks: Collection[str], stack: str) -> Any:
    """A service's spec without aliases on these networks that are not the stack's own. Pure; changes `body`."""
    template = (body.get("TaskTemplate") or {}) if isinstance(body, dict) else {}
    for network in template.get("Networks") or []:
        if network.get("Target") in networks:
            network["Aliases"] = [alias for alias in network.get("Aliases") or [] if str(alias).startswith(stack)]
    return body


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: str, docker: str, networks: frozenset[str], stack: str) -> None:
        super().__init__(path, _Handler)
        self.docker, self.networks, self.stack = docker, networks, stack

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # Docker's command says what it did not get


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command == "POST" and _WRITES.fullmatch(self.path):
            body = json.dumps(strip(json.loads(body), self.server.networks, self.server.stack)).encode()
        headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP}
        try:
            with api.Connection(self.server.docker, _SECONDS) as connection:
                connection.request(self.command, self.path, body or None, headers)
                answer = connection.getresponse()
                message = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.send_error(502, f"Docker's socket: {error}")
            return
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in _HOP:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(message)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(message)

    do_GET = do_POST = do_HEAD = do_DELETE = do_PUT = _pass_on

    def log_message(self, *_: object) -> None:
        pass
