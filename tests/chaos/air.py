"""What lies between our client and the sandbox forge, in one process: no sockets, virtual time, and bad weather.

`Air` takes the place of the connection, and of nothing else: requests are built, redirects followed, bodies read and cut by the
same libraries as ever, and the forge's own code answers. What a test wants to go wrong it says with a function from the request
to a `Strike`. `VirtualTime` is the clock of it all: what waits moves the clock instead.
"""

from __future__ import annotations

import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import requests
import time_machine
from requests.adapters import HTTPAdapter
from urllib3 import HTTPHeaderDict, HTTPResponse

from enrollment.fakeforge.faults import Request, Response
from enrollment.fakeforge.server import answer
from enrollment.fakeforge.store import Forge as SandboxForge
from enrollment.forges import http

#: Whose waiting and measuring goes by virtual time; the sandbox and the processes are left alone.
OURS = ("enrollment.", "runs.", "tenacity.nap")


class VirtualTime:
    """A clock that stands still until it is moved. In its `with` block it is everybody's.

    workers: as many of ours wait at the same time in reality; what one waits moves the clock by its part of that. A task's own
        deadline, which goes by time.monotonic(), sees all of it.
    """

    def __init__(self, start: datetime, workers: int = 1) -> None:
        self.start, self.workers = start, workers
        self._waited, self._began = 0.0, 0.0
        self._traveller: Any = None

    def __call__(self) -> float:
        """Seconds since the start."""
        return time.time() - self.start.timestamp()

    def monotonic(self) -> float:
        return self() + self._waited

    def wait(self, seconds: float) -> None:
        """One of ours waits."""
        part = seconds / self.workers
        self._traveller.shift(part)
        self._waited += seconds - part

    def until(self, second: float) -> None:
        """Nothing happens until then."""
        if second > self():
            self._traveller.shift(second - self())

    @contextmanager
    def running(self) -> Iterator[None]:
        ours = [
            module
            for name, module in list(sys.modules.items())
            if name.startswith(OURS) and not name.startswith("enrollment.fakeforge") and getattr(module, "time", None) is time
        ]
        shim = mock.Mock(wraps=time, monotonic=self.monotonic, sleep=self.wait)
        with time_machine.travel(self.start, tick=False) as self._traveller:
            for module in ours:
                module.time = shim  # type: ignore[attr-defined]
            try:
                yield
            finally:
                for module in ours:
                    module.time = time  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Strike:
    """What becomes of one request.

    lost: it never reaches the forge. Else the forge does what was asked, and then:
    status, body: this is answered instead; slow: after so many seconds; hang: no answer comes, until the time-out;
    cut: the body ends after this part of it; change: any other answer, made from the right one.
    """

    name: str
    lost: bool = False
    status: int = 0
    body: bytes = b""
    slow: float = 0.0
    hang: bool = False
    cut: float | None = None
    change: Callable[[Response], Response] | None = None


FAIR = Strike("well")


class Air(HTTPAdapter):
    """Carries requests to the forge without a socket, and strikes some of them."""

    def __init__(self, forge: SandboxForge, wait: Callable[[float], None]) -> None:
        super().__init__()
        self.forge, self.wait = forge, wait
        self.strike: Callable[[Request], Strike] = lambda request: FAIR
        self.counts: Counter[str] = Counter()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        parts = urlsplit(request.url or "")
        body = request.body.encode() if isinstance(request.body, str) else request.body or b""
        asked = Request(request.method or "", parts.path, parts.query, dict(request.headers), bytes(body), self.forge.clock())
        self.forge.requests.append(asked)
        strike = self.strike(asked)
        self.counts[strike.name] += 1
        limit = float(kwargs.get("timeout") or 10)
        if strike.hang and strike.lost:
            self.wait(limit)
            raise requests.ReadTimeout
        if strike.lost and not strike.status:
            raise requests.ConnectionError("connection refused")
        found = Response(strike.status, strike.body) if strike.lost else answer(self.forge, asked)
        if strike.hang or strike.slow >= limit:
            self.wait(limit)
            raise requests.ReadTimeout
        self.wait(max(strike.slow, 0.01))  # no answer takes no time at all: what is done later has a later time
        if strike.status and not strike.lost:
            found = Response(strike.status, strike.body)
        if strike.change:
            found = strike.change(found)
        asked.status = found.status
        return self._response(request, found, strike.cut)

    def _response(self, request: requests.PreparedRequest, found: Response, cut: float | None) -> requests.Response:
        headers = HTTPHeaderDict({"Date": format_datetime(self.forge.clock().astimezone(UTC), usegmt=True)})
        headers.update(found.headers)
        headers.setdefault("Content-Length", str(len(found.body)))
        body = found.body if cut is None else found.body[: int(len(found.body) * cut)]
        raw = HTTPResponse(io.BytesIO(body), headers, found.status, preload_content=False, request_method=request.method)
        return self.build_response(request, raw)

    @contextmanager
    def carrying(self) -> Iterator[None]:
        """In this block our client's requests go this way."""
        session = requests.Session()
        session.mount("http://", self)
        with mock.patch.object(http, "session_for", lambda address: session):
            yield
