"""A Docker Engine that creates nothing: it answers what `docker stack deploy` asks, and keeps what would be created.

The client is the real docker command, so what is kept is what a Swarm would be given. What the answers look like, and which
questions are asked, was read from a 20.10 daemon; test_as_docker_deploys.py holds the recorder to the daemon that is there.
"""

from __future__ import annotations

import json
import re
import shutil
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

#: What the docker command says of itself, whatever it deploys.
_NOTICE = re.compile(r"Since --detach=false was not specified, .*\n.*will become the default\.\n?")
_VERSION = re.compile(r"^/v\d+\.\d+(?=/)")

Bodies = dict[str, dict[str, Any]]


@dataclass
class Recorded:
    """What one `docker stack deploy` created, by name, how it ended, and what it said."""

    services: Bodies = field(default_factory=dict)
    networks: Bodies = field(default_factory=dict)
    configs: Bodies = field(default_factory=dict)
    secrets: Bodies = field(default_factory=dict)
    code: int = -1
    stderr: str = ""

    @property
    def bodies(self) -> dict[str, Bodies]:
        return {kind: getattr(self, kind) for kind in ("services", "networks", "configs", "secrets")}


def deployed(documents: Sequence[Path], env: Mapping[str, str], stack: str) -> Recorded:
    """What `docker stack deploy` makes of these compose files when `env` is the whole environment of the docker command.

    External networks, secrets and configs are there, whatever their names.
    """
    recorded = Recorded()
    files = [f"--compose-file={quoted(path)}" for path in documents]
    # Neither is a variable, which the files could refer to.
    with _engine(recorded) as folder:
        options = [f"--host=unix://{folder}/docker.sock", f"--config={folder}"]
        command = [docker(), *options, "stack", "deploy", "--resolve-image=never", *files, stack]
        done = subprocess.run(command, env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)
    recorded.code, recorded.stderr = done.returncode, _NOTICE.sub("", done.stderr)
    return recorded


def quoted(path: Path | str) -> str:
    """A path as docker's list of files takes it: as a field of CSV."""
    text = str(path).replace('"', '""')
    return f'"{text}"'


def docker() -> str:
    return shutil.which("docker") or "docker"


@contextmanager
def _engine(recorded: Recorded) -> Iterator[str]:
    # Not in a test's own folder: the path of a socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="cc-ci-") as folder, _Server(f"{folder}/docker.sock", _Handler) as server:
        server.recorded = recorded
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    recorded: Recorded

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Docker's command that has seen enough hangs up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer(200, None)

    def do_GET(self) -> None:
        path, _, query = _VERSION.sub("", self.path).partition("?")
        wanted = json.loads(parse_qs(query).get("filters", ["{}"])[0])
        kind, _, name = path.strip("/").partition("/")
        there = getattr(self.server.recorded, kind, None)
        if path == "/_ping":
            self._answer(200, None)
        elif path == "/info":
            self._answer(200, {"Swarm": {"LocalNodeState": "active", "ControlAvailable": True}})
        elif not isinstance(there, dict):
            self._answer(501, {"message": f"the recorder does not know GET {path}"})
        elif kind == "networks" and name:  # only external ones are asked for by name
            self._answer(200, {"Name": name, "Id": _id(name), "Scope": "swarm", "Driver": "overlay"})
        elif name:  # its own, before it is made
            self._answer(404, {"message": f"{kind} {name} not found"})
        else:  # what the stack has already; or secrets and configs, external or made just now, for their ids
            self._answer(200, [{"ID": _id(one), "Spec": {"Name": one}} for one in wanted.get("name", {})])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind, _, verb = urlsplit(_VERSION.sub("", self.path)).path.strip("/").partition("/")
        there = getattr(self.server.recorded, kind, None)
        if verb != "create" or not isinstance(there, dict):
            self._answer(501, {"message": f"the recorder does not know POST {self.path}"})
        elif body["Name"] in there:
            self._answer(409, {"message": f"{kind} {body['Name']} already exists"})
        else:
            there[body["Name"]] = body
            self._answer(201, {"ID": _id(body["Name"]), "Id": _id(body["Name"])})

    def _answer(self, status: int, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Api-Version", "1.47")
        self.send_header("Ostype", "linux")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def _id(name: str) -> str:
    return f"id-of-{name}"
