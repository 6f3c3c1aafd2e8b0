"""The web server of `cc-ci work --web`: waitress, with deadlines for slow clients.

One thread reads all connections, and a request occupies a worker thread only once it is complete; so clients that send a byte now
and then delay nobody. Waitress only closes silent connections. Here each request has a deadline to arrive and each response one
to be read, the number of connections and their size are bounded, and when there are too many, the one that has waited longest is
closed. A request that `Registry.guards` refuses is answered before its body is read.
"""

from __future__ import annotations

import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from django.http.request import HttpHeaders
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

log = logging.getLogger("controlplane.work")

THREADS = 16
#: Most simultaneous connections, if the limit on open files allows it.
CONNECTIONS = 500
#: Most bytes of a request's headers, its body, and all incomplete bodies together.
HEAD_BYTES, BODY_BYTES, ALL_BYTES = 32 * 1024, 1024 * 1024, 64 * 1024 * 1024
#: Most bytes of all answers together that clients have not read yet. They are in files.
ALL_ANSWERS = 1 << 30
#: Deadline of a connection in seconds, by its state. A proxy keeps connections open between requests for up to 90 s.
SECONDS = {"head": 10, "body": 20, "idle": 120, "answer": 120, "closing": 2}
#: Seconds to finish open requests when the server stops.
GRACE = 5

#: Guard: may refuse a request by its method, path and headers, with a status and a text; else None.
Judge = Callable[[str, str, Mapping[str, str]], tuple[int, str] | None]


class Refusal:
    """A response sent instead of reading a body, in the form of a waitress error."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = HTTPStatus(status), text

    def to_response(self, ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        headers = [("Content-Type", "text/plain; charset=utf-8")]
        return f"{self.status.value} {self.status.phrase}", headers, self.text.encode()


class Parser(HTTPRequestParser):  # type: ignore[misc]
    """A request being received. It is judged when its headers are complete, before its body."""

    judged = False
    #: Missing for an unreadable request.
    path = ""

    def received(self, data: bytes) -> int:
        consumed: int = super().received(data)
        if self.headers_finished and not self.judged and not self.empty and self.path:
            self.judged = True
            waits = self.body_rcv is not None and not self.body_bytes_received
            path = f"/{self.path.lstrip('/')}"  # as the application will see it
            if waits and (refused := self.adj.judge(self.command.upper(), path, self._headers())):
                self.error, self.completed = Refusal(*refused), True
        if self.error:
            self.expect_continue = False  # it is answered without its body
        return consumed

    def _headers(self) -> Mapping[str, str]:
        plain = ("CONTENT_TYPE", "CONTENT_LENGTH")
        return HttpHeaders({name if name in plain else f"HTTP_{name}": value for name, value in self.headers.items()})


class Channel(HTTPChannel):  # type: ignore[misc]
    """A connection, and the time since it entered its state."""

    parser_class = Parser
    #: Whether its request was refused: reads and drops the rest for a moment, or the client would not get the response.
    refused = lingering = False
    passed_over = 0
    served = 0

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.requests_lock = threading.RLock()  # see `received`
        self.at: tuple[str, object] = ("head", None)
        self.since = time.monotonic()

    def received(self, data: bytes) -> bool:
        """Close connections that send the next request before this one is answered: each would take extra files and memory, and
        escape its deadline. No browser or proxy does that. (What follows a refused request is ignored.)
        """
        with self.requests_lock:  # no worker thread starts on the second request before this is decided
            taken = bool(super().received(data))
            begun = self.request
            more = begun is not None and (begun.headers_finished or begun.header_plus.strip())  # an empty line is not a request
            if self.requests and (len(self.requests) > 1 or more) and not self.requests[0].error:
                self.drop()
            return taken

    def _doing(self) -> tuple[str, object]:
        """Its state, and of which request: the next request's time starts over."""
        if self.requests:
            return "served", None
        if self.lingering:
            return "closing", None
        if self.total_outbufs_len:
            return "answer", self.served
        if self.request is not None:
            return ("body" if self.request.headers_finished else "head"), self.request
        return ("idle", self.served) if self.served else ("head", None)

    def tend(self, now: float) -> None:
        """Close it if its deadline has passed. Called every second."""
        doing = self._doing()
        if doing[0] != self.at[0] or doing[1] is not self.at[1]:
            self.at, self.since = doing, now
        elif now - self.since > SECONDS.get(doing[0], float("inf")):
            self.drop()

    def drop(self) -> None:
        """Close it immediately."""
        self.refused = False
        self.handle_close()

    @property
    def waits(self) -> bool:
        """Whether it is waiting for the client."""
        return not self.requests and not self.total_outbufs_len

    @property
    def bytes_waiting(self) -> int:
        return self.request.body_bytes_received if self.request is not None else 0

    def service(self) -> None:
        self.refused = self.refused or bool(self.requests[0].error)
        super().service()
        self.served += 1

    def handle_close(self) -> None:
        if self.refused and not self.lingering and self.connected:
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            else:
                self.lingering, self.will_close = True, False
                return
        super().handle_close()

    def readable(self) -> bool:
        return self.lingering or bool(super().readable())

    def handle_read(self) -> None:
        if not self.lingering:
            super().handle_read()
            return
        try:
            self.passed_over += len(self.recv(65536))
        except OSError:
            self.handle_close()
        if self.passed_over > 4 * BODY_BYTES:
            self.drop()


class Server(TcpWSGIServer):  # type: ignore[misc]
    """The listening socket."""

    channel_class = Channel

    def maintenance(self, now: float) -> None:
        now = time.monotonic()
        channels: list[Channel] = list(self.active_channels.values())
        for channel in channels:
            channel.tend(now)
        for held, most in (("bytes_waiting", ALL_BYTES), ("total_outbufs_len", ALL_ANSWERS)):
            together = sum(getattr(channel, held) for channel in channels)
            for channel in sorted(channels, key=lambda channel: channel.since) if together > most else []:
                if together > most and (mine := getattr(channel, held)):
                    together -= mine
                    channel.drop()

    def handle_accept(self) -> None:
        super().handle_accept()
        if len(self.active_channels) > self.adj.most_connections:
            oldest = min((c for c in self.active_channels.values() if c.waits), key=lambda channel: channel.since, default=None)
            if oldest is not None:
                oldest.drop()

    @property
    def busy(self) -> bool:
        return any(not channel.waits or channel.request is not None for channel in self.active_channels.values())


def serve(application: Callable[..., Any], listener: socket.socket, judge: Judge, ready: Callable[[], object]) -> None:
    """Serve until SIGTERM or SIGINT, then let open requests finish for a few seconds."""
    adjustments = Adjustments(
        sockets=[listener],
        threads=THREADS,
        max_request_header_size=HEAD_BYTES,
        max_request_body_size=BODY_BYTES + 1,
        inbuf_overflow=64 * 1024,
        outbuf_high_watermark=64 * 1024 * 1024,
        cleanup_interval=1,
        asyncore_use_poll=True,
        log_socket_errors=False,
        clear_untrusted_proxy_headers=False,  # `controlplane.middleware` knows the trusted proxies
        ident=None,
    )
    adjustments.judge = judge
    adjustments.most_connections = _connections()
    adjustments.connection_limit = adjustments.most_connections + 100  # excess connections are dropped, not kept waiting
    dispatcher = ThreadedTaskDispatcher()
    dispatcher.set_thread_count(THREADS)
    sockets: dict[int, Any] = {}
    info = (listener.family, listener.type, listener.proto, listener.getsockname())
    server = Server(application, sockets, True, listener, dispatcher, adjustments, info, bind_socket=False)
    stopping: list[int] = []

    def stop(number: int, frame: object) -> None:
        stopping.append(number)
        server.pull_trigger()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    ready()
    while not stopping:
        wasyncore.loop(timeout=1, use_poll=True, map=sockets, count=1)
    server.accepting = False
    until = time.monotonic() + GRACE
    while server.busy and time.monotonic() < until:
        wasyncore.loop(timeout=0.1, use_poll=True, map=sockets, count=1)
    dispatcher.shutdown(timeout=max(0.0, until - time.monotonic()))


def _connections() -> int:
    """The most connections: each is a file, plus two for long requests and responses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * CONNECTIONS + 200
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(20, min(CONNECTIONS, (soft - 200) // 3))
