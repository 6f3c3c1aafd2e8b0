"""Recorded requests and faults, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from urllib.parse import parse_qsl


@dataclass
class Request:
    """A received request. `user` (login, empty if anonymous) and `status` (0 if never answered) are filled in while it is
    handled; `at` is the forge's time when it arrived.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    at: datetime | None = None
    user: str = ""
    status: int = 0

    @property
    def target(self) -> str:
        """Path and query as one string."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def parameters(self) -> dict[str, str]:
        """The query as a dictionary; the first of several values counts, as in Go."""
        parameters: dict[str, str] = {}
        for name, value in parse_qsl(self.query, keep_blank_values=True):
            parameters.setdefault(name, value)
        return parameters

    def header(self, name: str) -> str:
        """The value of a header (case-insensitive), or an empty string."""
        return next((value for key, value in self.headers.items() if key.lower() == name.lower()), "")


@dataclass
class Response:
    """A response: status, headers and the exact body."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """A fault for one request.

    status: respond with this and do nothing (with `headers` and `body`, e.g. 429 and Retry-After). Without one, the API sends it
    like its own errors.
    body: without a status, do what was asked and respond with this body instead of the right one.
    cut: do what was asked, announce the whole body, send only so many bytes of it and close.
    close: "before" closes without doing anything; "after" does what was asked and closes without a response.
    delay, delay_after: seconds to wait before doing what was asked, and between doing it and responding.
    """

    status: int | None = None
    body: bytes | str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    close: Literal["", "before", "after"] = ""
    delay: float = 0.0
    delay_after: float = 0.0


FaultPlan = Callable[[Request], "Fault | None"]
