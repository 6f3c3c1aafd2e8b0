"""Drone's API, as far as the executor needs it: who we are, the runner repository, builds and their logs.

Requests go through the same code as those to forges (`enrollment.forges.http`): limits on time and size, and errors by what they
mean. docs/executors/drone.md has what Drone does differently from what one expects.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from urllib.parse import quote

import requests
from django.conf import settings
from django.db.models import F
from django.utils import timezone
from urllib3.exceptions import HTTPError

from controlplane import backoff
from enrollment.forges.base import Ask, CircuitOpen, ForgeError, Garbage, NotFound, RateLimited, Unavailable
from enrollment.forges.http import Http, json_of, session_for, storable
from runs.models import RemoteExecutor

API = "/api"
#: Steps of a build whose logs are read; ours has one or two.
STEPS = 50
#: Builds on a page; Drone gives no more.
PAGE = 100
#: The most that is read of a running step's log.
LIVE_BYTES = 8 << 20
#: Failures in a row after which nothing is asked for a while, and the first such wait.
OPENS_AFTER, FIRST_WAIT = 3, timedelta(seconds=10)

#: The statuses after which a build or step no longer changes. Anything else, known or not, counts as running.
FINAL = frozenset({"skipped", "declined", "success", "failure", "killed", "error"})


@dataclass(frozen=True)
class Repo:
    """The runner repository, and what the token's user may do there."""

    active: bool
    write: bool
    timeout_minutes: int
    clone_url: str
    config: str  #: the path of its pipeline
    visibility: str  #: private, internal (to all who log in) or public
    closed: bool  #: Drone ignores its pull requests and its forks


@dataclass(frozen=True)
class Step:
    stage: int
    number: int
    name: str
    status: str


@dataclass(frozen=True)
class Build:
    number: int
    status: str
    error: str
    event: str
    params: Mapping[str, str]
    created: datetime
    started: bool
    steps: tuple[Step, ...]

    @property
    def final(self) -> bool:
        return self.status in FINAL


class Circuit:
    """The gate before requests to one executor, shared by all processes through its row: after failures nothing is asked."""

    def __init__(self, row: RemoteExecutor) -> None:
        self._rows = RemoteExecutor.objects.filter(pk=row.pk)

    def enter(self, ask: Ask) -> None:
        row = self._rows.first()
        if row and row.open_until and row.open_until > timezone.now():
            wait = (row.open_until - timezone.now()).total_seconds()
            raise CircuitOpen(f"{row.failures} requests in a row failed; no requests for {wait:.0f} s ({row.last_error})"[:500])

    def leave(self, ask: Ask, seconds: float, error: ForgeError | None) -> None:
        if isinstance(error, Unavailable | RateLimited):
            self._rows.update(failures=F("failures") + 1, last_error=str(error)[:500])
            row = self._rows.first()
            if row and (row.failures >= OPENS_AFTER or error.retry_after):
                wait = backoff.wait(max(0, row.failures - OPENS_AFTER), FIRST_WAIT)
                if error.retry_after:
                    wait = min(backoff.LONGEST, timedelta(seconds=error.retry_after))
                self._rows.update(open_until=timezone.now() + wait)
        else:
            self._rows.exclude(failures=0).update(failures=0, open_until=None, last_error="")


class Drone:
    """A client with one executor's token, for its runner repository. Everything raises ForgeError."""

    def __init__(self, row: RemoteExecutor) -> None:
        """Raises SecretUnreadable."""
        self.url, self.repository, self.branch = row.url, row.repository, row.branch
        headers = {
            "Authorization": f"Bearer {row.reveal_token()}",
            "User-Agent": f"cc-ci/{settings.VERSION} (+{settings.CC_CI.base_url})",
        }
        gate = Circuit(row) if row.pk else None
        self._http = Http(row.url, API, headers, settings.CC_CI.http_timeout, gate, lambda method, path: Ask(method))
        self.admin = False  #: whether the user administers Drone and may everything, once `whoami` was asked
        self._path = "/repos/" + "/".join(quote(part, safe="") for part in row.repository.split("/"))

    @property
    def server_time(self) -> datetime:
        """Drone's clock at its last answer."""
        return self._http.server_time or datetime.now(UTC)

    def page(self, number: int) -> str:
        return f"{self.url}/{self.repository}/{number}"

    def whoami(self) -> str:
        """The login of the token's user. A wrong token is an error here and nowhere else: elsewhere it makes us a guest."""
        found = _mapping(self._get("/user"))
        self.admin = found.get("admin") is True
        return str(found.get("login", ""))

    def repo(self) -> Repo:
        found = _mapping(self._get(self._path))
        permissions = found.get("permissions")
        return Repo(
            active=found.get("active") is True,
            write=isinstance(permissions, dict) and permissions.get("write") is True,
            timeout_minutes=_number(found, "timeout"),
            clone_url=str(found.get("git_http_url", "")),
            config=str(found.get("config_path") or ".drone.yml"),
            visibility=str(found.get("visibility") or ("private" if found.get("private") is True else "public")),
            closed=found.get("ignore_pull_requests") is True and found.get("ignore_forks") is True,
        )

    def builds(self, page: int) -> list[Build]:
        """A page of builds, the newest first; without their steps."""
        found = self._get(f"{self._path}/builds", {"page": page, "per_page": PAGE})
        if found is None:
            return []
        if not isinstance(found, list):
            raise Garbage("Drone's list of builds is not a list")
        return [_build(row) for row in found]

    def build(self, number: int) -> Build:
        return _build(self._get(f"{self._path}/builds/{number}"))

    def create(self, params: Mapping[str, str]) -> Build | None:
        """Start a build; None if Drone accepted the request and started nothing. Parameters count in the query only."""
        response = self._http.once("POST", f"{self._path}/builds", {"branch": self.branch, **params})
        if response.status_code == 204:
            return None
        found = json_of(response)
        return None if found is None else _build(found)

    def cancel(self, number: int) -> None:
        self._http.once("DELETE", f"{self._path}/builds/{number}")

    def log(self, step: Step, number: int) -> str | None:
        """The log of a step that ended; None if Drone has none (yet), or an empty one."""
        try:
            found = self._get(f"{self._path}/builds/{number}/logs/{step.stage}/{step.number}")
        except NotFound:
            return None
        if not isinstance(found, list | None):
            raise Garbage("Drone's log of a step is not a list")
        return "".join(_line(row) for row in found) if found else None

    def live_log(self, step: Step, number: int, seconds: float) -> str:
        """What Drone remembers of the log of a running step, its last 5000 lines at most; reads for about so many seconds."""
        path = f"/stream/{self.repository}/{number}/{step.stage}/{step.number}"
        data = bytearray()
        until = time.monotonic() + 4 * seconds
        try:
            with session_for(self._http.address).get(
                self._http.address + path,
                headers=self._http.headers,
                timeout=seconds,
                stream=True,
                allow_redirects=False,
            ) as response:
                while response.status_code == 200 and len(data) < LIVE_BYTES and time.monotonic() < until:
                    part = response.raw.read1(64 * 1024)
                    data += part
                    if not part or data.endswith(b"data: eof\n\n"):
                        break
        except (requests.RequestException, HTTPError, OSError, ValueError):
            pass  # only ever a preview: the stored log is what counts
        return "".join(_events(bytes(data)))

    def _get(self, path: str, params: dict[str, Any] | None = None) -> Any:
        return json_of(self._http.once("GET", path, params))


def _events(data: bytes) -> Iterator[str]:
    """The lines in a stream of server-sent events, as far as it was read."""
    for line in data.splitlines():
        if line.startswith(b"data: {"):
            try:
                yield _line(storable(json.loads(line[6:])))
            except (ValueError, RecursionError):  # cut
                return


def _line(row: Any) -> str:
    """A piece of a log, with its newline if it has one: what is written in one go may be cut anywhere."""
    text = row.get("out") if isinstance(row, dict) else None
    return text if isinstance(text, str) else ""


def _mapping(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Garbage("Drone's answer is not an object")
    return found


def _number(found: Mapping[str, Any], name: str) -> int:
    value = found.get(name)
    return value if type(value) is int else 0


def _build(found: Any) -> Build:
    found = _mapping(found)
    params, stages = found.get("params"), found.get("stages")
    if _number(found, "number") < 1:
        raise Garbage("Drone's answer is not a build")
    return Build(
        number=_number(found, "number"),
        status=str(found.get("status", "")),
        error=str(found.get("error") or ""),
        event=str(found.get("event", "")),
        params={str(key): str(value) for key, value in params.items()} if isinstance(params, dict) else {},
        created=_time(_number(found, "created")),
        started=_number(found, "started") > 0,
        steps=tuple(islice(_steps(stages), STEPS)),
    )


def _steps(stages: Any) -> Iterator[Step]:
    for stage in stages if isinstance(stages, list) else []:
        steps = stage.get("steps") if isinstance(stage, dict) else None
        for step in steps if isinstance(steps, list) else []:
            if isinstance(step, dict):
                numbers = _number(stage, "number"), _number(step, "number")
                if all(1 <= number <= 9999 for number in numbers):
                    yield Step(*numbers, str(step.get("name", "")), str(step.get("status", "")))


def _time(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)
