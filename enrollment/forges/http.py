"""The wire to a forge: one request and its answer, with a limit on time and size, and errors that say what they mean.

Connections are kept by thread and address and used by all clients there, whatever their token: a task that makes a client for
three requests opens no connection of its own. A child process begins with none of its parent's.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from enrollment.forges.base import (
    Ask,
    Forbidden,
    ForgeError,
    Garbage,
    Gate,
    NotFound,
    RateLimited,
    Rejected,
    Unauthorized,
    Unavailable,
)

MAX_BODY = 32 * 1024 * 1024
DAY = 24 * 3600
#: Addresses whose connections a thread keeps.
KEPT = 8

#: What a request is for, by method and path; the first that fits. Paths of a repository begin behind its name.
KINDS = (
    ("*", r"/hooks", "hooks"),
    ("POST PATCH DELETE", r"/reactions$", "react"),
    ("POST PATCH DELETE", r"/comments", "comment"),
    ("POST", r"/statuses/", "status"),
    ("POST PUT PATCH DELETE", r"", "push"),
    ("GET", r"^/repos/(issues/)?search$", "search"),
    ("GET", r"/comments$", "read comments"),
    ("GET", r"/pulls/|/timeline$", "read pull"),
    ("GET", r"^/(user|users|orgs|teams)(/|$)|/collaborators/", "people"),
    ("GET", r"", "read"),
)


def ask_of(method: str, path: str) -> Ask:
    """What a request is, for the table of requests and the sharing of the budget."""
    kind = next(
        kind
        for methods, pattern, kind in KINDS
        if methods in ("*", method) or method in methods.split()
        if re.search(pattern, path)
    )
    match = re.match(r"/repos/([^/]+)/([^/]+)/?", path)
    repository = f"{match[1]}/{match[2]}".lower() if match and kind != "search" else ""
    return Ask(kind, repository)


class Http:
    """Requests to one address, as one client."""

    def __init__(self, address: str, headers: Mapping[str, str], timeout: float, gate: Gate | None) -> None:
        self.address, self.headers, self.timeout, self.gate = address, headers, timeout, gate
        self.server_time: datetime | None = None

    def once(
        self, method: str, path: str, params: dict[str, Any] | None = None, body: dict[str, Any] | None = None
    ) -> requests.Response:
        """One request. Raises ForgeError for all that is no 2xx, and what the gate raises before it is made."""
        ask = ask_of(method, path)
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
                # A write that is redirected would turn into a read.
                allow_redirects=method == "GET",
            )
            with response:
                response._content = _body(response, time.monotonic() + self.timeout)
        except requests.Timeout:
            raise Unavailable(f"{where}: no answer within {self.timeout:g} s") from None
        except (requests.RequestException, OSError) as error:
            raise Unavailable(f"{where}: {_reason(error)}") from None
        self._note_time(response)
        refusal = _error(where, response)
        if refusal:
            raise refusal
        return response

    def _note_time(self, response: requests.Response) -> None:
        try:
            self.server_time = parsedate_to_datetime(response.headers["Date"]).astimezone(UTC)
        except (KeyError, ValueError, TypeError, OverflowError):
            pass


# --- connections

_kept = threading.local()


def session_for(address: str) -> requests.Session:
    """This thread's connections to an address. They carry no token and keep no cookie, so that clients can share them."""
    if getattr(_kept, "pid", None) != os.getpid():
        _kept.pid, _kept.sessions = os.getpid(), OrderedDict()
    sessions: OrderedDict[str, requests.Session] = _kept.sessions
    session = sessions.pop(address, None)
    if session is None:
        session = requests.Session()
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_connections=2, pool_maxsize=2))
        while len(sessions) >= KEPT:
            sessions.popitem(last=False)[1].close()
    sessions[address] = session
    return session


# --- answers


def _body(response: requests.Response, deadline: float) -> bytes:
    """The body, with a limit on size and on time as a whole: a forge may also be slow byte by byte."""
    parts, size = [], 0
    for part in response.iter_content(64 * 1024):
        size += len(part)
        if size > MAX_BODY:
            raise Garbage("an answer of more than 32 MB")
        if time.monotonic() > deadline:
            raise requests.Timeout
        parts.append(part)
    return b"".join(parts)


def _error(where: str, response: requests.Response) -> ForgeError | None:
    status = response.status_code
    if status < 300:
        return None
    text = f"{where}: {status}{_message(response)}"
    if status < 400:
        # A redirect of a write, or one that leads nowhere: the thing has another name now.
        return NotFound(f"{text} (moved)", status=status)
    kinds: dict[int, type[ForgeError]] = {401: Unauthorized, 403: Forbidden, 404: NotFound, 410: NotFound, 429: RateLimited}
    kinds[408] = Unavailable
    kind = kinds.get(status, Unavailable if status >= 500 else Rejected)
    return kind(text, status=status, retry_after=_retry_after(response))


def _retry_after(response: requests.Response) -> float | None:
    """Seconds from now, whichever of its two forms the header has; a date is held against the forge's own clock."""
    value = response.headers.get("Retry-After", "")
    if (seconds := whole(value)) is not None:
        return float(min(seconds, DAY))
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    try:
        now = parsedate_to_datetime(response.headers["Date"])
    except (KeyError, ValueError, TypeError):
        now = datetime.now(UTC)
    try:
        return min(max(0.0, (until - now).total_seconds()), float(DAY))
    except TypeError:  # one of them without a zone
        return None


def whole(text: str) -> int | None:
    """A whole number in a header, or None."""
    return int(text) if text.isdecimal() and len(text) < 20 else None


def storable(value: Any) -> Any:
    """JSON without what no database holds: NUL, and halves of surrogates, which JSON can say as six plain characters."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value


def _message(response: requests.Response) -> str:
    try:
        message = response.json()["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f" ({storable(str(message))[:200]})" if message else ""


def _reason(error: BaseException) -> str:
    """The innermost cause: the outer ones repeat addresses and object names."""
    inner = error.__cause__ or error.__context__
    return _reason(inner) if inner else str(error)[:200] or type(error).__name__
