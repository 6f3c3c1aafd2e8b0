"""A registry of the tests' own on loopback, which docker speaks to without TLS: one small image under any name.

It speaks what a pull needs of the Docker Registry HTTP API V2 (image manifest, schema 2), and asks for a login if told to.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass
class Registry:
    host: str
    login: str  #: `user:password`, or empty for an open one
    filling: int  #: bytes of the image's only file
    repositories: set[str] = field(default_factory=set)  #: what it has, without host and tag
    asked: list[str] = field(default_factory=list)  #: paths of the requests
    heads: list[str] = field(default_factory=list)  #: those of them that wanted no more than the head
    moved: int = 0  #: how often all tags were given to another image
    tokens: bool = False  #: whether it wants a token, which it gives to who has the login

    def add(self, repository: str) -> str:
        """Offer the image under this name too, with any tag: the name to pull."""
        self.repositories.add(repository)
        return f"{self.host}/{repository}:1"

    @property
    def auth(self) -> str:
        """A docker config.json with the login."""
        return json.dumps({"auths": {self.host: {"auth": base64.b64encode(self.login.encode()).decode()}}})

    def blobs(self, repository: str) -> tuple[bytes, dict[str, bytes]]:
        """The manifest, and what it names by digest. Another image for each repository, and the same each time."""
        layer = _layer(f"{repository}{self.moved or ''}", self.filling)
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/none"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
        packed, described = gzip.compress(layer, mtime=0), json.dumps(config).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _part("application/vnd.docker.container.image.v1+json", described),
            "layers": [_part("application/vnd.docker.image.rootfs.diff.tar.gzip", packed)],
        }
        return json.dumps(manifest).encode(), {_digest(packed): packed, _digest(described): described}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _part(kind: str, data: bytes) -> dict[str, object]:
    return {"mediaType": kind, "size": len(data), "digest": _digest(data)}


def _layer(name: str, size: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("file")
        entry.size = max(size, len(name))
        archive.addfile(entry, io.BytesIO(name.encode().ljust(entry.size, b".")))
    return buffer.getvalue()


class _Handler(http.server.BaseHTTPRequestHandler):
    registry: Registry
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.registry.heads.append(self.path)
        self.do_GET()

    def do_GET(self) -> None:
        self.registry.asked.append(self.path)
        login = self.registry.login
        given, basic = self.headers.get("Authorization"), f"Basic {base64.b64encode(login.encode()).decode()}"
        if self.path.startswith("/token?") and (not login or given == basic):
            self._say(200, b'{"token": "a-token"}')
        elif self.registry.tokens and given != "Bearer a-token":
            challenge = {"WWW-Authenticate": f'Bearer realm="http://{self.registry.host}/token",service="tests"'}
            self._say(401, _error("UNAUTHORIZED", "authentication required"), **challenge)
        elif login and not self.registry.tokens and given != basic:
            challenge = {"WWW-Authenticate": 'Basic realm="tests"'}
            self._say(401, _error("UNAUTHORIZED", "authentication required"), **challenge)
        elif self.path == "/v2/":
            self._say(200, b"{}")
        elif (match := re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", self.path)) and match[1] in self.registry.repositories:
            manifest, blobs = self.registry.blobs(match[1])
            if match[2] == "manifests":
                kind = {"Content-Type": _MANIFEST, "Docker-Content-Digest": _digest(manifest)}
                self._say(200, manifest, **kind)
            elif match[3] in blobs:
                self._say(200, blobs[match[3]], **{"Content-Type": "application/octet-stream"})
            else:
                self._say(404, _error("BLOB_UNKNOWN", "blob unknown to registry"))
        else:
            self._say(404, _error("MANIFEST_UNKNOWN", "manifest unknown"))

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


@contextmanager
def registry(login: str = "", filling: int = 0) -> Iterator[Registry]:
    """Serve one as long as the block lasts."""
    handler = type("Handler", (_Handler,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.registry = Registry(f"127.0.0.1:{server.server_address[1]}", login, filling)  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield handler.registry  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
