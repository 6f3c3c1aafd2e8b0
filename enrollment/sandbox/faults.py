"""What tests hand in and read back: requests as the server saw them, and faults to answer them with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from urllib.parse import parse_qsl


@dataclass
class Request:
    """A request as it came in. `user` (login, empty for nobody) and `status` (0 when it was never answered) are filled
    in while it is answered; `at` is the forge's clock when it came."""

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
        """The query as a dictionary; of a name given twice the first counts, as in Go."""
        parameters: dict[str, str] = {}
        for name, value in parse_qsl(self.query, keep_blank_values=True):
            parameters.setdefault(name, value)
        return parameters

    def header(self, name: str) -> str:
        """The value of a header whatever the case of its name, or an empty string."""
        return next((value for key, value in self.headers.items() if key.lower() == name.lower()), "")


@dataclass
class Response:
    """An answer: status, headers and the exact body."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    status: answer this and do nothing (with `headers` and `body`, e.g. 429 and Retry-After).
    body: without a status, do what was asked and answer with this body instead of the right one.
    cut: do what was asked, announce the whole body, send only so many bytes of it and close.
    close: "before" closes without doing anything; "after" does what was asked and closes without an answer.
    delay, delay_after: seconds to wait before doing what was asked, and between doing it and answering.
    """

    status: int | None = None
    body: bytes | str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    close: Literal["", "before", "after"] = ""
    delay: float = 0.0
    delay_after: float = 0.0


FaultPlan = Callable[[Request], "Fault | None"]
