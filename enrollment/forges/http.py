"""HTTP to a forge: one request and its response, with limits on time and size, and errors that say what they mean.

Connections are kept per thread and address and shared by all clients there, whatever their token, so a task that creates a
client for three requests opens no connection of its own. A child process starts without its parent's.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from enrollment.forges.base import (
    Ask,
    Forbidden,
    ForgeError,
    Garbage,
    Gate,
    NoRoute,
    NotFound,
    RateLimited,
    Rejected,
    Unauthorized,
    Unavailable,
)

MAX_BODY = 32 * 1024 * 1024
#: The most values in a JSON response: they may take some 200 MB of memory.
MAX_VALUES = 1_000_000
#: One without an end goes to the end: no place is looked at twice.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
DAY = 24 * 3600
#: The response of Go's library for a missing route: from an older forge, or the proxy of one that is down.
NO_ROUTE = "404 page not found"
#: Redirections that are followed, one after the other: a repository may have been renamed, and a server moved. Each has its time.
REDIRECTS = 5
#: Maximum number of addresses to which a thread keeps connections.
KEPT = 8


class Http:
    """Requests to the API at one address, for one client. `api` is its path, `ask_of` returns the kind of a request by method
    and path, `message_of` what an error's response says, None if it is not the server's own. Without `redirects` it follows none.
    """

    def __init__(
        self,
        url: str,
        api: str,
        headers: Mapping[str, str],
        timeout: float,
        gate: Gate | None,
        ask_of: Callable[[str, str], Ask],
        message_of: Callable[[requests.Response], str | None] | None = None,
        redirects: bool = True,
    ) -> None:
        self.address, self.api, self.headers, self.timeout, self.gate = url + api, api, headers, timeout, gate
        self.ask_of, self.message_of, self.redirects = ask_of, message_of or _message, redirects
        self.server_time: datetime | None = None

    def once(
        self, method: str, path: str, params: dict[str, Any] | None = None, body: dict[str, Any] | None = None
    ) -> requests.Response:
        """Send one request. Raises ForgeError for anything but 2xx, and what the gate raises before it is sent."""
        ask = self.ask_of(method, path)
        if self.gate:
            self.gate.enter(ask)
        begun = time.monotonic()
        try:
            response = self._once(method, path, params, body)
        except ForgeError as error:
            self._leave(ask, begun, error)
            raise
        # Any other exception (a task's time is up, somebody stops the program) tells nothing of the forge, and so neither how it
        # is nor what the token may do there is noted.
        self._leave(ask, begun, None)
        return response

    def _leave(self, ask: Ask, begun: float, error: ForgeError | None) -> None:
        if self.gate:
            self.gate.leave(ask, time.monotonic() - begun, error)

    def _once(self, method: str, path: str, params: dict[str, Any] | None, body: dict[str, Any] | None) -> requests.Response:
        where = f"{method} {path}"
        try:
            response = session_for(self.address).request(
                method,
                self.address + path,
                params=params,
                json=body,
                headers=self.headers,
                timeout=self.timeout,
                stream=True,
                # A redirected write would become a read.
                allow_redirects=self.redirects and method == "GET",
            )
            with response:
                response._content = _body(response)
        except (requests.Timeout, TimeoutError):
            raise Unavailable(f"{where}: no whole response within {self.timeout:g} s") from None
        except (requests.RequestException, OSError) as error:
            raise Unavailable(f"{where}: {_reason(error)}") from None
        except ValueError as error:  # such as an address in a redirection that is none
            raise Garbage(f"{where}: the answer cannot be read: {error}") from None
        self._note_time(response)
        refusal = _error(where, response, self.api, self.message_of(response) if response.status_code >= 300 else None)
        if refusal:
            raise refusal
        return response

    def _note_time(self, response: requests.Response) -> None:
        self.server_time = date_in(response.headers, "Date") or self.server_time


# --- connections


class _Until(io.RawIOBase):
    """What comes through a socket, until a response's time is over: the socket's own limit is for each read only."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, until: float) -> None:
        self._raw, self._sock, self._until = raw, sock, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the whole response took too long")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    """Head and body have to come within the read timeout together, from when the request was sent."""

    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        if seconds := sock.gettimeout():
            until = time.monotonic() + seconds
            self.fp = io.BufferedReader(_Until(self.fp.detach(), sock, until))

    def begin(self) -> None:
        """Read the head, after those of interim responses: http.client knows 100 only, and what follows would answer the next
        request.
        """
        super().begin()
        while self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = type("Connection", (HTTPConnectionPool.ConnectionCls,), {"response_class": _Response})


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = type("Connection", (HTTPSConnectionPool.ConnectionCls,), {"response_class": _Response})


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        super().init_poolmanager(*args, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}

    def proxy_manager_for(self, *args: Any, **more: Any) -> Any:
        manager = super().proxy_manager_for(*args, **more)
        manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        return manager


_kept = threading.local()


class _Session(requests.Session):
    """Of the environment's settings, only its proxies and certificates count: a password that ~/.netrc has for the forge, for
    git, would take our token's place, with another's rights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.auth = lambda request: request
        self.max_redirects = REDIRECTS
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target: str | None = super().get_redirect_target(resp)
        if target:
            resp._content = _body(resp)  # else requests reads it before it goes on, however large it is
        return target

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        if self.should_strip_auth(response.request.url, prepared_request.url):  # type: ignore[no-untyped-call]
            prepared_request.headers.pop("Authorization", None)


def session_for(address: str) -> requests.Session:
    """This thread's connections to an address. They carry no token and keep no cookies, so clients can share them."""
    if getattr(_kept, "pid", None) != os.getpid():
        _kept.pid, _kept.sessions = os.getpid(), OrderedDict()
    sessions: OrderedDict[str, requests.Session] = _kept.sessions
    session = sessions.pop(address, None)
    if session is None:
        session = _Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(pool_connections=2, pool_maxsize=2))
        while len(sessions) >= KEPT:
            sessions.popitem(last=False)[1].close()
    sessions[address] = session
    return session


# --- responses


def _body(response: requests.Response) -> bytes:
    """The body, limited in size."""
    parts, size = [], 0
    for part in response.iter_content(64 * 1024):
        size += len(part)
        if size > MAX_BODY:
            raise Garbage("a response of more than 32 MB")
        parts.append(part)
    return b"".join(parts)


def _error(where: str, response: requests.Response, api: str, said: str | None) -> ForgeError | None:
    status = response.status_code
    if status < 300:
        return None
    text = f"{where}: {status}{f' ({said})' if said else ''}"
    if status < 400:
        if f"{api}/" not in response.headers.get("Location", ""):
            return Garbage(f"{text}: a redirect to outside the forge's API", status=status)
        # It was renamed.
        return NotFound(f"{text} (moved)", status=status)
    passing: dict[int, type[ForgeError]] = {408: Unavailable, 425: Unavailable, 429: RateLimited}
    if status >= 500 or status in passing:
        return passing.get(status, Unavailable)(text, status=status, retry_after=_retry_after(response))
    if said is None:
        if status == 404 and response.content.strip() == NO_ROUTE.encode():  # not `text`, which may guess at 32 MB
            return NoRoute(text, status=status)
        # A proxy's page, perhaps while the forge restarts: the forge itself did not respond.
        return Garbage(f"{text}: not a forge's error format", status=status)
    kinds: dict[int, type[ForgeError]] = {401: Unauthorized, 403: Forbidden, 404: NotFound, 410: NotFound}
    return kinds.get(status, Rejected)(text, status=status, retry_after=_retry_after(response))


def _retry_after(response: requests.Response) -> float | None:
    """Seconds from now, whether the header has seconds or a date; a date is compared with the forge's own clock."""
    value = response.headers.get("Retry-After", "")
    if (seconds := whole(value)) is not None:
        return float(min(seconds, DAY))
    if (until := date_in(response.headers, "Retry-After")) is None:
        return None
    now = date_in(response.headers, "Date") or datetime.now(UTC)
    return min(max(0.0, (until - now).total_seconds()), float(DAY))


def date_in(headers: Mapping[str, str], name: str) -> datetime | None:
    """The date in a header; None if it has none, or one without a time zone."""
    try:
        found = parsedate_to_datetime(headers.get(name, "")[:100])
        return found.astimezone(UTC) if found.tzinfo else None
    except (ValueError, TypeError, OverflowError):
        return None


def whole(text: str) -> int | None:
    """An integer in a header, or None."""
    return int(text) if text.isdecimal() and len(text) < 20 else None


def storable(value: Any) -> Any:
    """JSON without what no database stores: NUL, and unpaired surrogates, which JSON can escape."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value


def json_of(response: requests.Response) -> Any:
    """The decoded JSON of a response. Raises Garbage."""
    if len(response.content) > MAX_VALUES and _values(response.content) > MAX_VALUES:
        raise Garbage(f"{urlsplit(response.url).path}: the response has more than {MAX_VALUES} values")
    try:
        return storable(json.loads(response.content.decode()))  # in UTF-16, values would be counted wrongly
    except (ValueError, RecursionError):
        raise Garbage(f"{urlsplit(response.url).path}: the response is not valid JSON") from None


def _values(content: bytes) -> int:
    """At least as many as the JSON has values. Each takes memory, 50 times what `{}` takes here."""
    rest = _STRING.sub(b"", content)
    return 1 + sum(map(rest.count, (b",", b"[", b"{")))


def _message(response: requests.Response) -> str | None:
    """The forge's error message; None if the response is not in a forge's format, JSON with a `message`."""
    try:
        message = json_of(response)["message"]
    except (Garbage, KeyError, TypeError):
        return None
    return message[:200] if isinstance(message, str) else None


def _reason(error: BaseException) -> str:
    """The innermost cause: the outer ones repeat addresses and object names."""
    inner = error.__cause__ or error.__context__
    return _reason(inner) if inner else str(error)[:200] or type(error).__name__
