"""The fake forge's HTTP server: API, git and pages on one port, with the faults that tests request."""

from __future__ import annotations

import contextlib
import email.utils
import socket
import sys
import threading
import time
from datetime import UTC
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from enrollment.fakeforge import api, gitserve, oauth, pages, routes_hooks, routes_issues, routes_people, routes_repo
from enrollment.fakeforge.deliveries import Deliverer
from enrollment.fakeforge.faults import Fault, Request, Response
from enrollment.fakeforge.render import encode
from enrollment.fakeforge.store import Forge

# These modules only register their routes with the API.
_ROUTES = (routes_people, routes_issues, routes_repo, routes_hooks)


def answer(forge: Forge, request: Request) -> Response:
    """The forge's response to a request, without faults."""
    if request.path == api.PREFIX or request.path.startswith(api.PREFIX + "/"):
        return api.handle(forge, request)
    return gitserve.handle(forge, request) or oauth.handle(forge, request) or pages.handle(forge, request)


class Server:
    """A running server. It stops at the end of a `with` block, or by `stop`.

    `deliveries.done` lists what was sent to webhooks, after `deliveries.flush()` has waited for it.
    """

    def __init__(self, forge: Forge, host: str, port: int) -> None:
        self.forge = forge
        self._http = _Http((host, port), forge)
        self.host, self.port = host, self._http.server_address[1]
        self.url = forge.url = f"http://{host}:{self.port}"
        self.deliveries = Deliverer(forge)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="fakeforge", daemon=True)
        self._thread.start()

    @property
    def connections(self) -> int:
        """Number of connections opened to it so far."""
        return self._http.accepted

    def stop(self) -> None:
        """Stop listening and drop all connections, idle or busy, like a server that dies. May be called twice."""
        self._http.shutdown()
        self._http.server_close()
        self._http.cut_all()
        self.deliveries.stop()
        self._thread.join()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def serve(forge: Forge, host: str = "127.0.0.1", port: int = 0) -> Server:
    """Serve a forge in threads of this process and set its URL. Port 0 picks a free one.

    Raises OSError if the port is in use.
    """
    return Server(forge, host, port)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], forge: Forge) -> None:
        self.forge = forge
        self._open: set[socket.socket] = set()
        self.accepted = 0
        super().__init__(address, _Handler)
        # A connection aborted between select and accept would block `accept` forever, and so `stop`.
        self.socket.settimeout(1.0)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        self.accepted += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Killed or impatient clients leave broken connections behind, which many tests provoke.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def cut_all(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server_version, sys_version = "fakeforge", ""

    def _serve(self) -> None:
        forge = self.server.forge
        parts = urlsplit(self.path)
        request = Request(self.command, parts.path, parts.query, dict(self.headers.items()), self._read(), forge.clock())
        forge.requests.append(request)
        fault = (forge.faults(request) if forge.faults else None) or Fault()
        time.sleep(fault.delay)
        if fault.close == "before":
            self._cut()
            return
        if fault.status is not None:
            body = _error(forge, request, fault.status) if fault.body is None else fault.body
            response = Response(fault.status, _bytes(body), dict(fault.headers))
        else:
            response = self._answer(forge, request)
            response.headers.update(fault.headers)
            if fault.body is not None:
                response.body = _bytes(fault.body)
        time.sleep(fault.delay_after)
        if fault.close == "after":
            self._cut()
            return
        request.status = response.status
        self._send(response, fault.cut)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The Date header has the forge's time: a client may measure its clock skew."""
        return email.utils.format_datetime(self.server.forge.clock().astimezone(UTC), usegmt=True)

    def _answer(self, forge: Forge, request: Request) -> Response:
        try:
            return answer(forge, request)
        except Exception as error:
            # A bug in the fake forge must show in the test's output, and as a broken server's response.
            self.log_error("%s %s: %r", request.method, request.target, error)
            return Response(500, encode({"message": "", "url": f"{forge.url}/api/swagger"}))

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        content = self.rfile.read(size)
        self.rfile.readline()
        return content

    def _send(self, response: Response, cut: int | None) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if response.status not in (204, 304):
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD" and response.status not in (204, 304):
            self.wfile.write(response.body[:cut])
        self.wfile.flush()
        if cut is not None:
            self._cut()

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Do not log single requests; `Forge.requests` has them."""

    def log_error(self, format: str, *args: object) -> None:
        """Log errors to standard error."""
        super().log_message(format, *args)


def _error(forge: Forge, request: Request, status: int) -> bytes:
    if status < 400 or not request.path.startswith(api.PREFIX + "/"):
        return b""
    return encode({"message": "", "url": f"{forge.url}/api/swagger"})


def _bytes(body: bytes | str) -> bytes:
    return body.encode() if isinstance(body, str) else body
