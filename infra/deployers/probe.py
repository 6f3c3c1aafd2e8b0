"""Sends HTTP requests to an app as its reverse proxy would: its address and its answers."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import urljoin, urlsplit


@dataclass(frozen=True)
class Address:
    """Where the harness reaches the app: a unix socket, or a TCP host and port, with or without TLS."""

    host: str = ""
    port: int = 0
    unix: str = ""
    tls: bool = False
    proxied: bool = False  #: it is the server's proxy that answers, for all hosts that it knows
    given: bool = False  #: the app's own address for everybody, as a person gave it

    @property
    def scheme(self) -> str:
        """The scheme of a page's URL for whoever sends requests here.

        An app that is reached without its proxy is told that the proxy received the request over https, as on a server.
        """
        return "http" if (self.proxied or self.given) and not self.tls else "https"

    def https(self) -> Address | None:
        """Where a redirect to https on the same host leads; None if unknown.

        Only an address with port 80 also has port 443: next to any other port, https may belong to something else.
        """
        if self.scheme == "https":
            return self
        return replace(self, port=HTTPS_PORT, tls=True) if self.port == HTTP_PORT else None

    def headers(self, domain: str) -> dict[str, str]:
        """The headers that the server's proxy would add. They are also sent to the proxy itself, which may ignore them."""
        return {} if self.given or not domain else {"X-Forwarded-Proto": "https", "X-Forwarded-Host": domain}

    def typed(self, domain: str) -> str:
        """The command that requests the app as a run does; empty if nobody else can reach it."""
        if not self.host:
            return ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.proxied and domain:
            return f"curl -k --resolve {domain}:{self.port}:{host} {self.scheme}://{domain}:{self.port}/"
        headers = {"Host": domain, **self.headers(domain)} if domain else {}
        words = "".join(f"-H '{name}: {value}' " for name, value in headers.items())
        return f"curl {words}http{'s' if self.tls else ''}://{host}:{self.port}/"

    def connect(self, timeout: float, server_name: str = "") -> socket.socket:
        """A connected stream. Raises OSError.

        The certificate is not checked: the proxy is our own, addressed by IP, and shows its self-signed default certificate on a
        test server.
        """
        if self.unix:
            return connect_unix(self.unix, timeout)
        stream = socket.create_connection((self.host, self.port), timeout=timeout)
        if not self.tls:
            return stream
        try:
            return unverified().wrap_socket(stream, server_hostname=server_name or self.host)
        except OSError:
            stream.close()
            raise

    def way(self) -> str:
        """Our local address on the route to this one; empty if it cannot be determined.

        Once a deployment's own network is gone, the same address may belong to something else.
        """
        if self.unix or not self.host:
            return ""
        try:
            with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_DGRAM) as stream:
                stream.connect((self.host, self.port))  # sends nothing
                return str(stream.getsockname()[0])
        except (OSError, OverflowError):  # of a port that is none
            return ""

    def __str__(self) -> str:
        if self.unix:
            return "the sandbox's socket"
        return f"{self.host}:{self.port}"


def unverified() -> ssl.SSLContext:
    """A TLS context that accepts any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connect_unix(path: str, timeout: float) -> socket.socket:
    """Connect to the unix socket at `path`, which may exceed the 107 bytes of a socket address."""
    folder = os.open(Path(path).parent, os.O_PATH | os.O_CLOEXEC)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout)
        stream.connect(f"/proc/self/fd/{folder}/{Path(path).name}")
    except OSError:
        stream.close()
        raise
    finally:
        os.close(folder)
    return stream


def listen_unix(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening unix socket at `path`, of any length. Access is controlled by `mode` and the folders above."""
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    path.chmod(mode)
    listener.listen(64)
    return listener


HTTP_PORT, HTTPS_PORT = 80, 443
#: So many redirections in a row are followed.
MOST_HOPS = 10
_REDIRECTIONS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class Answer:
    """The app's answer to one GET, after redirects within the app."""

    status: int
    body: str = ""
    location: str = ""  #: where a redirection leads
    domain: str = ""  #: the host that was asked for
    cookies: Sequence[str] = ()  #: the lines that set them
    led: Sequence[str] = ()  #: the URLs within the app that redirections led to, the last one being that of this answer
    circle: str = ""  #: why the redirections come to no end, if they do not

    def inside(self, url: str) -> str:
        """Where within the app a redirect in answer to `url` leads; empty if this is not a redirect, or leads elsewhere."""
        if self.status not in _REDIRECTIONS or not self.location:
            return ""
        try:
            target = urlsplit(urljoin(url, self.location))
            port = target.port or _PORTS.get(target.scheme)
        except ValueError:
            return ""
        if target.hostname != (self.domain or "localhost").lower() or not port or port != _PORTS.get(target.scheme):
            return ""
        found = target._replace(netloc=target.hostname, path=target.path or "/", fragment="").geturl()
        return found if _SENDABLE.fullmatch(found) else ""

    def only_to_https(self, address: Address) -> bool:
        """Whether a proxy without TLS redirects to https on the same host, as it does for every host, known or not."""
        if not address.proxied or address.tls or self.status not in _REDIRECTIONS:
            return False
        try:
            parts = urlsplit(self.location)
            return parts.scheme == "https" and (parts.hostname or "") == self.domain.lower()
        except ValueError:
            return False

    def from_proxy(self, address: Address) -> bool:
        """Whether this is the proxy's answer for a host that it does not know.

        Traefik answers `404 page not found`; a proxy that redirects everything to https does so for unknown hosts as well.
        """
        unknown = address.proxied and self.status == 404 and self.body.strip() == "404 page not found"
        return unknown or self.only_to_https(address)

    def from_app(self, address: Address) -> bool:
        """Whether the app itself answered, without an error of its own or of the proxy."""
        return self.status < 500 and not self.circle and not self.from_proxy(address)

    def summary(self, path: str) -> str:
        """The result of GET `path`, as part of a sentence."""
        if self.circle:
            return f"GET {path} {self.circle}"
        led = f"redirected to {self.led[-1]}, which " if self.led else ""
        return f"GET {path} {led}returned {self.status}"


_PORTS = {"http": 80, "https": 443}
_SENDABLE = re.compile("[!-~]{1,8000}")
_MOST_COOKIES = 8000


class _Response(http.client.HTTPResponse):
    """A response that never reads more than was requested.

    Python accepts a chunk size of `-1`, and then reads everything that arrives into memory.
    """

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise ValueError("a negative chunk size")
        return size


class TimedConnection(http.client.HTTPConnection):
    """HTTP over a stream that `opened` connects: in a `with` block, for at most `timeout` seconds, however slow the data."""

    response_class = _Response

    def __init__(self, host: str, opened: Callable[[float], socket.socket], timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self.late = False  #: whether its time was up
        self._opened, self._seconds = opened, timeout
        self._stream: socket.socket | None = None  # `sock` is None while the last answer is read
        self._watchdog = threading.Timer(timeout, self._end)
        self._watchdog.daemon = True

    def connect(self) -> None:
        self.sock = self._stream = self._opened(self._seconds)
        if self.late:
            self._end()

    def _end(self) -> None:
        self.late = True
        if self._stream is not None:
            with suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._watchdog.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self.close()


def probe(address: Address, domain: str = "", path: str = "/", timeout: float = 5.0, final: Sequence[int] = ()) -> Answer | None:
    """GET `path` with the Host header `domain`, within `timeout` seconds. None if nothing there speaks HTTP.

    Redirects within the app are followed, with their cookies, as a browser would do; the final answer counts. Statuses in `final`
    are returned as they are.
    """
    until = time.monotonic() + timeout
    url = f"{address.scheme}://{domain or 'localhost'}{path}"
    led: list[str] = []
    cookies: dict[str, str] = {}
    seen: set[object] = set()
    before: Answer | None = None
    while True:
        where = address.https() if url.startswith("https:") else address
        if where is None:  # it leads to another port, which is not asked, as `Answer.inside` has it
            return before
        answer = _get(where, domain, url, cookies, until - time.monotonic())
        if answer is None:  # a proxy that leads to https where it does not listen has at least said so
            return before if before and before.only_to_https(address) else None
        answer = replace(answer, led=tuple(led))
        target = answer.inside(url)
        if not target or (answer.status in final and not answer.only_to_https(where)):
            return answer
        seen.add((url, *sorted(cookies.items())))
        _keep(cookies, answer.cookies)
        if (target, *sorted(cookies.items())) in seen:
            return replace(answer, circle=f"redirects in a loop: {url} redirects to {target}, which was already requested")
        if len(led) == MOST_HOPS:
            return replace(answer, circle=f"redirects too often: after {MOST_HOPS} redirects {url} redirects to {target}")
        led.append(target)
        url, before = target, answer


def _get(address: Address, domain: str, url: str, cookies: Mapping[str, str], timeout: float) -> Answer | None:
    headers = {"Connection": "close", "User-Agent": "cc-ci", **address.headers(domain)}
    if cookies:
        headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    path = "/" + url.partition("://")[2].partition("/")[2]
    opened = partial(address.connect, server_name=domain)
    with TimedConnection(domain or "localhost", opened, max(timeout, 0.01)) as connection:
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read(4096).decode(errors="replace")
            location, given = response.headers.get("Location", ""), response.headers.get_all("Set-Cookie", [])
            return Answer(response.status, body, location, domain, cookies=given)
        except (OSError, ValueError, http.client.HTTPException):
            return None


def _keep(cookies: dict[str, str], given: Sequence[str]) -> None:
    """Store an answer's cookies, as far as they can be sent back."""
    for line in given:
        name, _, value = line.partition(";")[0].partition("=")
        if _SENDABLE.fullmatch(f"{name.strip()}={value.strip()}") and sum(map(len, cookies.values())) < _MOST_COOKIES:
            cookies[name.strip()] = value.strip()
